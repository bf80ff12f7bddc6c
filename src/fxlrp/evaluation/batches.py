"""What a loader gives, as images, classes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError, MaskError

__all__ = ["Batch", "batches", "number_of"]


class Batch(NamedTuple):
    """Images (B, C, H, W), their numbers, and what else there is: classes (B,), masks (B, 1, H, W)."""

    numbers: list[int]
    x: Tensor
    target: Tensor | None
    mask: Tensor | None

    def without(self, done: set[int]) -> Batch | None:
        """Those that are not done; None if all are."""
        left = [i for i, number in enumerate(self.numbers) if number not in done]
        if len(left) == len(self.numbers):
            return self
        at = lambda value: None if value is None else value[left]
        return Batch([self.numbers[i] for i in left], self.x[left], at(self.target), at(self.mask)) if left else None


def batches(loader: Iterable[Any] | Dataset[Any], device: torch.device, batch_size: int) -> Iterator[Batch]:
    """The batches of a loader, or of a data set, on a device.

    Parameters
    ----------
    loader : iterable or Dataset
        Gives x, (x, classes) or (x, classes, masks); a data set the same of one image.
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
    for given in DataLoader(loader, batch_size) if isinstance(loader, Dataset) else loader:
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
        yield Batch(list(range(start, start + len(x))), x.to(device), to(target), to(mask))
        start += len(x)


def number_of(loader: Iterable[Any] | Dataset[Any], batch_size: int) -> int | None:
    """How many batches there are, if it says so."""
    try:
        length = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    return -(-length // batch_size) if isinstance(loader, Dataset) else length
