"""The twin: a module that gives a model's output together with its explanation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from zennit.core import Composite

from . import composites
from .capture import Output
from .compiled import CompiledModule
from .compiler import Programs, outside_inference_mode
from .errors import FxlrpError, InputError
from .given import check_choice, check_count, check_flags, check_model, check_options, inputs_of, paths_of
from .listing import readable
from .models import snapshot
from .recipe import Method, Recipe
from .relevance.program import Program
from .relevance.seeds import Target

__all__ = ["Explanation", "Twin", "check_finite", "convert", "explain"]


class Explanation(NamedTuple):
    """What a twin returns.

    Attributes
    ----------
    output : Tensor
        The model's output that is explained.
    relevance : Tensor, or tuple of Tensor or None
        Relevance of the input, of its shape; of several inputs, one for each (None for one that is not floating
        point, or on which the output does not depend). With K seeds, K stands in front.
    recorded : dict of str to Tensor or tuple of Tensor
        Relevance at the input of each recorded module; a tuple where it has several inputs or is called several times.
    """

    output: Tensor
    relevance: Any
    recorded: dict[str, Any]


class Twin(CompiledModule):
    """A model that explains itself; made by `convert`, whose parameters are described there."""

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        composite: Composite | str | None,
        *,
        trainable: bool,
        record: Sequence[str],
        output: Output,
        unmatched: str,
        threshold_relu: bool,
        final_activation: str,
        optimize: bool | Collection[str],
        chunk_size: int | None,
        recompute: bool,
    ) -> None:
        super().__init__()
        self._exported = model if isinstance(model, ExportedProgram) else None
        module = model.module() if isinstance(model, ExportedProgram) else model
        # Not trainable: a snapshot, so that every capture, now or later, speaks of the same weights.
        self.model = module if trainable else snapshot(module)
        self.training = module.training
        self.trainable = trainable
        self._kept = composites.Picklable(composite)
        self._options: dict[str, Any] = {
            "record": record,
            "output": output,
            "unmatched": unmatched,
            "threshold_relu": threshold_relu,
            "final_activation": final_activation,
            "optimize": optimize,
            "chunk_size": chunk_size,
            "recompute": recompute,
        }
        self._start()

    _made_by_start = ("_composite", "_programs")

    def _start(self) -> None:
        self._composite = composites.resolve(self._kept.value)
        methods = [Method(self._composite)]
        self._programs = Programs(Recipe(self.model, methods, self.trainable, self._exported, **self._options))

    def forward(self, x: Tensor | tuple[Tensor, ...], target: Target = None) -> Explanation:
        """The model's output at `x`, and why.

        Parameters
        ----------
        x : Tensor or tuple of Tensor
            The model's input, or inputs.
        target : int, sequence of int, array, Tensor, callable or None
            What to explain, see `fxlrp.seed_relevance`.

        Returns
        -------
        Explanation
            Output, relevance (of the input's shape and dtype), and what was recorded.

        Raises
        ------
        InputError
            If no input is a floating-point tensor, or their number is wrong.
        TargetError
            If the target does not fit the output.
        FxlrpError
            At the first call with such inputs, what `convert` raises.
        """
        single, inputs = isinstance(x, Tensor), inputs_of(x)
        program = self._programs.of(inputs)
        output, relevance, recorded = self._run(program, program.checked(inputs), target)
        relevance = tuple(None if r is None else r.to(i.dtype) for r, i in zip(relevance, inputs, strict=True))
        return Explanation(output, relevance[0] if single else relevance, recorded)

    def _run(self, program: Program, inputs: tuple[Tensor, ...], target: Target) -> Any:
        with (
            outside_inference_mode(*inputs, target) as (*values, seed),
            torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable),
        ):
            return program.run(tuple(values), seed)

    def capture(self, x: Tensor | tuple[Tensor, ...]) -> Program:
        """Capture the model for inputs like `x` now, rather than at the first call with such.

        Parameters
        ----------
        x : Tensor or tuple of Tensor
            The model's input, or inputs.

        Returns
        -------
        Program
            The capture with its relevance pass.
        """
        return self._programs.of(inputs_of(x))

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph module of the latest capture: ``(*inputs, target) -> (output, relevances, recorded)``.

        It explains classes, where there is a final activation that is not to be explained.

        Raises
        ------
        FxlrpError
            If nothing has been captured yet.
        """
        if not self._programs.all:
            raise FxlrpError(
                "nothing is captured yet: call the twin once, or give convert example_inputs, and then ask for its code"
            )
        return self._programs.all[-1].graph_module

    @property
    def graph(self) -> fx.Graph:
        """The latest capture's graph: the forward pass and the relevance pass."""
        return self.graph_module.graph

    @property
    def code(self) -> str:
        """The latest capture as code to read: ops under their short names, no marks of where a value is freed."""
        return readable(self.graph)

    def train(self, mode: bool = True) -> Twin:
        """Set the mode of the twin and of the model; the mode of an exported program is its own."""
        if self._exported is None:
            return super().train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        captures = len(self._programs.all)
        return f"composite={type(self._composite).__name__}, trainable={self.trainable}, captures={captures}"


def check_finite(x: Tensor | tuple[Tensor, ...]) -> None:
    """Raise an `InputError` if an input has values that are NaN or infinite."""
    for value in inputs_of(x):
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"the input has {int((~value.isfinite()).sum())} values that are NaN or infinite: relevance would be "
                "NaN everywhere they reach. Clean the input, for example with torch.nan_to_num"
            )


