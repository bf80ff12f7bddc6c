"""The vocabulary: what is known of each op, a file for each family. Which rules they get is not its business."""

from __future__ import annotations

from ..signature import Target
from . import activation, affine, arithmetic, attention, linear, normalization, pooling, structure
from .derivative import NoDerivative, Pull, pull_back
from .op import Call, Op, Slot, slots_of

__all__ = ["Call", "NoDerivative", "Op", "Pull", "Slot", "add", "known", "lookup", "pull_back", "remove", "slots_of"]

_FAMILIES = (activation, affine, arithmetic, attention, linear, normalization, pooling, structure)
_OPS: dict[Target, Op] = {target: op for family in _FAMILIES for target, op in family.OPS.items()}


def lookup(target: Target) -> Op | None:
    """The entry for a call's target, None if it has none."""
    return _OPS.get(target)


def known() -> frozenset[Target]:
    """The targets that have an entry."""
    return frozenset(_OPS)


def add(target: Target, op: Op) -> None:
    """Have an entry for a target, in place of the one that it may have."""
    _OPS[target] = op


def remove(target: Target) -> None:
    """Forget the entry of a target."""
    _OPS.pop(target, None)
