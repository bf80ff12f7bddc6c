"""Pictures of a comparison: heatmaps side by side with their scores, and the curves of pixel flipping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..plot.canvas import canvas, write
from ..plot.picture import COLORS, clip, heatmap
from .examples import Example
from .storage import ImageRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Drawn", "draw"]

CELL = 1.9
CURVE = 3.6
OUTLINE = "lime"
"""Around the object."""

ORDERS = {"morf": "most relevant first", "lerf": "least relevant first", "random": "random order"}


class Drawn(NamedTuple):
    """What is drawn of a comparison: rows of images, ways of explaining, names of metrics, and examples."""

    rows: Sequence[ImageRow]
    ways: Sequence[str]
    metrics: Sequence[str]
    examples: Sequence[Example]

    @property
    def shown(self) -> dict[str, str]:
        """The metrics that stand above a heatmap, and their short names."""
        return {name: name.removeprefix("flipping_auc_") for name in self.metrics if "aopc" not in name}


def draw(drawn: Drawn, path: str | Path) -> None:
    """Draw examples, and the mean curves of pixel flipping, if there are any."""
    orders = [order for order in ORDERS if any(order in of for row in drawn.rows for of in row.curves.values())]
    columns, lines = 1 + len(drawn.ways), len(drawn.examples)
    below = CURVE if orders else 0.0
    width = max(columns * CELL, len(orders) * CURVE * 1.3) + 0.4
    height = lines * (CELL + 0.3) + below + 0.4
    drawing = canvas(width, height)
    for i, example in enumerate(drawn.examples):
        top = 1 - (0.3 + i * (CELL + 0.3)) / height
        for j, way in enumerate((None, *drawn.ways)):
            box = (0.2 / width + j * CELL / width, top - CELL / height, 0.95 * CELL / width, 0.95 * CELL / height)
            axes = drawing.add_axes(box)
            axes.set_axis_off()
            _cell(axes, drawn, example, way)
    for j, order in enumerate(orders):
        share = 1 / len(orders)
        axes = drawing.add_axes(((j + 0.14) * share, 0.55 / height, 0.8 * share, (below - 1.0) / height))
        _curves(axes, drawn, order, legend=not j)
    write(drawing, path)


def _cell(axes: Axes, drawn: Drawn, example: Example, way: str | None) -> None:
    if way is None:
        axes.imshow(_photo(example.x))
        if example.mask is not None and 0 < example.mask.sum() < example.mask.numel():
            axes.contour(example.mask.numpy(), levels=[0.5], colors=OUTLINE, linewidths=0.8)
        axes.set_title(f"image {example.image}, class {example.target}\n{', '.join(drawn.shown.values())}", fontsize=6)
        return
    axes.imshow(clip(heatmap(example.relevance[way].float())).numpy(force=True), cmap=COLORS, vmin=-1, vmax=1)
    row = next((row for row in drawn.rows if row.image == example.image), None)
    values = {} if row is None else row.values.get(way, {})
    scores = ", ".join(f"{values[name]:.2g}" for name in drawn.shown if name in values)
    axes.set_title(f"{way}\n{scores}", fontsize=6)


def _photo(x: Tensor) -> np.ndarray:
    """An image from black to white, whatever it was normalized with."""
    low, high = x.min(), x.max()
    shown = ((x - low) / (high - low).clamp(min=1e-12)).cpu()
    return (shown if len(shown) == 3 else shown.mean(0, keepdim=True).expand(3, -1, -1)).permute(1, 2, 0).numpy()


def _curves(axes: Axes, drawn: Drawn, order: str, *, legend: bool) -> None:
    grid = np.linspace(0, 1, 101)
    for way in drawn.ways:
        found = [row.curves[way][order] for row in drawn.rows if order in row.curves.get(way, {})]
        if found:
            mean = np.nanmean([np.interp(grid, shares, scores) for shares, scores in found], axis=0)
            axes.plot(grid, mean, label=way, linewidth=1)
    axes.set_title(f"pixel flipping, {ORDERS[order]}", fontsize=8)
    axes.set_xlabel("share of pixels flipped", fontsize=7)
    axes.set_ylabel("score", fontsize=7)
    axes.tick_params(labelsize=6)
    if legend:
        axes.legend(fontsize=6, frameon=False)
