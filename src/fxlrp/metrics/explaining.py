"""Calls what a user gives to make heatmaps: a twin, or any function of images and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, TargetError
from ..given import check_count
from ..relevance.seeds import Target, as_tensor, is_given
from .scoring import classes_of

__all__ = ["Explain", "Explained", "explained", "fixed"]

Explain = Callable[[Tensor, Any], Any]
"""``(x, target) -> relevance``, or what holds it as `.relevance`, and the model's outputs as `.output`: a twin."""


class Explained(NamedTuple):
    """A batch's heatmaps.

    Attributes
    ----------
    relevance : Tensor
        (B, C, H, W) or (B, H, W), detached.
    output : Tensor or None
        The model's, (B, C), of an explanation that has it.
    """

    relevance: Tensor
    output: Tensor | None


def explained(explain: Explain, x: Tensor, target: Target, batch_size: int | None) -> Explained:
    """The heatmaps of images, a batch at a time.

    Parameters
    ----------
    explain : callable
        A twin or a function: of images (n, C, H, W) and an int, ints (n,) or None.
    x : Tensor
        Shape (B, C, H, W).
    target : int, sequence of int, array, Tensor or None
        As of `fxlrp.seed_relevance`, but for seeds.
    batch_size : int or None
        How many images go into one call, at most; None: all.

    Returns
    -------
    Explained
        Of all images.

    Raises
    ------
    InputError
        If something else comes back than heatmaps of these images.
    TargetError
        If there is not one class for each image, or a seed was given.
    """
    check_count("batch_size", batch_size)
    target = as_tensor(target)
    if is_given(target):
        raise TargetError("this explains classes, and a seed or a function of the output is none: give ints")
    if isinstance(target, Tensor) and target.shape != (len(x),):
        raise TargetError(f"a class for each of {len(x)} images is needed, ({len(x)},), not {tuple(target.shape)}")
    size = batch_size or len(x)
    relevances: list[Tensor] = []
    outputs: list[Tensor] = []
    for start in range(0, len(x), size):
        of_these = target[start : start + size] if isinstance(target, Tensor) else target
        found = explain(x[start : start + size], of_these)
        relevance, output = getattr(found, "relevance", found), getattr(found, "output", None)
        if not isinstance(relevance, Tensor) or len(relevance) != len(x[start : start + size]):
            what = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
            raise InputError(f"explain returns the relevance of its images, (n, C, H, W) or (n, H, W), not {what}")
        relevances.append(relevance.detach())
        outputs += [output.detach()] if isinstance(output, Tensor) else []
    return Explained(torch.cat(relevances), torch.cat(outputs) if len(outputs) == len(relevances) else None)


def fixed(target: Target, first: Explained) -> int | Tensor:
    """The target as an int or ints (B,), so that another call explains the same class.

    Raises
    ------
    TargetError
        If it is None and the explanation has no output to find the highest of, or does not fit the output.
    """
    if isinstance(target, int):
        return target
    if first.output is not None:
        return classes_of(first.output, target)
    if target is None:
        raise TargetError(
            "target=None is the class of the highest output, and what explain returns has no `.output`: give the "
            "classes, or a twin"
        )
    found = as_tensor(target)
    assert isinstance(found, Tensor)
    return found
