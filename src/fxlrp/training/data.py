"""Images in a folder for each class, with masks in another folder, as the data set that an ISNet is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, MaskError
from ..io.folders import IMAGES, files_in
from ..io.images import read_image, read_mask
from ..isnet.loss import mask_at

__all__ = ["Folder", "MaskedImages", "Sample", "read_folder", "split"]

AT_A_TIME = 64
"""How many samples are checked by several threads, before progress is shown."""

ASPECT = 0.02
"""How far the aspects of an image and its mask may differ: both were rounded to pixels."""


@dataclass(frozen=True)
class Sample:
    """One image, the index of its class, and its mask if it has one."""

    image: Path
    label: int
    mask: Path | None


@dataclass(frozen=True)
class Folder:
    """What was found in the folders.

    Attributes
    ----------
    classes : list of str
        In the order of the model's outputs.
    samples : list of Sample
        In the order of classes and names.
    unused : int
        How many masks belong to no image.
    """

    classes: list[str]
    samples: list[Sample]
    unused: int


Progress = Callable[[Sequence[int]], Iterable[int]]
"""Walks through numbers, and may show how far it is."""


def read_folder(images: str | Path, masks: str | Path, *, progress: Progress = iter) -> Folder:
    """Find images, ``images/<class>/<name>.<ending>``, and their masks: the same under `masks`, with any ending.

    All are read once, whole: a broken one is found here.

    Parameters
    ----------
    images, masks : str or Path
        The two folders. What starts with a dot is not looked at; folders within a class belong to it.
    progress : callable
        As `rich.progress.track`, for the reading.

    Returns
    -------
    Folder
        An image without a mask is a sample without one.

    Raises
    ------
    InputError
        If there are no images, or not at least two classes of them, or a file is not an image.
    MaskError
        If there are no masks, none that belongs to an image, two for one image, or one of another aspect.
    """
    images, masks = Path(images), Path(masks)
    found = files_in(images, IMAGES, InputError)
    loose = [path for path in found if path.parent == images]
    if not found or loose:
        what = f"{loose[0].name} lies beside the classes" if found else "there are none"
        raise InputError(f"{images} is to hold images as <class>/<name>.png (or .jpg, ...): {what}")
    classes = sorted({path.relative_to(images).parts[0] for path in found})
    if len(classes) < 2:
        raise InputError(f"{images} has images of one class only, '{classes[0]}': a classifier needs two or more")
    known: dict[Path, Path] = {}
    for path in files_in(masks, IMAGES, MaskError):
        other = known.setdefault(path.relative_to(masks).with_suffix(""), path)
        if other != path:
            raise MaskError(f"{other} and {path} are masks of the same image: keep one")
    index = {name: label for label, name in enumerate(classes)}
    samples = []
    for path in found:
        name = path.relative_to(images)
        samples.append(Sample(path, index[name.parts[0]], known.get(name.with_suffix(""))))
    used = {sample.mask for sample in samples if sample.mask is not None}
    if not used:
        example = samples[0].image.relative_to(images).with_suffix(".png")
        raise MaskError(f"{masks} has no mask of any of the {len(samples)} images: one is {masks / example}")
    with ThreadPoolExecutor() as pool:
        for start in progress(range(0, len(samples), AT_A_TIME)):
            list(pool.map(_check, samples[start : start + AT_A_TIME]))
    return Folder(classes, samples, len(known) - len(used))


def split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Set samples aside for validation, drawn at random.

    Parameters
    ----------
    samples : sequence of Sample
        All of them.
    fraction : float
        In [0, 1): how many; the same in each class, of those with a mask and those without. If not 0, at least one of
        each such group, unless there is no second one to train with.
    seed : int
        The same seed draws the same samples.

    Returns
    -------
    tuple of list of Sample
        To train with, and for validation.
    """
    generator = torch.Generator().manual_seed(seed)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.label, sample.mask is None].append(index)
    held: set[int] = set()
    for members in groups.values():
        count = min(max(1, round(fraction * len(members))), len(members) - 1) if fraction else 0
        held.update(members[i] for i in torch.randperm(len(members), generator=generator)[:count].tolist())
    return [s for i, s in enumerate(samples) if i not in held], [samples[i] for i in sorted(held)]


class MaskedImages(Dataset[tuple[Tensor, int, Tensor, bool]]):
    """Samples as tensors: image (3, size, size), class, mask (size, size) of bool, whether there is a mask.

    Images are resized to a square as a whole, nothing is cut off. A mask's pixel is foreground wherever it holds any.

    Parameters
    ----------
    samples : sequence of Sample
        What to read.
    size : int
        Height and width.
    mean, std : Tensor
        Of the model's normalisation, (1, 3, 1, 1).
    """

    def __init__(self, samples: Sequence[Sample], size: int, mean: Tensor, std: Tensor) -> None:
        self.samples, self.size, self.mean, self.std = samples, size, mean, std

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor, bool]:
        sample = self.samples[index]
        size = (self.size, self.size)
        image = np.array(read_image(sample.image).resize(size, Image.Resampling.BILINEAR))
        x = (torch.from_numpy(image).permute(2, 0, 1) / 255 - self.mean[0]) / self.std[0]
        if sample.mask is None:
            return x, sample.label, torch.zeros(size, dtype=torch.bool), False
        return x, sample.label, mask_at(read_mask(sample.mask)[None, None], size)[0, 0], True


def _check(sample: Sample) -> None:
    """Read the files of a sample: what is wrong with one is said before the training, not in its midst."""
    width, height = read_image(sample.image).size
    if sample.mask is not None:
        own_height, own_width = read_mask(sample.mask).shape
        if abs(own_width * height / (own_height * width) - 1) > ASPECT:
            raise MaskError(
                f"{sample.mask} is {own_width} x {own_height} and its image {width} x {height}, upright: a mask shows "
                "the whole image, at any scale"
            )
