"""Pictures of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .canvas import canvas, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Panel", "clip", "figure", "heatmap", "save"]

COLORS = "RdBu_r"
PANEL_INCHES = 2.6
TITLE_INCHES = 0.5
BAR_INCHES = 0.75
MARGIN_INCHES = 0.12


@dataclass(frozen=True)
class Panel:
    """One cell of a picture.

    Attributes
    ----------
    title : str
        Written above; may have two lines.
    photo : Tensor or None
        (3, H, W) in [0, 1]. Shown as it is, or in pale grey under the relevance.
    relevance : Tensor or None
        (C, H, W), of any scale.
    """

    title: str
    photo: Tensor | None = None
    relevance: Tensor | None = None


def heatmap(relevance: Tensor) -> Tensor:
    """Relevance per pixel, scaled so that the largest absolute value is 1.

    Parameters
    ----------
    relevance : Tensor
        (B, C, H, W) or (C, H, W).

    Returns
    -------
    Tensor
        (B, H, W) or (H, W), in [-1, 1]: the sum over channels, each sample scaled on its own. A sample without any
        relevance stays 0.

    Raises
    ------
    InputError
        If the relevance is of another rank.
    """
    if relevance.ndim not in (3, 4):
        raise InputError(f"relevance of an image is (B, C, H, W) or (C, H, W), not {tuple(relevance.shape)}")
    summed = relevance.sum(-3)
    largest = summed.abs().amax((-2, -1), keepdim=True)
    return summed / torch.where(largest > 0, largest, 1.0)


def clip(heat: Tensor, percentile: float = 99.5) -> Tensor:
    """Stretch heat so that single pixels do not dominate the colours; zero stays at zero.

    Parameters
    ----------
    heat : Tensor
        (H, W).
    percentile : float
        In (0, 100]: this share of the pixels keeps its value, the rest is clipped.

    Returns
    -------
    Tensor
        (H, W), in [-1, 1]. Positive and negative values have the same scale.

    Raises
    ------
    InputError
        If the percentile is out of range.
    """
    if not 0 < percentile <= 100:
        raise InputError(f"percentile is in (0, 100], not {percentile}")
    sizes = heat.abs().flatten()
    limit = sizes.kthvalue(max(1, round(percentile / 100 * sizes.numel()))).values
    # Where nearly every pixel is zero, the percentile is zero too.
    limit = torch.where(limit > 0, limit, sizes.max())
    return (heat / torch.where(limit > 0, limit, 1.0)).clamp(-1, 1)


def figure(rows: Sequence[Sequence[Panel]], *, percentile: float = 99.5, names: Sequence[str] = ()) -> Figure:
    """A grid of photos and heatmaps, with one colour bar below.

    Parameters
    ----------
    rows : sequence of sequences of Panel
        The grid; rows may be of different lengths.
    percentile : float
        As for `clip`.
    names : sequence of str
        Written to the left of each row.

    Returns
    -------
    matplotlib.figure.Figure
        Made without pyplot: it belongs to the caller alone.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    columns = max(map(len, rows))
    left = MARGIN_INCHES + (0.3 if names else 0)
    width = left + columns * (PANEL_INCHES + MARGIN_INCHES)
    height = len(rows) * (PANEL_INCHES + TITLE_INCHES) + BAR_INCHES
    drawing = canvas(width, height)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    def axes(x: float, top: float, w: float, h: float) -> Axes:
        return drawing.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    for i, row in enumerate(rows):
        top = i * (PANEL_INCHES + TITLE_INCHES) + TITLE_INCHES
        for j, panel in enumerate(row):
            cell = axes(left + j * (PANEL_INCHES + MARGIN_INCHES), top, PANEL_INCHES, PANEL_INCHES)
            cell.imshow(_pixels(panel, percentile).numpy(force=True))
            cell.set_title(panel.title, fontsize=9, pad=4, parse_math=False)  # A name may hold a $.
            cell.set_axis_off()
        if i < len(names):
            middle = 1 - (top + PANEL_INCHES / 2) / height
            drawing.text(
                0.2 / width, middle, names[i], rotation=90, ha="center", va="center", fontsize=11, parse_math=False
            )
    length = min(0.7 * width, 2 * PANEL_INCHES)  # The outer labels stand out on both sides.
    bar = axes((width - length) / 2, height - BAR_INCHES + 0.15, length, 0.13)
    scale = drawing.colorbar(ScalarMappable(Normalize(-1, 1), COLORS), cax=bar, orientation="horizontal")
    scale.set_ticks([-1, 0, 1], labels=["against", "no relevance", "in favour"])
    scale.ax.tick_params(labelsize=9, length=2)
    scale.outline.set_visible(False)
    return drawing


def save(
    rows: Sequence[Sequence[Panel]], path: str | Path, *, percentile: float = 99.5, names: Sequence[str] = ()
) -> None:
    """Draw a grid and write it to a file.

    Parameters
    ----------
    rows : sequence of sequences of Panel
        As for `figure`.
    path : str or Path
        The file; its ending says the format.
    percentile : float
        As for `clip`.
    names : sequence of str
        As for `figure`.

    Raises
    ------
    InputError
        If the file cannot be written, or matplotlib does not know the format.
    MissingExtraError
        If matplotlib is not installed.
    """
    write(figure(rows, percentile=percentile, names=names), path)


def _pixels(panel: Panel, percentile: float) -> Tensor:
    """The cell's pixels, (H, W, 3)."""
    if panel.relevance is None:
        assert panel.photo is not None
        return panel.photo.permute(1, 2, 0).clamp(0, 1)
    from matplotlib import colormaps

    heat = clip(heatmap(panel.relevance.detach().float()), percentile)
    colors = torch.from_numpy(colormaps[COLORS]((heat.numpy(force=True) + 1) / 2)[..., :3]).float()
    if panel.photo is None:
        return colors
    # Multiplied with a pale photo, the colours keep their hue, and no relevance leaves the photo.
    grey = 0.72 + 0.28 * panel.photo.mean(0).clamp(0, 1).cpu()
    return colors * grey[..., None]
