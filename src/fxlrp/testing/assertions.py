"""Assertions about models and twins, whose failure names the node."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, fx, nn
from zennit.attribution import Gradient
from zennit.core import Composite

from ..canonizers import reads
from ..capture import capture
from ..composites import resolve
from ..conversion import convert
from ..errors import FxlrpError
from ..ledger import audit
from ..marks import FOLDS
from ..place import where
from ..relevance.seeds import Target, seed_relevance
from ..twin import Twin
from .models import for_zennit

__all__ = ["assert_conserves", "assert_matches_zennit", "assert_same_function", "relative", "zennit_relevance"]

Inputs = Tensor | tuple[Tensor, ...]
Values = tuple[object, ...]


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference of `a` from `b`, relative to the largest value of `b`."""
    difference, size = (a - b).abs().max().item(), b.abs().max().item()
    return difference / size if size else difference


def assert_same_function(a: nn.Module, b: nn.Module, x: Inputs, *, tolerance: float = 1e-9) -> None:
    """Assert that two modules give the same output.

    Parameters
    ----------
    a, b : nn.Module
        For example a model and what `fxlrp.canonize` makes of it. Both return one tensor.
    x : Tensor or tuple of Tensor
        The input, or inputs.
    tolerance : float
        Largest difference, relative to the largest value of the output of `b`. The default is for float64.

    Raises
    ------
    AssertionError
        If they differ. It names the first op of `a` whose value is another than that of the op of the same name in `b`.
    """
    inputs = (x,) if isinstance(x, Tensor) else tuple(x)
    with torch.no_grad():
        of_a, of_b = a(*inputs), b(*inputs)
    assert of_a.shape == of_b.shape, f"the outputs have shapes {tuple(of_a.shape)} and {tuple(of_b.shape)}"
    difference = relative(of_a, of_b)
    # "not <=": a NaN is a difference.
    if not difference <= tolerance:
        place = _first_difference(a, b, inputs, tolerance)
        raise AssertionError(f"the outputs differ by {difference:.2e} (allowed: {tolerance:.0e}){place}")


def _first_difference(a: nn.Module, b: nn.Module, inputs: tuple[Tensor, ...], tolerance: float) -> str:
    try:
        (graph_a, values_a), (graph_b, values_b) = (_values(module, inputs) for module in (a, b))
    # Only the message is at stake here.
    except FxlrpError:
        return ""
    others = {node.name: node for node in graph_b.nodes}
    for node in graph_a.nodes:
        other = others.get(node.name)
        folded = bool(FOLDS.of(node) or (other is not None and FOLDS.of(other)))
        if node.op != "call_function" or other is None or folded:
            continue
        ours, theirs = values_a.get(node), values_b.get(other)
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or not theirs.is_floating_point():
            continue
        if ours.shape != theirs.shape or not relative(ours, theirs) <= tolerance:
            return f"; the first op whose value differs is '{node.name}': {where(node)}"
    return "; every op that both have under one name has the same value"


_OPS = ("placeholder", "get_attr", "call_function", "output")


