"""zennit's stabilizer in fewer passes over memory, put in its place where a rule's functions hold one."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from zennit.core import Stabilizer

from .branch import Mapper, Modifier

__all__ = ["has_stabilizer", "is_plain", "quickened", "stabilized", "with_stabilizers"]


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """``z + epsilon sign(z)``, with sign(0) = 1: zennit's numbers in a quarter of its time.

    A zero with a sign takes this sign. There is none but as a sum of nothing else, that no relevance is shared by.
    """
    sign = torch.copysign(torch.full((), epsilon, dtype=z.dtype, device=z.device), z.detach())
    return sign.add_(z)


def quickened(function: Mapper) -> Mapper:
    """The same function, its plain stabilizers replaced by quick ones."""
    return with_stabilizers(function, lambda s: partial(stabilized, epsilon=s.epsilon) if is_plain(s) else s)


def is_plain(stabilizer: Stabilizer) -> bool:
    """Whether a stabilizer is ``z + epsilon sign(z)``: one of a class of its own, which clips or scales, is not."""
    return (
        type(stabilizer) is Stabilizer
        and not (stabilizer.clip or stabilizer.norm_scale)
        and not isinstance(stabilizer.epsilon, Tensor)
    )


def with_stabilizers(function: Mapper, replacement: Callable[[Stabilizer], Modifier]) -> Mapper:
    """The same function with other stabilizers.

    Parameters
    ----------
    function : callable
        A rule's gradient mapper. Its stabilizers are looked for in its closure.
    replacement : callable
        Gives, for a stabilizer, what takes its place.
    """
    if not has_stabilizer(function):
        return function
    assert isinstance(function, types.FunctionType)
    cells = tuple(
        types.CellType(replacement(cell.cell_contents)) if isinstance(cell.cell_contents, Stabilizer) else cell
        for cell in function.__closure__ or ()
    )
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)


def has_stabilizer(function: Mapper) -> bool:
    """Whether a function has a stabilizer, zennit's or one made of it, in its closure."""
    cells = function.__closure__ or () if isinstance(function, types.FunctionType) else ()
    return any(isinstance(cell.cell_contents, Stabilizer) for cell in cells)
