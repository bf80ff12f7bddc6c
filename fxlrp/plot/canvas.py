"""Figures without pyplot, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingExtraError
from ..files import check_output, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["canvas", "check_picture", "write"]

DPI = 150


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches. Made without pyplot: it belongs to the caller alone.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    kind, canvas_of = _matplotlib()
    drawing = kind(figsize=(width, height), dpi=DPI)
    canvas_of(drawing)
    return drawing


def check_picture(path: str | Path) -> None:
    """See that a picture can be written, before what it is to show is computed.

    Raises
    ------
    InputError
        If its ending is not that of a picture, or nothing can be written there.
    MissingExtraError
        If matplotlib is not installed.
    """
    _, canvas_of = _matplotlib()
    check_output(path, [f".{ending}" for ending in canvas_of.get_supported_filetypes()])


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
    check_picture(path)
    ending = Path(path).suffix[1:].lower()
    try:
        write_file(path, lambda file: drawing.savefig(file, format=ending))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot write {path}: {error}") from error


def _matplotlib() -> tuple[Any, Any]:
    """The classes of figures and of what they are drawn on."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing", "matplotlib", "plot") from error
    return Figure, FigureCanvasAgg
