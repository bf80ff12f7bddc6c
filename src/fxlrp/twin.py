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
from .compiler import Programs
from .errors import FxlrpError
from .given import inputs_of
from .listing import readable
from .models import snapshot
from .recipe import Method, Recipe
from .relevance.program import Program
from .relevance.seeds import Target
from .values import outside_inference_mode

__all__ = ["Explanation", "Twin"]


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
    """A model that explains itself; made by `fxlrp.convert`, whose parameters are described there."""

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
        if not self.trainable:
            inputs = tuple(x.detach() for x in inputs)
        with (
            outside_inference_mode(*inputs, target) as (*values, seed),
            torch.set_grad_enabled(torch.is_grad_enabled() and (self.trainable or program.tuned)),
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
