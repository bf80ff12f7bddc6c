"""A value as ``scale * base + shift``, its base free of affine maps; and how scales and shifts are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .sample import NONE

__all__ = ["Scaled", "chain", "join", "signs", "thresholds", "whole"]


@dataclass(frozen=True)
class Scaled:
    """A value v of one sample as ``scales[index] * base + shift``, where `base` is free of affine maps.

    Attributes
    ----------
    base : fx.Node
        A value of v's shape.
    scales : fx.Node
        Shape (N,).
    index : Tensor
        Of v's shape for one sample: the number of each element's scale, -1 where `base` is zero.
    shift : fx.Node
        Of a shape that broadcasts to v's for one sample.
    probe : Tensor
        What `shift` is for random parameters: it is constant where `shift` is, whatever the parameters.
    maps : tuple of str
        The module paths of the affine maps.
    constant : bool
        Whether the maps may be computed anew: they depend on parameters alone, and not on a batch's statistics,
        and are of one precision.
    thresholded : bool
        Whether a ReLU lies between.
    """

    base: fx.Node
    scales: fx.Node
    index: Tensor
    shift: fx.Node
    probe: Tensor
    maps: tuple[str, ...]
    constant: bool
    thresholded: bool

    def channels(self, dim: int) -> Tensor | None:
        """The number of the scale of each channel along `dim`; None if a channel's elements have several."""
        rows = self.index.movedim(dim, -1).flatten(0, -2)
        largest = rows.amax(0)
        return largest if bool(((rows == largest) | (rows == NONE)).all()) else None


def whole(shift: Tensor, shape: Sequence[int]) -> Tensor:
    """A shift, spelled out for every element."""
    return shift.expand(shape).contiguous()


def join(*scales: Tensor) -> Tensor:
    """Several vectors of scales as one, with 1 as the last: the scale of a value that no affine map made."""
    return torch.cat([*scales, scales[0].new_ones(1)])


def chain(
    scale: Tensor, shift: Tensor, own: Tensor, scales: Tensor, before: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales and shift of an affine map behind another one.

    Parameters
    ----------
    scale, shift : Tensor
        The map's, as `moved` broadcasts with.
    own : Tensor
        Shape (N,): of each new scale, the number of the map's own.
    scales : Tensor
        Scales in front of the map.
    before : Tensor
        Shape (N,): of each new scale, the number of the one among `scales`.
    moved : Tensor
        Shift in front of the map.
    """
    return scale.reshape(-1)[own] * scales[before], scale * moved + shift


def signs(scale: Tensor) -> Tensor:
    """1 where a scale is not negative, else -1."""
    return torch.where(scale < 0, -1.0, 1.0).to(scale)


def thresholds(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of `thresholded_relu` for ``relu(scale * x + shift)``, and the shift that is left behind it.

    ``relu(scale * x + shift) = scale * clamp(x, low, high) + shift'``: where the scale is positive, ``low`` is the
    map's zero ``-shift / scale``; where it is negative, ``high`` is. Where it is zero (or so small that it changes
    nothing) the value is ``relu(shift)``, and nothing is clipped.
    """
    tiny = torch.finfo(scale.dtype).eps ** 2
    none = scale.abs() <= tiny * shift.abs()
    zero = -shift / torch.where(none, torch.ones_like(scale), scale)
    low = torch.where(~none & (scale > 0), zero, -torch.inf)
    high = torch.where(~none & (scale < 0), zero, torch.inf)
    return low, high, torch.where(none, shift.relu(), shift)
