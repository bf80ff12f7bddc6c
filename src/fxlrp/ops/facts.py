"""What can be known of an op's value before it runs, from the arguments of its call."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import is_constant
from ..reading import argument, unwrap
from ..vocabulary import Op, lookup, slots_of

__all__ = ["is_bounded", "is_number", "keeps_sign"]

aten = torch.ops.aten


def is_number(value: Any, *, at_least: float) -> bool:
    """Whether an argument is known to be a number, and not below `at_least`: one that the graph computes is not."""
    return isinstance(value, int | float) and value >= at_least


def keeps_sign(*names: str) -> Callable[[fx.Node, bool], bool]:
    """Of an op whose value is non-negative if its inputs are, and the numbers that it takes under these names.

    Of a number that is None the op makes nothing; of an operand that is a tensor, `inputs` speaks.
    """

    def non_negative(node: fx.Node, inputs: bool) -> bool:
        numbers = (argument(node, name) for name in names)
        return inputs and all(
            number is None or is_number(number, at_least=0) or _is_tensor(number) for number in numbers
        )

    return non_negative


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor)


_BETWEEN_CONSTANTS = (
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.softmax.int,
    aten._softmax.default,
    aten.relu6.default,
)
_BOUNDS: dict[Any, tuple[str | None, str | None]] = {
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
    inputs = (_is_bounded(operand, side) for operand in slots_of(node, op, _is_tensor).values())
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
    return maps and finite and all(is_bounded(operand) for operand in slots_of(node, op, _is_tensor).values())


def _is_bound(value: Any) -> bool:
    return is_constant(value) if _is_tensor(value) else _is_finite(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
