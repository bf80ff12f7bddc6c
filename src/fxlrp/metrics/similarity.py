"""How alike two heatmaps are: rank correlation, linear correlation, structural similarity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..given import check_choice

__all__ = ["SIMILARITIES", "Similarity", "pearson", "similarity_of", "spearman", "ssim"]

Similarity = str | Callable[[Tensor, Tensor], Tensor]
"""A name in `SIMILARITIES`, or a function of two pooled maps (B, H, W) that returns (B,)."""

WINDOW = 7
"""The side of the window of structural similarity."""


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The linear correlation of two batches of values.

    Parameters
    ----------
    a, b : Tensor
        Shape (B, ...), the same.

    Returns
    -------
    Tensor
        Shape (B,), in [-1, 1]; NaN where one of the two is the same everywhere.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    # By a comparison: of equal values, the mean may be another number by rounding.
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    found = (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())
    return found.masked_fill(constant, torch.nan)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The linear correlation of the ranks of two batches of values; equal values have the mean of their ranks.

    Parameters
    ----------
    a, b : Tensor
        Shape (B, ...), the same.

    Returns
    -------
    Tensor
        Shape (B,), in [-1, 1]; NaN where one of the two is the same everywhere, or holds NaN.
    """
    found = pearson(_ranks(a), _ranks(b))
    return found.masked_fill((a.isnan() | b.isnan()).flatten(1).any(1), torch.nan)


def _ranks(values: Tensor) -> Tensor:
    values = values.flatten(1).contiguous()
    ordered = values.sort(1).values
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)).double() / 2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity of two batches of maps, each in units of its own largest absolute value.

    Wang et al. 2004, with a uniform window of 7 x 7 (or the largest odd one that fits), the sample covariance, and the
    range from the least to the largest value of the two as L: as scikit-image has it, and with it those who compare
    heatmaps by it.

    Parameters
    ----------
    a, b : Tensor
        Shape (B, H, W), the same.

    Returns
    -------
    Tensor
        Shape (B,), in [-1, 1]; NaN where one of the two is zero everywhere or not finite, or both are the same number
        everywhere.
    """
    a, b = (_by_largest(each.double()) for each in (a, b))
    both = torch.cat([a, b], 1).flatten(1)
    extent = (both.amax(1) - both.amin(1)).reshape(-1, 1, 1)
    side = min(WINDOW, *a.shape[1:])
    side -= 1 - side % 2
    mean = lambda values: torch.nn.functional.avg_pool2d(values, side, 1)
    sample = side**2 / max(side**2 - 1, 1)
    mean_a, mean_b = mean(a), mean(b)
    of_a, of_b, of_both = (sample * (mean(u * v) - mean(u) * mean(v)) for u, v in ((a, a), (b, b), (a, b)))
    c1, c2 = (0.01 * extent).square(), (0.03 * extent).square()
    above = (2 * mean_a * mean_b + c1) * (2 * of_both + c2)
    below = (mean_a.square() + mean_b.square() + c1) * (of_a + of_b + c2)
    return (above / below).mean((1, 2)).masked_fill(extent.flatten() == 0, torch.nan)


def _by_largest(values: Tensor) -> Tensor:
    return values / values.abs().amax((1, 2), keepdim=True)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"pearson": pearson, "spearman": spearman, "ssim": ssim}
"""Of two pooled maps (B, H, W), how alike they are, (B,)."""


def similarity_of(similarity: Similarity) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that a similarity names, or is.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if callable(similarity):
        return similarity
    check_choice("similarity", similarity, SIMILARITIES)
    return SIMILARITIES[similarity]
