"""From a heatmap's channels to one value of each pixel, and the masks that belong to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, MaskError
from ..given import check_choice
from ..values import widened

__all__ = ["POOLS", "Pool", "foreground", "pooled"]

Pool = str | Callable[[Tensor], Tensor]
"""A name in `POOLS`, or a function of relevance (B, C, H, W) that returns (B, H, W)."""

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda r: r.sum(1),
    "positive": lambda r: r.clamp(min=0).sum(1),
    "abs": lambda r: r.abs().sum(1),
    "l2": lambda r: r.square().sum(1).sqrt(),
    "l2_squared": lambda r: r.square().sum(1),
    "max": lambda r: r.amax(1),
}
"""How the channels of a pixel become one value (Arras et al. 2022, CLEVR-XAI, name most of these)."""


def pooled(relevance: Tensor, pool: Pool = "sum") -> Tensor:
    """One value of each pixel.

    Parameters
    ----------
    relevance : Tensor
        Shape (B, C, H, W), or (B, H, W), which is read as one channel. Half precision is summed in single.
    pool : str or callable
        A name in `POOLS`, or a function of relevance (B, C, H, W) that returns (B, H, W).

    Returns
    -------
    Tensor
        Shape (B, H, W), with its derivative, if there is one.

    Raises
    ------
    InputError
        If this is no heatmap, or there is no such pooling.
    """
    if not isinstance(relevance, Tensor) or relevance.ndim not in (3, 4) or relevance.is_complex():
        shape = f" of shape {tuple(relevance.shape)}" if isinstance(relevance, Tensor) else ""
        raise InputError(
            f"a heatmap is a tensor (B, C, H, W) or (B, H, W), not a {type(relevance).__name__}{shape}: of an "
            "explanation, give its .relevance"
        )
    relevance = widened(relevance)
    if not relevance.is_floating_point():
        relevance = relevance.to(torch.get_default_dtype())
    channels = relevance if relevance.ndim == 4 else relevance.unsqueeze(1)
    if not callable(pool):
        check_choice("pool", pool, POOLS)
        return POOLS[pool](channels)
    found = pool(channels.clone())
    expected = (len(channels), *channels.shape[2:])
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the function given as pool returns a tensor of shape {expected} (B, H, W), not {what}")
    return found


def foreground(mask: Tensor, heat: Tensor) -> Tensor:
    """A mask as bool, (B, H, W), on the heatmap's device.

    Parameters
    ----------
    mask : Tensor
        Shape (B, H, W) or (B, 1, H, W): bool, or a number, of which what is above 0 is foreground.
    heat : Tensor
        The pooled heatmap, (B, H, W).

    Returns
    -------
    Tensor
        Shape (B, H, W).

    Raises
    ------
    MaskError
        If it is of another size, batch or rank.
    """
    if not isinstance(mask, Tensor):
        raise MaskError(f"a mask is a tensor (B, H, W), not a {type(mask).__name__}: try torch.from_numpy")
    single = mask.squeeze(1) if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if single.shape != heat.shape:
        batch, *size = heat.shape
        raise MaskError(
            f"masks of shape {tuple(mask.shape)} do not fit {batch} heatmaps of {size[0]} x {size[1]}: give one for "
            f"each image, ({batch}, {size[0]}, {size[1]}), or with a 1 in second place"
        )
    return (single > 0).to(heat.device)
