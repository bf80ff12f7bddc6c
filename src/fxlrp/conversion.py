"""What a user calls: from a model and a composite to a twin, or straight to an explanation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from zennit.core import Composite

from .capture import Output
from .errors import InputError
from .given import check_choice, check_count, check_flags, check_model, check_options, inputs_of, paths_of
from .relevance.seeds import Target
from .twin import Explanation, Twin

__all__ = ["check_finite", "convert", "explain"]


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
        Which rule each layer gets: a zennit composite, the name of one (`fxlrp.composites.listed`), or None for the
        default (``docs/composites.md``). Its canonizers are not needed: those whose work fxlrp does are skipped,
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
        up to a quarter more time (``docs/performance.md``). If the twin is trainable, autograd keeps less, too: both
        passes run in stretches (`torch.utils.checkpoint`) that are computed again in the backward pass.

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
