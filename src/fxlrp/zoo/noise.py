"""An image for where none is given: noise that is smooth as a photograph is."""

from __future__ import annotations

import torch
from PIL import Image

__all__ = ["noise"]

SIZE = 512


def noise() -> Image.Image:
    """A random image with a photograph's spectrum: coarse structure is the strongest. Always the same, 512 x 512."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        grid = torch.randn(1, 3, cells, cells, generator=generator) / cells**0.5
        pixels += torch.nn.functional.interpolate(grid, size=(SIZE, SIZE), mode="bilinear")
    pixels = (0.5 + 0.25 * pixels / pixels.std()).clamp(0, 1)
    return Image.fromarray((255 * pixels[0]).byte().permute(1, 2, 0).numpy())