def convert(
    model: nn.Module | ExportedProgram,
    composite: Composite | str | None = None,
    *,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    trainable: bool = False,
    record: Sequence[str] = (),
    output: Output = None,
    unmatched: str = "error",
    threshold_relu: bool = True,
    final_activation: str = "skip",
    optimize: bool | Collection[str] = True,
    chunk_size: int | None = None,
    recompute: bool = False,
) -> Twin:
    """Turn a model into a module that gives its output together with its explanation.

    Parameters
    ----------
    model : nn.Module or torch.export.ExportedProgram
        The model; a `torch.fx.GraphModule` is one. It is never modified.
    composite : zennit.core.Composite, str or None
        Which rule each layer gets: a zennit composite, the name of one in `zennit.composites.COMPOSITES`, or None for
        the default (``docs/composites.md``). Its canonizers are not needed: those whose work fxlrp does are skipped,
        others are applied to a copy of the model.
    example_inputs : Tensor, tuple of Tensor or None
        Inputs to capture the model with, now. None: at the first call.
    trainable : bool
        False: the twin has a snapshot of the model, with its parameters folded into constants; no autograd. True: it
        shares the model's parameters and buffers and follows its mode, and its relevance can be differentiated with
        respect to the parameters and the input.
    record : sequence of str
        Module paths; the relevance at each one's input is returned too.
    output : str, int, callable or None
        Which output is explained, of a model that returns several: see `fxlrp.capture.capture`.
    unmatched : {"error", "gradient"}
        What to do with an op that fxlrp does not know: raise, or let relevance through as the plain gradient would.
    threshold_relu : bool
        What to do with a batch norm that is followed by a ReLU and then a linear layer (DenseNet): let the layer take
        it in, with a ReLU that clips at a threshold, or keep it as a linear op (``docs/canonization.md``).
    final_activation : {"skip", "keep"}
        What to do with a softmax, log-softmax or sigmoid that gives the output. "skip": it is not explained, a class's
        relevance starts from its logit; a seed given as a tensor is put on the output itself, and goes through by the
        op's rule. "keep": all of it does.
    optimize : bool or collection of str
        Whether what need not be computed is left out of the relevance pass, which does not change it; or which of the
        rewrites do so, by their names in `fxlrp.relevance.rewrites.REWRITES`.
    chunk_size : int or None
        How many of K seeds of one call are propagated at a time. None: as many as take about a gigabyte.
    recompute : bool
        Whether the values that the relevance pass reads are computed again rather than kept till then: less memory, for
        up to a quarter more time (``docs/performance.md``). Of what autograd keeps, if it does, nothing changes.

    Returns
    -------
    Twin
        Call it with an input, and a target if need be.

    Raises
    ------
    CaptureError, CompositeError, InputError, ModulePathError, RuleError, UnsupportedOpError
        See `fxlrp.errors`. Those that need the graph come with the first capture.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.resnet18().eval()
    >>> twin = fxlrp.convert(model, "epsilon_plus")
    >>> out = twin(torch.randn(1, 3, 64, 64), target=7)
    >>> out.relevance.shape
    torch.Size([1, 3, 64, 64])
    """
    check_model(model)
    check_flags(trainable=trainable, threshold_relu=threshold_relu, recompute=recompute)
    check_choice("unmatched", unmatched, ("error", "gradient"))
    check_choice("final_activation", final_activation, ("skip", "keep"))
    check_count("chunk_size", chunk_size)
    twin = Twin(
        model,
        composite,
        trainable=trainable,
        record=paths_of("record", record),
        output=output,
        unmatched=unmatched,
        threshold_relu=threshold_relu,
        final_activation=final_activation,
        optimize=optimize,
        chunk_size=chunk_size,
        recompute=recompute,
    )
    if example_inputs is not None:
        twin.capture(example_inputs)
    return twin


def explain(
    model: nn.Module | ExportedProgram,
    x: Tensor | tuple[Tensor, ...],
    target: Target = None,
    composite: Composite | str | None = None,
    **options: Any,
) -> Explanation:
    """Explain one batch: `convert` and one call.

    Parameters
    ----------
    model : nn.Module or torch.export.ExportedProgram
        As for `convert`.
    x : Tensor or tuple of Tensor
        As for `Twin.forward`.
    target : int, sequence of int, array, Tensor, callable or None
        As for `Twin.forward`.
    composite : zennit.core.Composite, str or None
        As for `convert`.
    **options
        As for `convert`.

    Returns
    -------
    Explanation
        Output, relevance, and what was recorded.

    Raises
    ------
    InputError
        If the input has values that are not finite, or there is no such option; and what `convert` and the twin's call
        raise.
    """
    check_options("explain", options, list(convert.__kwdefaults__ or ()))
    check_finite(x)
    return convert(model, composite, **options)(x, target)
