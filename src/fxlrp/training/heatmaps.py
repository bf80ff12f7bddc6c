"""The heatmaps of a training: how much of them lies in the background, and a picture of a few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..plot import Panel, figure, write
from ..zoo import LoadedModel
from .data import MaskedImages, Sample

__all__ = ["background_share", "draw", "shown"]

PICTURES = 6

Explained = tuple[Tensor, Tensor]
"""Of one sample, the classes' probabilities (C,) and the relevance (3, h, w)."""


def background_share(relevance: Tensor, masks: Tensor) -> Tensor:
    """How much of an image's absolute relevance lies outside of its mask.

    Parameters
    ----------
    relevance : Tensor
        (B, C, h, w).
    masks : Tensor
        (B, h, w), bool.

    Returns
    -------
    Tensor
        (B,), in [0, 1]; 0 where there is no relevance.
    """
    size = relevance.abs().sum(1)
    total = size.sum((1, 2))
    return (size * ~masks).sum((1, 2)) / torch.where(total > 0, total, 1.0)


def shown(samples: Sequence[Sample]) -> list[Sample]:
    """A few samples, of all classes in turn, with a mask if there are any."""
    samples = [sample for sample in samples if sample.mask is not None] or list(samples)
    labels = [sample.label for sample in samples]
    in_turn = sorted(range(len(samples)), key=lambda i: labels[:i].count(labels[i]))
    return [samples[i] for i in in_turn[:PICTURES]]


def draw(
    path: Path,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    before: Sequence[Explained],
    after: Sequence[Explained],
) -> None:
    """Images, and their heatmaps before and after, one below the other, with the outlines of the masks."""
    size = after[0][1].shape[-1]
    data = MaskedImages(samples, size, loaded.mean, loaded.std)
    photos = [loaded.photo(data[i][0])[0] for i in range(len(data))]
    masks = [data[i][2] for i in range(len(data))]

    def panels(found: Sequence[Explained]) -> list[Panel]:
        made = []
        for sample, photo, mask, (chances, relevance) in zip(samples, photos, masks, found, strict=True):
            title = f"“{loaded.classes[sample.label]}” at {chances[sample.label]:.0%}"
            if mask.any():
                title += f"\n{background_share(relevance[None], mask[None]).item():.0%} in the background"
            made.append(Panel(title, photo, relevance))
        return made

    first = [Panel(loaded.classes[sample.label], photo) for sample, photo in zip(samples, photos, strict=True)]
    drawing = figure([first, panels(before), panels(after)], names=["image", "before", "after"])
    for axes, mask in zip(drawing.axes, masks * 3, strict=False):
        if mask.any() and not mask.all():
            axes.contour(mask.float().numpy(), levels=[0.5], colors="#1b9e77", linewidths=1.2)
    write(drawing, path)
