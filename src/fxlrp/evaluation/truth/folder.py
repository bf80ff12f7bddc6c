"""A folder of images, as a model sees them, with their classes and with where their objects are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import InputError, MaskError
from ...io.folders import IMAGES, files_in
from ...io.images import read_image
from .annotation import Truth
from .labels import labels_of
from .matching import boxes_of, masks_of

__all__ = ["ImageFolder", "seen"]

Transform = Callable[[Image.Image], Tensor]


class ImageFolder(Dataset[tuple[Any, ...]]):
    """Images of a folder for `fxlrp.compare` and `fxlrp.search`, read when they are asked for.

    Gives (x, class), or (x, class, mask) with masks or boxes. A class is None where the sub-folder does not say it, a
    mask where there is none: what compares with masks is NaN there.

    Parameters
    ----------
    folder : str or Path
        Of images, in sub-folders or not.
    transform : callable
        From a PIL image to the model's input (C, H, W): any resizing, cropping and padding, and a normalization of
        each channel by itself. Masks go the same way.
    masks : str, Path or None
        A folder of mask images, or a COCO file, whose segmentations are taken.
    boxes : str, Path or None
        A folder of Pascal VOC's files of XML, or a COCO file, whose boxes are taken.
    classes : sequence of str
        The names of the model's outputs, for sub-folders named by them, or by their indices.
    limit : int or None
        How many images there are at most, evenly spread over all.

    Attributes
    ----------
    images : list of PurePath
        Their paths in the folder, in order.
    labels : list of int or None
        Their classes.

    Raises
    ------
    InputError
        If there are no images, or a sub-folder is named as two classes are.
    MaskError
        If masks and boxes are both given, or what is given cannot be read, or belongs to no image.

    Notes
    -----
    Masks belong to images of the same path without its ending, or, if there are none, of the same name. Of annotations
    that name the image's class (or its sub-folder) anywhere, only objects of that name count; of others, all objects.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Transform,
        *,
        masks: str | Path | None = None,
        boxes: str | Path | None = None,
        classes: Sequence[str] = (),
        limit: int | None = None,
    ) -> None:
        self.folder, self.transform = Path(folder), transform
        images: list[PurePath] = [path.relative_to(self.folder) for path in files_in(self.folder, IMAGES, InputError)]
        if not images:
            raise InputError(f"{folder} has no images ({', '.join(sorted(IMAGES))})")
        if masks is not None and boxes is not None:
            raise MaskError("give masks or boxes, not both: there is one mask for each image")
        self._truth: dict[PurePath, Truth] | None = None
        if masks is not None:
            self._truth = masks_of(images, Path(masks))
        if boxes is not None:
            self._truth = boxes_of(images, Path(boxes))
        labels = labels_of(images, classes)
        count = min(limit or len(images), len(images))
        kept = [i * len(images) // count for i in range(count)]
        self.images, self.labels = [images[i] for i in kept], [labels[i] for i in kept]
        known = {name for truth in (self._truth or {}).values() for name in truth.names}
        self._names = [_names_of(images[i], labels[i], classes) & known for i in kept]

    @property
    def masked(self) -> int:
        """How many images have a mask, or an annotation."""
        return sum(image in (self._truth or {}) for image in self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        path = self.images[index]
        image = read_image(self.folder / path)
        x, label = self.transform(image), self.labels[index]
        if self._truth is None:
            return x, label
        truth = self._truth.get(path)
        mask = None if truth is None else truth.mask(*image.size, self._names[index])
        return x, label, None if mask is None else seen(self.transform, mask)


def _names_of(image: PurePath, label: int | None, classes: Sequence[str]) -> set[str]:
    """What an image's class may be called, in lower case."""
    own = {image.parts[0].lower()} if len(image.parts) > 1 else set()
    return own if label is None or label >= len(classes) else {*own, classes[label].lower()}


def seen(transform: Transform, mask: np.ndarray) -> Tensor:
    """Where a mask lies in what a model sees: the mask goes through the model's own transform, as a picture.

    Parameters
    ----------
    transform : callable
        As of `ImageFolder`.
    mask : numpy.ndarray
        Shape (h, w) of bool.

    Returns
    -------
    Tensor
        Shape (H, W) of bool: where the object covers half of a pixel or more. What is padded is no object.
    """
    black, white, shown = (
        transform(Image.fromarray(np.where(where, 255, 0).astype(np.uint8)).convert("RGB"))[0]
        for where in (np.zeros_like(mask), np.ones_like(mask), mask)
    )
    return (white > black) & (shown >= (black + white) / 2)
