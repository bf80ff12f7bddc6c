"""Pixel flipping: how fast a score falls when what a heatmap calls relevant is taken away first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..relevance.seeds import Target
from .fills import Bounds, Fill, filling
from .patches import Steps, counts, numbers_of_pixels, patch_sums, ranking, spread
from .pooling import Pool, pooled
from .scoring import Model, Score, Scorer, check_seed, check_sizes, image_batch

__all__ = ["Curve", "pixel_flipping"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of images of which more and more is flipped.

    Attributes
    ----------
    flipped : Tensor
        How many patches are, at each of the S steps, in front of them 0 and at the end all: (S + 1,), int64.
    shares : Tensor
        The share of each image's pixels that are: (B, S + 1), from 0 to 1.
    scores : Tensor
        Shape (B, S + 1); NaN for an image whose heatmap holds NaN.
    """

    flipped: Tensor
    shares: Tensor
    scores: Tensor

    @property
    def auc(self) -> Tensor:
        """The area under the curve, by trapezoids, over the share of pixels: (B,) (Bermudez Schettino, section 2.3)."""
        return torch.trapezoid(self.scores, self.shares, dim=1)

    @property
    def aopc(self) -> Tensor:
        """The mean over the S + 1 points of how far the score has fallen: (B,) (Samek et al. 2017)."""
        return (self.scores[:, :1] - self.scores).mean(1)


@torch.no_grad()
def pixel_flipping(
    model: Model,
    x: Tensor,
    relevance: Tensor,
    target: Target = None,
    *,
    order: str = "morf",
    fill: Fill = "inpaint",
    patch: int = 8,
    steps: Steps = "log",
    score: Score = "logit",
    bounds: Bounds = None,
    seed: int = 0,
    batch_size: int | None = 64,
    pool: Pool = "sum",
) -> Curve:
    """Flip patches in the order of their relevance, and follow the score.

    Bach et al. 2015; patches, and the area over the curve: Samek et al. 2017 (Evaluating the visualization of what a
    deep neural network has learned); inpainting, logarithmic steps, the area under it: Bermudez Schettino
    (Hyperparameter selection for LRP, sections 2.2 and 3). At each step, all patches flipped so far are filled anew
    from the original image. Images do not depend on one another: what is random is drawn from `seed` for each alike.

    Parameters
    ----------
    model : callable
        A classifier in evaluation mode: returns its outputs (n, C), or what holds them as `.logits` or `.output`.
    x : Tensor
        The images, (B, C, H, W).
    relevance : Tensor
        Their heatmaps, (B, C, H, W) or (B, H, W).
    target : int, sequence of int, array, Tensor or None
        The class of each image; None: that of its highest output, before anything is flipped.
    order : {"morf", "lerf", "random"}
        Most relevant first, least relevant first, or at random; equal patches come at random.
    fill : str or callable
        What stands where a patch was. "inpaint" (Telea 2004; at the last step, where nothing is left, grey), "random"
        (uniform within `bounds`), "mean" (the image's colour), "black", "grey" (lower end and middle of `bounds`),
        "blur" (a Gaussian of 10/224 of the longer side), or ``(x, mask, generator) -> x`` of one image (1, C, H, W), a
        bool mask (1, 1, H, W) and a generator on the CPU.
    patch : int
        The side of a patch, in pixels; the last ones are smaller where the size is no multiple. A patch's score is the
        sum of the pooled map.
    steps : str, int or sequence of int
        "log": 1, 2, 4, ... patches for "morf", these mirrored for "lerf", as many even ones for "random". An int: that
        many even steps (each patch by itself if there are fewer). A sequence: these counts.
    score : str or callable
        "logit" (the output of the class), "probability" (by softmax), or a function of outputs (n, C), returning (n,).
    bounds : tuple or None
        Black and white of the input, numbers or one for each channel. None: each image's least and largest value.
    seed : int
        Of everything random.
    batch_size : int or None
        How many images go into one call of the model, at most; None: all.
    pool : str or callable
        How the heatmap's channels become one: see `fxlrp.metrics.POOLS`.

    Returns
    -------
    Curve
        With `flipped`, `scores`, `auc` and `aopc`. Of "morf", a lower auc and a higher aopc are better; of "lerf" the
        other way around. Neither has bounds, where the score has none.

    Raises
    ------
    InputError
        If the images, heatmaps or options are not as above, or a layer is in training mode.
    TargetError
        If the target does not fit the output, or is no class.
    MissingExtraError
        If inpainting is asked for without OpenCV.

    Examples
    --------
    A linear model and its own contributions: what is flipped to zero takes just its own away.

    >>> import torch
    >>> from fxlrp import metrics
    >>> x = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]]])
    >>> model = lambda images: images.flatten(1).sum(1, keepdim=True)
    >>> curve = metrics.pixel_flipping(model, x, x, fill="black", bounds=(0.0, 9.0), patch=1, steps=4)
    >>> curve.flipped, curve.scores, curve.auc
    (tensor([0, 1, 2, 3, 4]), tensor([[10.,  6.,  3.,  1.,  0.]]), tensor([3.7500]))
    """
    check_seed(seed)
    check_sizes(patch=patch)
    heat = pooled(relevance, pool)
    images = image_batch(x, heat)
    sums = patch_sums(heat.to(images.device), patch)
    ranks = ranking(sums.flatten(1), order, seed)
    flipped = counts(steps, ranks.shape[1], order)
    asked = Scorer(model, images, target, score, batch_size)
    filled = filling(images, fill, bounds, seed)
    places = spread(ranks.reshape(sums.shape), patch, images.shape[2:])
    number = torch.tensor(flipped, device=images.device)
    masks = lambda i, step: places[i] < number[1:][step].reshape(-1, 1, 1, 1)
    scores = torch.cat([asked.original[:, None], asked.of_filled(filled, masks, len(flipped) - 1)], 1)
    if order != "random":
        scores = scores.masked_fill(sums.flatten(1).isnan().any(1, keepdim=True), torch.nan)
    return Curve(number, _shares(ranks, flipped, patch, images.shape[2:]).to(scores), scores)


def _shares(ranks: Tensor, flipped: list[int], patch: int, size: tuple[int, ...]) -> Tensor:
    """The share of each image's pixels that lie in its first so many patches, (B, S + 1)."""
    pixels = numbers_of_pixels(size, patch).flatten().to(ranks.device)
    summed = torch.nn.functional.pad(pixels[ranks.argsort(1)].cumsum(1), (1, 0))
    return summed[:, flipped] / pixels.sum()
