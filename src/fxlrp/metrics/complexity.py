"""Complexity: on how few pixels a heatmap lies."""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import Pool, pooled

__all__ = ["sparseness"]


def sparseness(relevance: Tensor, *, pool: Pool = "sum") -> Tensor:
    """The Gini index of the pooled map's absolute values.

    Chalasani et al. 2020 (Concise explanations of neural networks using adversarial training), used by Pahde et al.
    2023: ``sum_i (2 i - n - 1) v_i / (n sum_i v_i)`` over the n pixels' values in ascending order, i from 1.

    Parameters
    ----------
    relevance : Tensor
        Shape (B, C, H, W) or (B, H, W).
    pool : str or callable
        How the channels become one, before the absolute value is taken: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Tensor
        Shape (B,), from 0 (the same everywhere) to 1 - 1/n (all on one pixel); higher is better. NaN where the map is
        zero everywhere, or holds NaN.

    Raises
    ------
    InputError
        If `relevance` is no heatmap, or there is no such pooling.

    Examples
    --------
    >>> import torch
    >>> from fxlrp import metrics
    >>> metrics.sparseness(torch.tensor([[[0.0, 0.0], [0.0, 5.0]], [[1.0, -1.0], [1.0, 1.0]]]))
    tensor([0.7500, 0.0000])
    """
    values = pooled(relevance, pool).flatten(1).abs().sort(1).values
    number = values.shape[1]
    weights = torch.arange(1 - number, number, 2, dtype=values.dtype, device=values.device)
    total = values.sum(1)
    return ((weights * values).sum(1) / (number * total)).masked_fill(total == 0, torch.nan)
