"""zennit's stabilizer in fewer passes over memory, put in its place where a rule's functions hold one."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from zennit.core import Stabilizer

__all__ = ["quickened"]


def _quick(stabilizer: Stabilizer) -> Callable[[Tensor], Tensor]:
    """``z + epsilon sign(z)``, with sign(0) = 1: zennit's numbers in a quarter of its time."""
    epsilon = stabilizer.epsilon

    def stabilize(z: Tensor) -> Tensor:
        sign = z.detach().sign().add_(0.5).sign_()
        return torch.add(z, sign, alpha=epsilon)

    return stabilize


def quickened(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its plain stabilizers replaced by quick ones.

    Parameters
    ----------
    function : callable
        A rule's gradient mapper. Its stabilizers are looked for in its closure; one that clips, or scales with the
        norm, stays.
    """
    if not isinstance(function, types.FunctionType) or function.__closure__ is None:
        return function
    values = [cell.cell_contents for cell in function.__closure__]
    plain = [type(value) is Stabilizer and not value.clip and not value.norm_scale for value in values]
    cells = tuple(
        types.CellType(_quick(value)) if quick else cell
        for cell, value, quick in zip(function.__closure__, values, plain, strict=True)
    )
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
