"""Where in a picture relevance lies, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plot import heatmap

__all__ = ["Spread", "spread"]


@dataclass(frozen=True)
class Spread:
    """Where relevance lies.

    Attributes
    ----------
    positive : float
        In [0, 1]: the share of positive relevance in all relevance (by absolute value).
    pixels : float
        In [0, 1]: the smallest share of the pixels that together hold half of the positive relevance.
    place : str
        The ninth of the picture with most of the positive relevance, in words.
    share : float
        In [0, 1]: how much of it that ninth holds (one ninth, if it were spread evenly).
    """

    positive: float
    pixels: float
    place: str
    share: float


def spread(relevance: Tensor) -> Spread:
    """Where the relevance of one image lies, from (C, H, W)."""
    heat = heatmap(relevance.double())
    positive = heat.clamp(min=0)
    least = torch.finfo(heat.dtype).tiny
    total = positive.sum().clamp(min=least)
    held = positive.flatten().sort(descending=True).values.cumsum(0) / total
    ninths = torch.nn.functional.adaptive_avg_pool2d(positive[None], 3).flatten()
    best = int(ninths.argmax())
    row, column = ("top", "middle", "bottom")[best // 3], ("left", "centre", "right")[best % 3]
    return Spread(
        positive=float(positive.sum() / heat.abs().sum().clamp(min=least)),
        pixels=(int((held < 0.5).sum()) + 1) / heat.numel(),
        place=f"{row} {column}",
        share=float(ninths[best] / ninths.sum().clamp(min=least)),
    )
