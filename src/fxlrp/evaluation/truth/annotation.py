"""What is known of an image: where its objects are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from ...errors import MaskError
from ...io.images import read_mask
from .shapes import Shape

__all__ = ["Annotation", "MaskFile", "Object", "Truth"]

ASPECT = 0.02
"""How far the aspects of an image and its mask may differ: both were rounded to pixels."""


class Truth(Protocol):
    """Where the objects of an image are."""

    @property
    def names(self) -> Collection[str]:
        """Of the objects, in lower case."""
        ...

    def mask(self, width: int, height: int, names: Collection[str]) -> np.ndarray | None:
        """Where they are in the image, upright: (height, width) of bool, or None if there is none.

        Parameters
        ----------
        width, height : int
            Of the image.
        names : collection of str
            Of which objects; those of all, if it is empty.
        """
        ...


class Object(NamedTuple):
    """An object: what it is, in lower case, and where."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Annotation:
    """The objects of an image that a file describes.

    Attributes
    ----------
    source : str
        The file, and the image's name in it, for errors.
    size : tuple of int or None
        Width and height of the image, if the file says it.
    objects : sequence of Object
        There may be none.
    """

    source: str
    size: tuple[int, int] | None
    objects: Sequence[Object]

    @property
    def names(self) -> Collection[str]:
        """Of the objects, in lower case."""
        return {each.name for each in self.objects}

    def mask(self, width: int, height: int, names: Collection[str]) -> np.ndarray | None:
        """As of `Truth`.

        Raises
        ------
        MaskError
            If the file speaks of another size.
        """
        if self.size is not None and self.size != (width, height):
            raise MaskError(
                f"{self.source} is of an image {self.size[0]} x {self.size[1]}, and the image, upright, is "
                f"{width} x {height}: annotate it as it is"
            )
        chosen = [each for each in self.objects if not names or each.name in names]
        try:
            drawn = [each.shape(height, width) for each in chosen]
        except ValueError as error:
            raise MaskError(f"{self.source}: {error}") from error
        return np.logical_or.reduce(drawn) if drawn else None


@dataclass(frozen=True)
class MaskFile:
    """An image of a mask, read as `fxlrp.io.images.read_mask` does: at any scale, of the whole image."""

    path: Path

    names: Collection[str] = ()

    def mask(self, width: int, height: int, names: Collection[str]) -> np.ndarray | None:
        """As of `Truth`; it knows no names.

        Raises
        ------
        MaskError
            If it cannot be read, or has another aspect.
        """
        own = read_mask(self.path).numpy()
        own_height, own_width = own.shape
        if abs(own_width * height / (own_height * width) - 1) > ASPECT:
            raise MaskError(
                f"{self.path} is {own_width} x {own_height} and its image {width} x {height}, upright: a mask shows "
                "the whole image, at any scale"
            )
        if own.shape == (height, width):
            return own
        return np.array(Image.fromarray(own).resize((width, height), Image.Resampling.NEAREST))
