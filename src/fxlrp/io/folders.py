"""Finds files in a folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

__all__ = ["IMAGES", "files_in"]

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What files are images, by their endings."""


def files_in(folder: Path, endings: Collection[str], kind: type[Exception]) -> list[Path]:
    """The files in a folder and in those within it, in the order of their paths; what starts with a dot is left out.

    Parameters
    ----------
    folder : Path
        The folder.
    endings : collection of str
        In lower case; a file's may have capitals.
    kind : type
        What is raised if there is no such folder.
    """
    if not folder.is_dir():
        raise kind(f"{folder} is not a folder")
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
