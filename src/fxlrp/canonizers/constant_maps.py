"""A constant affine map, however it is spelled (centering, scaling, an embedding added to pixels), is read as one op.

What adds a constant to a value is no sum of two activations: relevance in proportion to ``value - mean`` says how far a
value lies from the mean, and is unbounded where they cancel. As a frozen batch norm, the map is folded into the linear
layer in front of it, or absorbed by those behind; (A.5)-(A.15) of Pahde et al., Optimizing Explanations by Network
Canonization and Hyperparameter Search, supplement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import call, constant, parameter_expressions
from ..marks import SPELLED
from ..ops import lookup, slots_of
from ..ops.affine import constant_map
from ..reading import unwrap
from ..signature import Target

__all__ = ["PRODUCTS", "SUMS", "read_constants_as_affine_maps", "spell_out_what_is_kept"]

aten = torch.ops.aten

SUMS: dict[Target | str, tuple[int, int]] = {
    aten.add.Tensor: (1, 1),
    aten.add.Scalar: (1, 1),
    aten.sub.Tensor: (1, -1),
    aten.sub.Scalar: (1, -1),
    aten.rsub.Tensor: (-1, 1),
    aten.rsub.Scalar: (-1, 1),
}
"""For each sum, the sign of either operand; `alpha` scales the second, of a reversed difference the first."""

PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default)


@dataclass(frozen=True)
class _Chain:
    """Sums and products with constants, one behind the other, of the value `x`: each with the place of its value."""

    x: fx.Node
    steps: tuple[tuple[fx.Node, int], ...]


def read_constants_as_affine_maps(graph_module: fx.GraphModule) -> None:
    """Replace each chain of sums and products of a value with constants by `constant_map`.

    A product alone stays one (it may be a layer's scale), but for that of the model's input, or of a value that such a
    map was moved from.
    """
    parameters = parameter_expressions(graph_module.graph)
    of_input = {node for node in graph_module.graph.nodes if node.op == "placeholder"}
    shifted: set[fx.Node] = set()
    chains: dict[fx.Node, _Chain] = {}
    for node in graph_module.graph.nodes:
        position = _position(node, parameters)
        sources = _moved(node) if position is None else [node.args[position]]
        for kind in (of_input, shifted):
            if any(source in kind for source in sources):
                kind.add(node)
        if position is not None:
            (x,), step = sources, (node, position)
            shifted |= {node} if node.target in SUMS else set()
            before = chains.pop(x, None) if len(x.users) == 1 else None
            chains[node] = _Chain(x, (step,)) if before is None else _Chain(before.x, (*before.steps, step))
    written: dict[fx.Node, fx.Node] = {}
    for end, chain in chains.items():
        if end in of_input | shifted:
            # What another chain ends with, and more than this one reads, has been written anew.
            x = written.get(chain.x, chain.x)
            new = written[end] = _replace(graph_module, end, _Chain(x, chain.steps), parameters)
            if end not in of_input and len(chain.steps) == 1:
                SPELLED.put(new, _spelled(*chain.steps[0]))


def spell_out_what_is_kept(graph_module: fx.GraphModule) -> None:
    """Of a value within the model that no layer takes a constant from, the sum or the product is one again.

    There the constant has its share of a sum, as a bias has (so AttnLRP has it of an embedding of positions).
    """
    for node in list(graph_module.graph.nodes):
        spelled = SPELLED.of(node)
        if node.target is constant_map and spelled is not None:
            x, scale, shift = node.args
            with graph_module.graph.inserting_before(node):
                new = call(node, spelled, x, shift if spelled is aten.add.Tensor else scale, name=node.name)
            node.replace_all_uses_with(new)


def _moved(node: fx.Node) -> list[fx.Node]:
    """The values that `node` moves, if this is all that it does."""
    op = lookup(unwrap(node)[0]) if node.op == "call_function" else None
    return list(slots_of(node, op, lambda operand: True).values()) if op is not None and op.structural else []


def _position(node: fx.Node, parameters: set[fx.Node]) -> int | None:
    """Where the value stands in a sum or product of a value and a constant; None if `node` is none such."""
    if node.op != "call_function" or node.target not in (*SUMS, *PRODUCTS) or node.kwargs.keys() - {"alpha"}:
        return None
    operands: list[Any] = [_without_expansion(operand, parameters) for operand in node.args[:2]]
    values = [i for i, operand in enumerate(operands) if isinstance(operand, fx.Node) and operand not in parameters]
    if len(values) != 1 or (node.target in (aten.div.Tensor, aten.div.Scalar) and values != [0]):
        return None
    position = values[0]
    value, x = node.meta["val"], operands[position].meta["val"]
    same = isinstance(x, Tensor) and value.shape == x.shape and value.dtype == x.dtype
    if not same or not value.is_floating_point() or value.ndim < 2:
        return None
    return position


def _without_expansion(operand: Any, parameters: set[fx.Node]) -> Any:
    """A constant as it is before it is expanded to the value's shape: an operation broadcasts it by itself."""
    expanded = isinstance(operand, fx.Node) and operand.target in (aten.expand.default, aten.expand_as.default)
    return operand.args[0] if expanded and operand.args[0] in parameters else operand


def _replace(graph_module: fx.GraphModule, end: fx.Node, chain: _Chain, parameters: set[fx.Node]) -> fx.Node:
    value = end.meta["val"]
    with graph_module.graph.inserting_before(end):
        # Without a dimension, it would take on a constant's lower precision.
        number = lambda x: constant(graph_module, end, torch.tensor([x], dtype=value.dtype), f"{end.name}_start")
        scale, shift = number(1.0), number(0.0)
        for node, position in chain.steps:
            scale, shift = _behind(node, position, scale, shift, parameters)
        scale, shift = (_of_rank(end, each, name) for each, name in ((scale, "scale"), (shift, "shift")))
        new = call(end, constant_map, chain.x, scale, shift, name=end.name)
    end.replace_all_uses_with(new)
    return new


def _of_rank(end: fx.Node, param: fx.Node, name: str) -> fx.Node:
    """A constant with as many dimensions as the value of `end` has."""
    shape = param.meta["val"].shape
    missing = end.meta["val"].ndim - len(shape)
    return call(end, aten.reshape.default, param, [*[1] * missing, *shape], name=f"{end.name}_{name}")


def _behind(
    node: fx.Node, position: int, scale: fx.Node, shift: fx.Node, parameters: set[fx.Node]
) -> tuple[fx.Node, fx.Node]:
    """Scale and shift behind one more step."""
    args = [_without_expansion(operand, parameters) for operand in node.args]
    target, _, kwargs = unwrap(node)
    at = lambda value: call(node, target, *args[:position], value, *args[position + 1 :], **kwargs)
    if node.target in PRODUCTS:
        return at(scale), at(shift)
    factor = _factor(node, position)
    return (scale if factor == 1 else call(node, aten.mul.Scalar, scale, factor)), at(shift)


def _factor(node: fx.Node, position: int) -> float:
    """What a sum multiplies an operand with."""
    signs = SUMS[node.target]
    # Of a reversed difference, it is the first operand that alpha scales.
    scaled = position == (0 if signs[0] < 0 else 1)
    alpha: Any = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return signs[position] * (alpha if scaled else 1)


def _spelled(node: fx.Node, position: int) -> Target | None:
    """The op of a sum with a constant, or of a product with one; None of what is more."""
    if node.target in PRODUCTS:
        return aten.mul.Tensor
    return aten.add.Tensor if _factor(node, position) == 1 else None
