"""Figures without pyplot, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InputError, MissingExtraError
from ..io.files import check_picture, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["canvas", "write"]

DPI = 150


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches. Made without pyplot: it belongs to the caller alone.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing", "matplotlib", "plot") from error
    drawing = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(drawing)
    return drawing


def write(drawing: Figure, path: str | Path) -> None:
    """Write a figure to a file, whole or not at all.

    Parameters
    ----------
    drawing : matplotlib.figure.Figure
        Made by `figure` or `flow`.
    path : str or Path
        The file; its ending says the format.

    Raises
    ------
    InputError
        If the file cannot be written, or matplotlib does not know the format.
    """

    def save(file: BinaryIO) -> None:
        try:
            drawing.savefig(file, format=Path(path).suffix[1:].lower())
        # An image may be too large.
        except ValueError as error:
            raise InputError(f"cannot write {path}: {error}") from error

    check_picture(path)
    write_file(path, save)
