"""What a training says of itself: lines, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import zoo
from ..plot import Panel, figure, write
from .data import Folder, MaskedImages, Sample

__all__ = [
    "COLUMNS",
    "HEADER",
    "LOSSES",
    "background_share",
    "described",
    "draw",
    "line",
    "shown",
    "summary",
    "table",
]

LOSSES = ("total", "classification", "heatmap", "background", "foreground")
COLUMNS = ("epoch", "seconds", *LOSSES, "accuracy", "validation_accuracy", "validation_background")
"""Of the log."""

PICTURES = 6

HEADER = "epoch  seconds  total  classification  heatmap  accuracy  validation  background"


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
    loaded: zoo.LoadedModel,
    samples: Sequence[Sample],
    before: Sequence[tuple[Tensor, Tensor]],
    after: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Images, and their heatmaps before and after, one below the other, with the outlines of the masks."""
    size = after[0][1].shape[-1]
    data = MaskedImages(samples, size, loaded.mean, loaded.std)
    photos = [loaded.photo(data[i][0])[0] for i in range(len(data))]
    masks = [data[i][2] for i in range(len(data))]

    def panels(found: Sequence[tuple[Tensor, Tensor]]) -> list[Panel]:
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


def table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
    return text.getvalue()


def summary(conditions: dict[str, Any], loaded: zoo.LoadedModel, ranges: Any) -> str:
    mean, std = ([round(number, 6) for number in value.flatten().tolist()] for value in (loaded.mean, loaded.std))
    return json.dumps(conditions | {"mean": mean, "std": std, "ranges": ranges}, indent=2) + "\n"


def described(folder: Folder) -> str:
    with_mask = sum(sample.mask is not None for sample in folder.samples)
    unused = f"; {folder.unused} masks of no image" if folder.unused else ""
    return f"{len(folder.samples)} images of {len(folder.classes)} classes, {with_mask} with a mask{unused}."


def line(row: dict[str, Any]) -> str:
    accuracy, validation, background = (
        "-" if row[name] is None else f"{row[name]:.1%}"
        for name in ("accuracy", "validation_accuracy", "validation_background")
    )
    return (
        f"{row['epoch']:5}  {row['seconds']:7.1f}  {row['total']:5.3f}  {row['classification']:14.3f}  "
        f"{row['heatmap']:7.3f}  {accuracy:>8}  {validation:>10}  {background:>10}"
    )
