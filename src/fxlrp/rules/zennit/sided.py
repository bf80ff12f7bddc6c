"""Functions that are linear on either side of zero, as the modifiers of most rules are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import probe
from .memory import remembered

__all__ = ["ALL", "NONE", "Sided", "sided"]


class Sided(NamedTuple):
    """``positive * max(v, 0) + negative * min(v, 0)``.

    Attributes
    ----------
    positive, negative : float
        The slopes on either side.
    """

    positive: float
    negative: float

    def of(self, value: Tensor) -> Tensor:
        """The function at each element of a tensor; at zero, where it has a corner, with a derivative of zero."""
        positive, negative = self
        if positive == negative:
            return value if positive == 1 else value * positive
        if self == (1, 0):
            return value.relu()
        if self == (1, -1):
            return value.abs()
        below = nn.functional.hardtanh(value, -math.inf, 0.0)
        if self == (0, 1):
            return below
        return value.relu() * positive + below * negative


ALL, NONE = Sided(1.0, 1.0), Sided(0.0, 0.0)


@remembered
def sided(function: Callable[[Tensor], Tensor], shape: Sequence[int], *, non_negative: bool = False) -> Sided | None:
    """What a function is in this form, found out by trying it on numbers; None if it is not of it.

    Parameters
    ----------
    function : callable
        Of a tensor, which it maps to one of the same shape.
    shape : sequence of int
        Of the tensors to try.
    non_negative : bool
        Whether it is only ever given non-negative numbers: then both slopes are the one on this side.
    """
    ones = torch.ones(tuple(shape), dtype=torch.float64)
    try:
        positive = float(function(ones.clone()).flatten()[0])
        negative = positive if non_negative else -float(function(-ones).flatten()[0])
        found = Sided(positive, negative)
        for x in probe.inputs(shape, non_negative):
            value, expected = function(x.clone()), found.of(x)
            if value.shape != x.shape or not torch.allclose(value, expected, rtol=1e-12, atol=0.0):
                return None
    # What refuses these numbers is not known.
    except Exception:
        return None
    return found
