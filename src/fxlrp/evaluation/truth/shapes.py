"""Shapes that annotations draw around objects, as masks: a pixel is inside where its middle is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["Shape", "box", "counts_of", "polygons", "runs"]

Shape = Callable[[int, int], np.ndarray]
"""``(height, width) -> mask``, (height, width) of bool."""


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    """A box by its edges, which lie between pixels: the first pixel is from 0 to 1."""

    def draw(height: int, width: int) -> np.ndarray:
        rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
        return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))

    return draw


def polygons(parts: Sequence[Sequence[float]]) -> Shape:
    """Polygons (x, y, x, y, ...), edges as of `box`: inside of any of them, where a ray crosses an odd number of sides.

    Raises
    ------
    ValueError
        If one has no three corners.
    """
    corners = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in parts]
    if not corners or any(len(each) < 3 for each in corners):
        raise ValueError("a polygon has three corners or more")

    def draw(height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), dtype=bool)
        for each in corners:
            mask |= _inside(each, height, width)
        return mask

    return draw


def runs(counts: Sequence[int], height: int, width: int) -> Shape:
    """Run lengths down the columns, of background and object in turn, background first (COCO).

    Raises
    ------
    ValueError
        If these are not the pixels of the image.
    """
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.sum() != height * width or (lengths < 0).any():
        raise ValueError(f"run lengths sum to {lengths.sum()}, and {height} x {width} pixels are {height * width}")

    def draw(rows: int, columns: int) -> np.ndarray:
        if (rows, columns) != (height, width):
            raise ValueError(f"run lengths are of {height} x {width} pixels, and the image has {rows} x {columns}")
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T

    return draw


def counts_of(text: str) -> list[int]:
    """Run lengths from COCO's text form.

    Five bits of a number in each character above "0", the lowest first, the sixth bit: more follow; negative ones as
    two's complement; from the fourth number on, each is the difference from the one two in front of it.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where a ray to the left crosses an odd number of a polygon's sides."""
    columns = np.arange(width) + 0.5
    mask = np.zeros((height, width), dtype=bool)
    starts, ends = corners, np.roll(corners, -1, axis=0)
    for row in range(height):
        middle = row + 0.5
        crossed = (starts[:, 1] <= middle) != (ends[:, 1] <= middle)
        (x0, y0), (x1, y1) = starts[crossed].T, ends[crossed].T
        at = x0 + (middle - y0) * (x1 - x0) / (y1 - y0)
        mask[row] = (at[:, None] <= columns).sum(0) % 2 == 1
    return mask
