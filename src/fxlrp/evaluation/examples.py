"""An image with its heatmaps, kept to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Example"]


@dataclass(frozen=True, eq=False)
class Example:
    """An image with its heatmaps.

    Attributes
    ----------
    image : int
        Its number.
    x : Tensor
        Shape (C, H, W).
    target : int
        The class that is explained.
    relevance : dict of str to Tensor
        Shape (C, H, W), by way.
    mask : Tensor or None
        Shape (H, W), of bool: where the object is.
    """

    image: int
    x: Tensor
    target: int
    relevance: Mapping[str, Tensor]
    mask: Tensor | None = None
