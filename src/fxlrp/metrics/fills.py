"""Fills: what stands in an image's place where it is flipped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..errors import InputError
from ..given import check_choice
from .inpainting import inpainted, opencv

__all__ = ["BACKDROPS", "FILLS", "Bounds", "Fill", "Filled", "filling"]

Fill = str | Callable[[Tensor, Tensor, Generator], Tensor]
"""A name in `FILLS`, or ``(x, mask, generator) -> x``: of an image (1, C, H, W), a mask (1, 1, H, W), bool."""

Bounds = tuple[float | Tensor, float | Tensor] | None
"""Black and white of the input: two numbers, or a number for each channel; None: each image's own least and largest."""

Filled = Callable[[int, Tensor, Tensor], Tensor]
"""Of an image's index, masks (n, 1, H, W) and an empty (n, C, H, W): the image under each mask, written to the last."""

BLUR = 10 / 224
"""The deviation of the Gaussian, in units of the longer side (Fong and Vedaldi 2017)."""


def _mean(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _black(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return low


def _grey(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (low + high) / 2


def _blur(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Each pixel the mean of those around it, weighted by a Gaussian; beyond the border there is nothing."""
    rows, columns = (_gaussian(side, BLUR * max(x.shape[2:]), x) for side in x.shape[2:])
    return rows @ x @ columns.T


def _gaussian(side: int, deviation: float, like: Tensor) -> Tensor:
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * deviation**2))
    return weights / weights.sum(1, keepdim=True)


BACKDROPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "black": _black,
    "grey": _grey,
    "blur": _blur,
}
"""Fills that are the same at every step: of images and their bounds, what stands behind them."""

FILLS = ("inpaint", "random", *BACKDROPS)
"""The fills that have a name."""


def filling(x: Tensor, fill: Fill, bounds: Bounds, seed: int) -> Filled:
    """What fills these images, always from the original.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, H, W).
    fill : str or callable
        "inpaint": by `fxlrp.metrics.inpainting.inpainted`. "random": uniform within `bounds`, each channel of each
        pixel by itself, anew at each step. "mean": the image's mean colour. "black", "grey": the lower end of `bounds`,
        their middle. "blur": the image, blurred. Or a function.
    bounds : tuple or None
        Black and white of the input. None: each image's least and largest value.
    seed : int
        Of each image's own generator: an image is filled alike wherever it stands in a batch.

    Returns
    -------
    callable
        Of an image's index, masks (n, 1, H, W) and an empty (n, C, H, W): fills the last. Called in the order of steps.

    Raises
    ------
    InputError
        If there is no such fill, or `bounds` are none.
    MissingExtraError
        If OpenCV is needed and not installed.
    """
    low, high = _bounds(x, bounds)
    if not callable(fill):
        check_choice("fill", fill, FILLS)
        if fill in BACKDROPS:
            backdrop = BACKDROPS[fill](x, low, high).expand_as(x)
            return lambda i, masks, out: torch.where(masks, backdrop[i], x[i], out=out)
        if fill == "inpaint":
            opencv()
            return lambda i, masks, out: out.copy_(inpainted(x[i], masks, low[i], high[i]))
    generators = [Generator().manual_seed(seed) for _ in x]

    def one_by_one(i: int, masks: Tensor, out: Tensor) -> Tensor:
        for mask, place in zip(masks.split(1), out.split(1), strict=True):
            if callable(fill):
                place.copy_(_checked(fill(x[i, None].clone(), mask, generators[i]), x[i, None]))
            else:
                noise = torch.rand(x.shape[1:], generator=generators[i], dtype=x.dtype).to(x.device)
                torch.where(mask, low[i] + (high[i] - low[i]) * noise, x[i], out=place)
        return out

    return one_by_one


def _bounds(x: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Black and white of each image, shape (B, 1 or C, 1, 1)."""
    if bounds is None:
        return x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise InputError(f"bounds is a pair, black and white of the input, or None, not {bounds!r}")
    low, high = (torch.as_tensor(bound).to(x).reshape(1, -1, 1, 1).expand(len(x), -1, 1, 1) for bound in bounds)
    if low.shape[1] not in (1, x.shape[1]) or high.shape[1] not in (1, x.shape[1]) or not bool((low <= high).all()):
        raise InputError(
            f"bounds is {bounds!r}: give black and white of the input, numbers or one for each of its {x.shape[1]} "
            "channels, black not above white"
        )
    return low, high


def _checked(found: object, image: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != image.shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the function given as fill returns an image of shape {tuple(image.shape)}, not {what}")
    return found.to(image)
