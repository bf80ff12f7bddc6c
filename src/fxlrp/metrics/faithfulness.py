"""Faithfulness: whether a heatmap's sum over some pixels says what the output loses without these."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..relevance.seeds import Target
from .fills import Bounds, Fill, filling
from .patches import patch_sums, spread
from .pooling import Pool, pooled
from .scoring import Model, Score, Scorer, check_seed, check_sizes, image_batch
from .similarity import pearson

__all__ = ["faithfulness_correlation"]


@torch.no_grad()
def faithfulness_correlation(
    model: Model,
    x: Tensor,
    relevance: Tensor,
    target: Target = None,
    *,
    patch: int = 1,
    subset: int = 224,
    runs: int = 100,
    fill: Fill = "black",
    seed: int = 0,
    score: Score = "logit",
    bounds: Bounds = None,
    batch_size: int | None = 64,
    pool: Pool = "sum",
) -> Tensor:
    """The correlation of what random patches are said to be worth with what the score loses without them.

    Bhatt et al. 2020 (Evaluating and aggregating feature-based model explanations), used by Pahde et al. 2023: over
    random subsets S of a fixed size, Pearson's correlation of ``sum_{i in S} R_i`` with ``f(x) - f(x with S filled)``.
    The subsets are the same for each image.

    Parameters
    ----------
    model : callable
        A classifier in evaluation mode: returns its outputs (n, C), or what holds them as `.logits` or `.output`.
    x : Tensor
        The images, (B, C, H, W).
    relevance : Tensor
        Their heatmaps, (B, C, H, W) or (B, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image; None: that of its highest output.
    patch : int
        The side of a patch, in pixels: 1 for single pixels.
    subset : int
        How many patches are filled at once.
    runs : int
        How many subsets are drawn.
    fill : str or callable
        As of `fxlrp.metrics.pixel_flipping`.
    seed : int
        Of the subsets, and of a random fill.
    score : str or callable
        As of `fxlrp.metrics.pixel_flipping`.
    bounds : tuple or None
        As of `fxlrp.metrics.pixel_flipping`: "black" is the lower end.
    batch_size : int or None
        How many images go into one call of the model, at most; None: all.
    pool : str or callable
        How the heatmap's channels become one: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Tensor
        Shape (B,), double precision, in [-1, 1]; higher is better. NaN where the heatmap sums to the same over every
        subset, the score loses the same, or there is a NaN.

    Raises
    ------
    InputError
        If the images, heatmaps or options are not as above, an image has fewer patches than `subset`, or a layer is in
        training mode.
    TargetError
        If the target does not fit the output, or is no class.
    MissingExtraError
        If inpainting is asked for without OpenCV.
    """
    check_seed(seed)
    check_sizes(patch=patch, subset=subset, runs=runs)
    heat = pooled(relevance, pool)
    images = image_batch(x, heat)
    sums = patch_sums(heat.to(images.device), patch)
    _, rows, columns = sums.shape
    if subset > rows * columns:
        raise InputError(
            f"subset is {subset}, and images of {images.shape[2]} x {images.shape[3]} have {rows * columns} patches of "
            f"{patch} x {patch}: give subset={max(rows * columns // 4, 1)}, for example"
        )
    asked = Scorer(model, images, target, score, batch_size)
    filled = filling(images, fill, bounds, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(rows * columns, generator=generator)[:subset] for _ in range(runs)])
    drawn = drawn.to(images.device)
    chosen = torch.zeros(runs, rows * columns, dtype=torch.bool, device=images.device).scatter(1, drawn, True)
    places = spread(chosen.reshape(runs, rows, columns), patch, images.shape[2:])
    after = asked.of_filled(filled, lambda _, run: places[run], runs)
    worth = sums.flatten(1).double()[:, drawn].sum(2)
    return pearson(worth, asked.original[:, None].double() - after.double())
