"""What a loader gives, as images, classes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import InputError, MaskError
from .identity import digest

__all__ = ["Batch", "batches", "number_of"]


class Batch(NamedTuple):
    """Images (B, C, H, W), their numbers, and what else there is: classes (B,), masks (B, 1, H, W)."""

    numbers: list[int]
    x: Tensor
    target: Tensor | None
    mask: Tensor | None

    def without(self, done: Set[int]) -> Batch | None:
        """Those that are not done; None if all are."""
        left = [i for i, number in enumerate(self.numbers) if number not in done]
        if len(left) == len(self.numbers):
            return self
        at = lambda value: None if value is None else value[left]
        return Batch([self.numbers[i] for i in left], self.x[left], at(self.target), at(self.mask)) if left else None

    def digest(self, i: int) -> str:
        """What tells one image, with its class and mask, from others."""
        at = lambda value: None if value is None else value[i]
        return digest(self.x[i], at(self.target), at(self.mask))


def batches(loader: Iterable[Any] | Dataset[Any], device: torch.device, batch_size: int) -> Iterator[Batch]:
    """The batches of a loader, or of a data set, on a device.

    Parameters
    ----------
    loader : iterable or Dataset
        Gives x, (x, classes) or (x, classes, masks); a data set the same of one image, where None says that this image
        has no class, or no mask. A class below 0 is none, a mask that is empty too.
    device : torch.device
        The model's.
    batch_size : int
        Of what a data set is put together to.

    Raises
    ------
    InputError
        If it gives something else.
    MaskError
        If the masks are not of the images.
    """
    start = 0
    for given in DataLoader(loader, batch_size, collate_fn=_together) if isinstance(loader, Dataset) else loader:
        x, target, mask = (*given, None, None)[:3] if isinstance(given, tuple | list) else (given, None, None)
        if not isinstance(x, Tensor) or x.ndim != 4:
            what = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(f"a loader gives images (B, C, H, W), or tuples that begin with these, not {what}")
        if target is not None and (not isinstance(target, Tensor) or target.shape != x.shape[:1]):
            raise InputError(f"the classes that a loader gives beside {len(x)} images are ints ({len(x)},)")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.numel() != len(x) * x.shape[2] * x.shape[3]:
                what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"masks of images {tuple(x.shape)} are (B, H, W) or (B, 1, H, W), not {what}")
            mask = mask.reshape(len(x), 1, *x.shape[2:])
        to = lambda value: None if value is None else value.to(device)
        if len(x):
            yield Batch(list(range(start, start + len(x))), x.to(device), to(target), to(mask))
        start += len(x)


def _together(items: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Images, classes and masks of single ones; in place of a class that is None -1, of a mask an empty one."""
    given = [tuple(item) if isinstance(item, tuple | list) else (item,) for item in items]
    images, classes, masks = zip(*((*item, None, None)[:3] for item in given), strict=True)
    kinds = {str(tuple(image.shape)) if isinstance(image, Tensor) else type(image).__name__ for image in images}
    if len(kinds) > 1 or not isinstance(images[0], Tensor):
        raise InputError(f"a data set gives images of one size, tensors (C, H, W), not {', '.join(sorted(kinds))}")
    if any(len(item) > 2 for item in given):
        masks = torch.stack([_foreground(mask, images[0].shape[-2:]) for mask in masks])
    else:
        masks = None
    known = any(each is not None for each in classes)
    classes = default_collate([-1 if each is None else int(each) for each in classes]) if known else None
    return default_collate(list(images)), classes, masks


def _foreground(mask: Any, size: Sequence[int]) -> Tensor:
    """A mask (H, W) of bool, from one of any dtype, perhaps (1, H, W), or None."""
    if mask is None:
        return torch.zeros(*size, dtype=torch.bool)
    found = torch.as_tensor(mask)
    if found.numel() != size[0] * size[1]:
        raise MaskError(f"the mask of an image {size[0]} x {size[1]} is (H, W) or (1, H, W), not {tuple(found.shape)}")
    return found.reshape(*size) > 0


def number_of(loader: Iterable[Any] | Dataset[Any], batch_size: int) -> int | None:
    """How many batches there are, if it says so."""
    try:
        length = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    return -(-length // batch_size) if isinstance(loader, Dataset) else length
