"""Localization: how much of a heatmap lies on the object."""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import Pool, foreground, pooled

__all__ = ["inside_total_ratio", "relevance_mass_accuracy", "relevance_rank_accuracy"]


def inside_total_ratio(relevance: Tensor, mask: Tensor, *, weighted: bool = False, pool: Pool = "sum") -> Tensor:
    """The share of the positive relevance that lies inside the mask: mu, or mu_w.

    ``mu = R_in / R_tot`` and ``mu_w = mu S_tot / S_in`` (eq. 5 of Kohlbrenner et al. 2020, Towards best practice in
    explaining neural network decisions with LRP): R_in and R_tot sum the positive part of the pooled map, inside the
    mask and everywhere; S_in and S_tot count pixels.

    Parameters
    ----------
    relevance : Tensor
        Shape (B, C, H, W) or (B, H, W).
    mask : Tensor
        Shape (B, H, W) or (B, 1, H, W): foreground is what is above 0.
    weighted : bool
        Whether to return mu_w. A map that is the same everywhere has mu_w = 1, whatever the object's size.
    pool : str or callable
        How the channels become one: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Tensor
        Shape (B,): mu in [0, 1], mu_w in [0, S_tot / S_in]; higher is better. NaN where the mask is empty, the map has
        nothing positive, or holds NaN.

    Raises
    ------
    InputError
        If `relevance` is no heatmap, or there is no such pooling.
    MaskError
        If the mask is of another size.

    Examples
    --------
    >>> import torch
    >>> from fxlrp import metrics
    >>> heat = torch.tensor([[[3.0, 1.0], [-2.0, 0.0]]])
    >>> mask = torch.tensor([[[1, 0], [0, 0]]])
    >>> metrics.inside_total_ratio(heat, mask), metrics.inside_total_ratio(heat, mask, weighted=True)
    (tensor([0.7500]), tensor([3.]))
    """
    heat = pooled(relevance, pool)
    inside = foreground(mask, heat)
    mu = _share_inside(heat.clamp(min=0), inside)
    return mu * inside[0].numel() / inside.flatten(1).sum(1) if weighted else mu


def relevance_mass_accuracy(relevance: Tensor, mask: Tensor, *, pool: Pool = "positive") -> Tensor:
    """The share of the pooled map that lies inside the mask: RMA.

    Arras et al. 2022 (CLEVR-XAI), used by Pahde et al. 2023 (Optimizing explanations by network canonization and
    hyperparameter search). Under "sum", where relevance of both signs is summed, it has no bounds.

    Parameters
    ----------
    relevance : Tensor
        Shape (B, C, H, W) or (B, H, W).
    mask : Tensor
        Shape (B, H, W) or (B, 1, H, W): foreground is what is above 0.
    pool : str or callable
        How the channels become one: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Tensor
        Shape (B,), in [0, 1] under a pooling that is not negative; higher is better. NaN where the mask is empty, the
        map sums to zero, or holds NaN.

    Raises
    ------
    InputError
        If `relevance` is no heatmap, or there is no such pooling.
    MaskError
        If the mask is of another size.
    """
    heat = pooled(relevance, pool)
    return _share_inside(heat, foreground(mask, heat))


def relevance_rank_accuracy(relevance: Tensor, mask: Tensor, *, pool: Pool = "positive") -> Tensor:
    """Of as many most relevant pixels as the mask has, the share that lies inside it: RRA.

    Arras et al. 2022 (CLEVR-XAI), used by Pahde et al. 2023. Of pixels that are equal, of which some only are among
    the most relevant, each counts with the same share: a map that is the same everywhere scores S_in / S_tot.

    Parameters
    ----------
    relevance : Tensor
        Shape (B, C, H, W) or (B, H, W).
    mask : Tensor
        Shape (B, H, W) or (B, 1, H, W): foreground is what is above 0.
    pool : str or callable
        How the channels become one: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Tensor
        Shape (B,), in [0, 1]; higher is better. NaN where the mask is empty, or the map holds NaN.

    Raises
    ------
    InputError
        If `relevance` is no heatmap, or there is no such pooling.
    MaskError
        If the mask is of another size.
    """
    heat = pooled(relevance, pool)
    inside, heat = foreground(mask, heat).flatten(1), heat.flatten(1)
    number = inside.sum(1, keepdim=True)
    lowest = heat.sort(1, descending=True).values.gather(1, (number - 1).clamp(min=0))
    above, tied = heat > lowest, heat == lowest
    of_the_tied = (number - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).to(heat.dtype)
    hits = (inside & above).sum(1) + (inside & tied).sum(1) * of_the_tied.squeeze(1)
    found = hits / number.squeeze(1)
    return found.masked_fill((number.squeeze(1) == 0) | heat.isnan().any(1), torch.nan)


def _share_inside(heat: Tensor, inside: Tensor) -> Tensor:
    """The sum inside over that of the whole; NaN where there is nothing to divide by, or no inside."""
    total = heat.flatten(1).sum(1)
    # By zero, the derivative would be NaN, and with it that of all images together.
    share = heat.masked_fill(~inside, 0).flatten(1).sum(1) / total.masked_fill(total == 0, 1)
    return share.masked_fill((total == 0) | ~inside.flatten(1).any(1), torch.nan)