def _values(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[fx.Graph, dict[fx.Node, object]]:
    """The graph of a module, and its values."""
    if isinstance(module, fx.GraphModule) and all(node.op in _OPS for node in module.graph.nodes):
        graph_module = module
    else:
        graph_module = capture(module, inputs, keep=reads()).graph_module
    run = fx.Interpreter(graph_module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*inputs)
    return graph_module.graph, run.env


def assert_conserves(
    twin: Twin, x: Inputs, target: Target = None, *, leak: float = 1e-9, unconserved: float | None = 1e-9
) -> None:
    """Assert that no relevance is lost on the way, but to biases and stabilizers.

    Parameters
    ----------
    twin : Twin
        Made by `fxlrp.convert`.
    x : Tensor or tuple of Tensor
        As for the twin's call.
    target : int, sequence of int, array, Tensor, callable or None
        As for the twin's call.
    leak : float
        The largest allowed rest of a node, see `fxlrp.Ledger`. The default is for float64; 1e-4 is for float32.
    unconserved : float or None
        The largest allowed share that a rule drops or adds by its own definition; None if that is expected (alpha-beta,
        guided backpropagation, softmax).

    Raises
    ------
    AssertionError
        If there is more. It names the worst node, and shows the ledger.
    """
    ledger = audit(twin, x, target)
    for name, found, allowed in (("leak", ledger.leak, leak), ("unconserved", ledger.unconserved, unconserved)):
        if allowed is None or found <= allowed:
            continue
        row = max(ledger.rows, key=lambda row: getattr(row, name))
        place = f"'{row.node}' ({row.op} in '{row.path}', rule {row.rule})" if row.path else f"'{row.node}' ({row.op})"
        raise AssertionError(
            f"{name} is {found:.2e} (allowed: {allowed:.0e}), the largest at {place}: {row.received:.4g} came in, "
            f"{sum(row.to.values()):.4g} went to its inputs, {row.bias:.4g} to the bias, {row.stabilizer:.4g} to the "
            f"stabilizer, {row.definition:.4g} is by definition, {row.rest:.4g} is left"
            + ("" if row.misplaced is None else f"; {row.misplaced:.2e} of it is misplaced")
            + f"\n\n{ledger}"
        )


def assert_matches_zennit(
    model: nn.Module, composite: Composite | str | None, x: Tensor, target: Target = None, *, tolerance: float = 1e-6
) -> None:
    """Assert that the relevance of the input is zennit's.

    zennit is right where every op is a module, sums are `zennit.layer.Sum`, and the composite's canonizers fit the
    model. What it is known to get wrong otherwise is put right in a copy first: in-place activations, whose hooks would
    see an overwritten input; activations that are called several times; and ``eps`` of a batch norm, which zennit 0.5.1
    applies twice.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is not modified.
    composite : zennit.core.Composite, str or None
        As for `fxlrp.convert`; zennit applies its canonizers.
    x : Tensor
        The input.
    target : int, sequence of int, array, Tensor, callable or None
        As for the twin's call.
    tolerance : float
        Largest difference, relative to the largest relevance. The default is for float64.

    Raises
    ------
    AssertionError
        If they differ. It names the module that is furthest up in the network (first in the relevance pass) at whose
        input the relevance differs: what this module hands on, whatever else reads the same value.
    """
    model, composite = for_zennit(model, x), resolve(composite)
    with torch.no_grad():
        output = model(x)
    seed = seed_relevance(output, target)
    twin = convert(model, composite)
    found = twin(x, seed).relevance
    expected, at_modules = _recorded(model, composite, x, seed)
    difference = relative(found, expected)
    if difference <= tolerance:
        return
    differing = (path for path, theirs in at_modules if _differs(model, composite, x, seed, path, theirs, tolerance))
    path = next(differing, None)
    place = (
        "; it is the same at the inputs of all modules where it can be compared"
        if path is None
        else f"; the first module in the relevance pass whose input's relevance differs is '{path}'"
    )
    raise AssertionError(f"relevance differs from zennit's by {difference:.2e} (allowed: {tolerance:.0e}){place}")


def _differs(
    model: nn.Module, composite: Composite, x: Tensor, seed: Tensor, path: str, theirs: Tensor, tolerance: float
) -> bool:
    """Whether the relevance at a module's input is another than zennit's."""
    try:
        ours = convert(model, composite, record=(path,))(x, seed).recorded[path]
    # Of a module that the graph knows nothing of, nothing can be said.
    except FxlrpError:
        return False
    # Nor of one that is called several times, or whose input was merged into another value.
    comparable = isinstance(ours, Tensor) and ours.shape == theirs.shape
    return comparable and not relative(ours, theirs) <= tolerance


def zennit_relevance(model: nn.Module, composite: Composite, x: Tensor, seed: Tensor) -> Tensor:
    """zennit's relevance of `x`, of its shape, for a seed on the output."""
    with Gradient(model=model, composite=composite) as attributor:
        _, relevance = cast(tuple[Tensor, Tensor], attributor(x, seed))
    return relevance


def _recorded(
    model: nn.Module, composite: Composite, x: Tensor, seed: Tensor
) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """zennit's relevance of the input, and what each module hands on to its own, in the order of its pass."""
    model = copy.deepcopy(model)
    found: list[tuple[str, Tensor]] = []
    with Gradient(model=model, composite=composite) as attributor, _watched(model, found):
        _, relevance = cast(tuple[Tensor, Tensor], attributor(x, seed))
    return relevance, found


@contextmanager
def _watched(model: nn.Module, found: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Note the gradient at the input of each module that holds no others, as zennit's hooks leave it.

    zennit puts an `Identity` in front of a module, and its rule's relevance behind it, on the way back: what comes out
    there is seen by a hook on a value in front of the `Identity`. That value is a copy, which nothing else reads.
    """

    def watch(path: str) -> Callable[[nn.Module, Values], Values]:
        def before(module: nn.Module, inputs: Values) -> Values:
            return tuple(watched(value) for value in inputs)

        def watched(value: object) -> object:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            value = value.clone()
            value.register_hook(lambda gradient: found.append((path, gradient.detach().clone())))
            return value

        return before

    leaves = [(path, module) for path, module in model.named_modules() if next(module.children(), None) is None]
    handles = [module.register_forward_pre_hook(watch(path), prepend=True) for path, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
