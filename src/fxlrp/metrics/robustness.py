"""Robustness: how far a heatmap moves when its image moves a little."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..given import check_choice
from ..relevance.seeds import Target
from .explaining import Explain, explained, fixed
from .scoring import check_seed, check_sizes, image_batch

__all__ = ["REDUCTIONS", "sensitivity"]

REDUCTIONS = ("max", "mean", "none")


def sensitivity(
    explain: Explain,
    x: Tensor,
    target: Target,
    *,
    radius: float = 0.2,
    runs: int = 10,
    seed: int = 0,
    reduce: str = "max",
    batch_size: int | None = 64,
) -> Tensor:
    """How far the heatmap of the same class moves within a neighbourhood of the image, relative to its own size.

    Yeh et al. 2019 (On the (in)fidelity and sensitivity of explanations: SENS_max), used by Pahde et al.
    2023: the largest (or mean) ``||R(x + d) - R(x)|| / ||R(x)||``, in the Euclidean norm over all elements, of `runs`
    draws of d, uniform in [-radius, radius] in each element; the same for every image.

    Parameters
    ----------
    explain : callable
        A twin, or ``(x, target) -> relevance``, of images (n, C, H, W) and an int or ints (n,).
    x : Tensor
        The images, (B, C, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image. None: that of the highest output for `x` itself, of a twin.
    radius : float
        In units of x.
    runs : int
        How many neighbours are explained.
    seed : int
        Of these.
    reduce : {"max", "mean", "none"}
        What to return of all runs: the largest (SENS_max), the mean (average sensitivity), or each.
    batch_size : int or None
        How many images go into one call, at most; None: all.

    Returns
    -------
    Tensor
        Shape (B,), at least 0; lower is better. With "none", (B, runs). NaN where the heatmap is zero everywhere, or
        there is a NaN.

    Raises
    ------
    InputError
        If the images or options are not as above, or `explain` returns no heatmaps.
    TargetError
        If there is no class for each image.
    """
    check_seed(seed)
    check_sizes(runs=runs)
    check_choice("reduce", reduce, REDUCTIONS)
    if not isinstance(radius, int | float) or not radius > 0:
        raise InputError(f"radius is a number above 0, not {radius!r}")
    images = image_batch(x)
    first = explained(explain, images, target, batch_size)
    target = fixed(target, first)
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for _ in range(runs):
        noise = torch.rand(images.shape[1:], generator=generator, dtype=images.dtype)
        near = images + ((2 * noise - 1) * radius).to(images.device)
        moved.append(_norm(explained(explain, near, target, batch_size).relevance - first.relevance))
    size = _norm(first.relevance)[:, None]
    found = (torch.stack(moved, 1) / size).masked_fill(size == 0, torch.nan)
    return found if reduce == "none" else found.amax(1) if reduce == "max" else found.mean(1)


def _norm(relevance: Tensor) -> Tensor:
    return relevance.double().flatten(1).norm(dim=1)
