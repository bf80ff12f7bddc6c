"""What a training says of itself, in lines and tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from ..isnet import ISNetLosses
from ..isnet.ranges import Ranges
from ..zoo import LoadedModel
from .data import Folder

__all__ = ["COLUMNS", "HEADER", "Row", "described", "line", "summary", "table"]

COLUMNS = ("epoch", "seconds", *ISNetLosses._fields, "accuracy", "validation_accuracy", "validation_background")
"""Of the log."""

HEADER = "epoch  seconds  total  classification  heatmap  accuracy  validation  background"

Row = dict[str, float | None]
"""One epoch: a number for each of `COLUMNS`, None where there is nothing to take it of."""


def table(rows: Sequence[Row]) -> str:
    """The log, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
    return text.getvalue()


def summary(conditions: Mapping[str, object], loaded: LoadedModel, ranges: Ranges) -> str:
    """What the training depended on, what inputs are normalised with, and the heatmaps' ranges; as JSON."""
    mean, std = ([round(number, 6) for number in value.flatten().tolist()] for value in (loaded.mean, loaded.std))
    return json.dumps({**conditions, "mean": mean, "std": std, "ranges": ranges}, indent=2) + "\n"


def described(folder: Folder) -> str:
    """What was found in the folders."""
    with_mask = sum(sample.mask is not None for sample in folder.samples)
    unused = f"; {folder.unused} masks of no image" if folder.unused else ""
    return f"{len(folder.samples)} images of {len(folder.classes)} classes, {with_mask} with a mask{unused}."


def line(row: Row) -> str:
    """An epoch, under `HEADER`."""
    accuracy, validation, background = (
        "-" if row[name] is None else f"{row[name]:.1%}"
        for name in ("accuracy", "validation_accuracy", "validation_background")
    )
    return (
        f"{row['epoch']:5}  {row['seconds']:7.1f}  {row['total']:5.3f}  {row['classification']:14.3f}  "
        f"{row['heatmap']:7.3f}  {accuracy:>8}  {validation:>10}  {background:>10}"
    )
