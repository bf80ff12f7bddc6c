"""A rule's gradient mapper as a graph of its own: what is read of it, each thing once, in few passes over memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer
from zennit.core import Stabilizer

from .branch import Mapper
from .held import held_by
from .memory import remembered
from .reading import Use, gradients, tries
from .stabilizer import is_plain, stabilized, with_stabilizers

__all__ = ["TracedMapper", "traced"]

aten = torch.ops.aten

_PRODUCTS = (operator.mul, torch.mul)
_SUMS = (operator.add, torch.add)


def where_positive(x: Tensor, condition: Tensor) -> Tensor:
    """``x * (condition > 0)`` in one pass over memory."""
    return aten.threshold_backward(x, condition.to(x.dtype), 0)


def where_negative(x: Tensor, condition: Tensor) -> Tensor:
    """``x * (condition < 0)`` in one pass over memory."""
    return aten.hardtanh_backward(x, condition.to(x.dtype), -torch.inf, 0)


_COMPARISONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    operator.gt: where_positive,
    torch.gt: where_positive,
    operator.lt: where_negative,
    torch.lt: where_negative,
}


class TracedMapper:
    """What a mapper's graph computes, as a mapper.

    Parameters
    ----------
    graph : fx.Graph
        Relevance and the branches' outputs to the gradients that are wanted.
    wanted : collection of int
        Whose these are; in the others' place, it gives what it was given.
    """

    def __init__(self, graph: fx.Graph, wanted: Collection[int]) -> None:
        self._run, self._wanted = fx.GraphModule(nn.Module(), graph, "Mapper"), list(wanted)
        _, *outputs = (node for node in graph.nodes if node.op == "placeholder")
        self.reads = frozenset(i for i, output in enumerate(outputs) if output.users)

    def __call__(self, relevance: Tensor, outputs: list[Tensor]) -> list[Tensor]:
        found = list(outputs)
        for i, gradient in zip(self._wanted, self._run(relevance, *outputs), strict=True):
            found[i] = gradient
        return found


@remembered
def traced(mapper: Mapper, use: Use, given: Collection[int]) -> TracedMapper | None:
    """The same mapper, as far as it is wanted; None if it cannot be followed.

    Parameters
    ----------
    mapper : callable
        The rule's gradient mapper.
    use : Use
        How it is used.
    given : collection of int
        The branches whose output it is given; in the others' place, zero.
    """
    wanted = use.wanted
    if any(isinstance(value, Tensor) for value in held_by(mapper).values()):
        return None  # A graph holds no tensors.
    try:
        graph = _followed(mapper, use, given)
        numbers = [
            (relevance, [output if i in given else output.new_zeros(()) for i, output in enumerate(outputs)])
            for relevance, outputs in tries(use)
        ]
        of_mapper = [gradients(mapper, wanted, *each) for each in numbers]

        def same(function: Mapper) -> bool:
            return all(_agree(e, gradients(function, wanted, *n)) for e, n in zip(of_mapper, numbers, strict=True))

        _simplify(graph)
        _leave_out_comparisons(graph, lambda: same(TracedMapper(graph, wanted)))
        _mask_in_one_pass(graph)
        _merge(graph)
        found = TracedMapper(graph, wanted)
        return found if same(found) else None
    # A mapper may do anything: what cannot be followed is called as it is.
    except Exception:
        return None


def _agree(a: dict[int, Tensor], b: dict[int, Tensor]) -> bool:
    return all(torch.allclose(a[i], b[i], rtol=1e-12, atol=0.0) for i in a)


def _followed(mapper: Mapper, use: Use, given: Collection[int]) -> fx.Graph:
    """The mapper's graph: relevance and outputs to the gradients that are wanted; what it is not given is a zero."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    relevance: Any = fx.Proxy(graph.placeholder("relevance"), tracer)
    outputs: list[Any] = [fx.Proxy(graph.placeholder(f"output_{i}"), tracer) for i in range(use.branches)]

    def stabilizer(of: Stabilizer) -> Callable[[Any], Any]:
        epsilon = of.epsilon
        plain = lambda z: tracer.create_proxy("call_function", stabilized, (z, epsilon), {})
        return plain if is_plain(of) else of

    found: Any = with_stabilizers(mapper, stabilizer)(relevance, outputs)
    found = [found] if isinstance(found, fx.Proxy) else list(found)
    graph.output(tuple(found[i].node for i in use.wanted))
    for i, output in enumerate(outputs):
        if i not in given:
            output.node.meta["zero"] = True
    return graph


def _simplify(graph: fx.Graph) -> None:
    """Leave out sums with zero and products with one."""
    for node in list(graph.nodes):
        if node.op == "call_function" and len(node.args) == 2 and not node.kwargs:
            for one, other in permutations(node.args):
                nothing = (node.target in _SUMS and _is_zero(one)) or (node.target in _PRODUCTS and _is(one, 1))
                if nothing and isinstance(other, fx.Node):
                    node.replace_all_uses_with(other)
                    break
    graph.eliminate_dead_code()


def _is_zero(value: object) -> bool:
    return value.meta.get("zero", False) if isinstance(value, fx.Node) else _is(value, 0)


def _is(value: object, number: int) -> bool:
    return isinstance(value, int | float) and value == number


def _leave_out_comparisons(graph: fx.Graph, same: Callable[[], bool]) -> None:
    """A comparison that makes no difference to the product that it is a factor of is not made."""
    for product, (_, other) in _products_with(graph, _COMPARISONS):
        args, product.args = product.args, (other, 1)
        if not same():
            product.args = args
    _simplify(graph)


def _mask_in_one_pass(graph: fx.Graph) -> None:
    """A product with a comparison with zero is one pass, and not three."""
    for product, (comparison, other) in _products_with(graph, _COMPARISONS):
        if _is(comparison.args[1], 0):
            product.target = _COMPARISONS[comparison.target]
            product.args = other, comparison.args[0]
    graph.eliminate_dead_code()


def _products_with(graph: fx.Graph, targets: Collection[Any]) -> Iterator[tuple[fx.Node, tuple[fx.Node, fx.Node]]]:
    """The products of which a factor is an op of these, with this factor and the other."""
    for node in list(graph.nodes):
        if node.target in _PRODUCTS and len(node.all_input_nodes) == 2:
            for one, other in permutations(node.all_input_nodes):
                if one.target in targets and other.target not in targets:
                    yield node, (one, other)


def _merge(graph: fx.Graph) -> None:
    """What is the same is computed once."""
    known: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_method" and str(node.target).endswith("_"):
            return
        if node.op in ("call_function", "call_method"):
            key = node.op, node.target, repr(node.args), repr(node.kwargs)
            first = known.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
    graph.eliminate_dead_code()
