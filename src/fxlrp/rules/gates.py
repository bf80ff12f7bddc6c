"""Whether a factor of a product is a gate: a value that has constant bounds, whatever the model's input is."""

from __future__ import annotations

import math
import operator

import torch
from torch import fx

from ..graph import is_constant
from ..ops import Op, lookup, slots_of
from ..ops.sign import is_tensor
from ..reading import argument, unwrap
from ..signature import Target

__all__ = ["is_bounded"]

aten = torch.ops.aten


_BETWEEN_CONSTANTS = (
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.softmax.int,
    aten._softmax.default,
    aten.relu6.default,
)
_BOUNDS: dict[Target, tuple[str | None, str | None]] = {
    aten.clamp.default: ("min", "max"),
    aten.clamp.Tensor: ("min", "max"),
    aten.clamp_min.default: ("min", None),
    aten.clamp_max.default: (None, "max"),
    aten.hardtanh.default: ("min_val", "max_val"),
}
"""What clips its input: the names of the lower and of the upper bound."""


_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.neg.default)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


def is_bounded(node: fx.Node) -> bool:
    """Whether a value has constant bounds, below and above, whatever the model's input is; then it may be a gate."""
    return _is_bounded(node, "below") and _is_bounded(node, "above")


def _is_bounded(node: fx.Node, side: str) -> bool:
    while node.target is operator.getitem:
        node = node.all_input_nodes[0]
    if node.op != "call_function" or is_constant(node):
        return node.op != "placeholder"
    target = unwrap(node)[0]
    op = lookup(target)
    return op is not None and (target in _BETWEEN_CONSTANTS or _maps_to_bounded(node, op, side))


def _maps_to_bounded(node: fx.Node, op: Op, side: str) -> bool:
    target, args, kwargs = unwrap(node)
    inputs = (_is_bounded(operand, side) for operand in slots_of(node, op, is_tensor).values())
    if target in (aten.minimum.default, aten.maximum.default):
        return any(inputs) if (target is aten.minimum.default) == (side == "above") else all(inputs)
    if target is aten.relu.default or target in _BOUNDS:
        name = _BOUNDS.get(target, (None, None))[side == "above"]
        clipped = target is aten.relu.default and side == "below"
        return clipped or (name is not None and _is_bound(argument(node, name))) or all(inputs)
    finite = all(_is_finite(value) for value in (*args, *kwargs.values()) if isinstance(value, float))
    if op.structural:
        return finite and all(inputs)
    if target in _QUOTIENTS and isinstance(args[1], fx.Node) and not is_constant(args[1]):
        return False
    # These may turn the sign.
    maps = op.linear or target in _PRODUCTS or target in _QUOTIENTS
    return maps and finite and all(is_bounded(operand) for operand in slots_of(node, op, is_tensor).values())


def _is_bound(value: object) -> bool:
    return is_constant(value) if isinstance(value, fx.Node) and is_tensor(value) else _is_finite(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
