"""What becomes of one model: is it captured, is f kept, is every unit of relevance accounted for."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from zennit.core import Composite

from ..canonizers import reads
from ..canonizers.report import report
from ..capture import capture
from ..conversion import convert
from ..errors import FxlrpError
from ..graph import dependents
from ..ledger import audit
from ..reading import unwrap
from ..testing.assertions import relative
from .catalogue import Sample

__all__ = ["TOLERANCE", "Trial", "try_out"]

TOLERANCE = 1e-9
"""Of f and of the ledger, in float64."""

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default, aten.einsum.default)


@dataclass(frozen=True)
class Trial:
    """What became of one model; None is what was not reached.

    Attributes
    ----------
    name : str
        As of `fxlrp.zoo.build`.
    parameters : int or None
        How many it has.
    inputs : list of list of int or None
        The inputs' shapes.
    attention : bool or None
        Whether it multiplies matrices that both depend on the input.
    captured : bool
        Whether there is a graph of it.
    difference : float or None
        How far the twin's output is from the model's, relative to its largest value (float64).
    leak, unconserved : float or None
        Of the ledger.
    batch_norms : int or None
        How many of them no linear layer took in: each has a rule of its own.
    seconds : float
        All of it: making the model, converting it, explaining one batch and accounting for it.
    failure : str or None
        What went wrong, and where.
    """

    name: str
    parameters: int | None = None
    inputs: list[list[int]] | None = None
    attention: bool | None = None
    captured: bool = False
    difference: float | None = None
    leak: float | None = None
    unconserved: float | None = None
    batch_norms: int | None = None
    seconds: float = 0.0
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it is converted, f is kept, and nothing leaks."""
        return self.failure is None


def try_out(name: str, make: Callable[[], Sample], composite: Composite | str | None = "epsilon_plus") -> Trial:
    """Convert a model, explain one batch and account for its relevance, in float64.

    Parameters
    ----------
    name : str
        What to call it.
    make : callable
        Makes the model and its inputs.
    composite : Composite, str or None
        As of `fxlrp.convert`.

    Returns
    -------
    Trial
        Nothing is raised: what goes wrong is its `Trial.failure`.
    """
    start, trial = time.perf_counter(), Trial(name)
    try:
        for found in _steps(trial, make, composite):
            trial = found
    # Whatever goes wrong is what the trial is to find out.
    except Exception as error:
        trial = replace(trial, failure=" ".join(f"{type(error).__name__}: {error}{_place(error)}".split()))
    return replace(trial, seconds=time.perf_counter() - start)


def _place(error: Exception) -> str:
    """Where an error was raised that does not say so itself."""
    if isinstance(error, FxlrpError):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename}:{frame.lineno}: {frame.line})"


def _steps(trial: Trial, make: Callable[[], Sample], composite: Composite | str | None) -> Iterator[Trial]:
    """The trial after each step, with what was found."""
    model, inputs = make()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield (trial := replace(trial, parameters=parameters, inputs=[list(x.shape) for x in inputs]))
    captured = capture(model, inputs, keep=reads())
    yield (trial := replace(trial, captured=True, attention=_has_attention(captured.graph_module.graph)))
    del captured
    with torch.no_grad():
        expected = _explained(model(*inputs))
    twin = convert(model, composite)
    # The twin has a copy; of the largest models, there is no room for another.
    del model
    x = inputs[0] if len(inputs) == 1 else inputs
    program = twin.capture(x)
    yield (trial := replace(trial, batch_norms=len(report(program.canonical.graph).kept)))
    with torch.no_grad():
        difference = relative(twin(x).output, expected)
    yield (trial := replace(trial, difference=difference))
    ledger = audit(twin, x)
    yield (trial := replace(trial, leak=ledger.leak, unconserved=ledger.unconserved))
    if not difference <= TOLERANCE:
        yield replace(trial, failure=f"f is not kept: {difference:.1e}")
    elif not ledger.leak <= TOLERANCE:
        worst = max(ledger.rows, key=lambda row: row.leak)
        yield replace(trial, failure=f"relevance leaks: {ledger.leak:.1e} at {worst.node} ({worst.op}, {worst.rule})")


def _explained(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Of what a model returns, the tensor that is explained by default."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return output[0] if logits is None else logits


def _has_attention(graph: fx.Graph) -> bool:
    reached = dependents(node for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        if node not in reached or node.op != "call_function":
            continue
        target, args, _ = unwrap(node)
        factors = args[1] if target is aten.einsum.default else args[:2]
        if target is aten.scaled_dot_product_attention.default:
            return True
        if target in _PRODUCTS and all(isinstance(f, fx.Node) and f in reached for f in factors):
            return True
    return False
