"""Patches of an image: their scores, the order in which they are flipped, and how many at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..given import check_choice

__all__ = ["ORDERS", "Steps", "counts", "numbers_of_pixels", "patch_sums", "ranking", "spread"]

Steps = str | int | Sequence[int]
"""How many patches are flipped at each step: "log", a number of even steps, or the counts."""

ORDERS = ("morf", "lerf", "random")


def patch_sums(heat: Tensor, patch: int) -> Tensor:
    """The sum of each patch of a map.

    Parameters
    ----------
    heat : Tensor
        Shape (B, H, W).
    patch : int
        The side of a patch; the last ones are smaller where the size is no multiple.

    Returns
    -------
    Tensor
        Shape (B, rows, columns).
    """
    batch, height, width = heat.shape
    padded = torch.nn.functional.pad(heat, (0, -width % patch, 0, -height % patch))
    rows, columns = padded.shape[1] // patch, padded.shape[2] // patch
    return padded.reshape(batch, rows, patch, columns, patch).sum((2, 4))


def numbers_of_pixels(size: Sequence[int], patch: int) -> Tensor:
    """How many pixels each patch has, shape (rows, columns)."""
    return patch_sums(torch.ones(1, *size, dtype=torch.float64), patch)[0]


def spread(values: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """What each patch has (B, rows, columns), given to its pixels: (B, 1, H, W)."""
    pixels = values.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return pixels[:, None, : size[0], : size[1]]


def ranking(scores: Tensor, order: str, seed: int) -> Tensor:
    """At which place each patch is flipped.

    Parameters
    ----------
    scores : Tensor
        Shape (B, P). Patches of equal scores come in a random order, the same for every image.
    order : {"morf", "lerf", "random"}
        Highest first, lowest first, or in that random order all.
    seed : int
        Of the random order.

    Returns
    -------
    Tensor
        Shape (B, P), int64: 0 for the first.
    """
    check_choice("order", order, ORDERS)
    shuffled = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed)).to(scores.device)
    if order == "random":
        places = shuffled.expand_as(scores)
    else:
        places = shuffled[scores[:, shuffled].sort(stable=True, dim=1, descending=order == "morf").indices]
    return places.argsort(1)


def counts(steps: Steps, patches: int, order: str) -> list[int]:
    """How many patches are flipped at each step: 0 in front, all at the end.

    Parameters
    ----------
    steps : str, int or sequence of int
        "log": 1, 2, 4, ... for "morf", these mirrored for "lerf", as many even ones for "random" (Bermudez Schettino,
        section 2.2: fine where the curve is expected to move). An int: that many even ones, or as many as there are
        patches. A sequence: these.
    patches : int
        How many there are.
    order : {"morf", "lerf", "random"}
        As of `ranking`.

    Returns
    -------
    list of int
        In ascending order, each once.

    Raises
    ------
    InputError
        If it is none of these, or a count is not within the number of patches.
    """
    if isinstance(steps, str):
        if steps != "log":
            raise InputError(f"steps is 'log', a number of even steps or the counts of patches, not {steps!r}")
        found = [2**power for power in range((patches - 1).bit_length())]
        if order == "lerf":
            found = [patches - count for count in found]
        if order == "random":
            return counts(len(found) + 1, patches, order)
    elif isinstance(steps, int) and not isinstance(steps, bool):
        if steps < 1:
            raise InputError(f"steps is {steps}: of even steps there is at least 1")
        found = [(2 * patches * step + steps) // (2 * steps) for step in range(1, steps)]
    else:
        found = _given(steps)
        wrong = [count for count in found if not 0 <= count <= patches]
        if wrong:
            raise InputError(f"steps has the count {wrong[0]}, and an image has {patches} patches: give 0 to {patches}")
    return sorted({0, *found, patches})


def _given(steps: object) -> list[int]:
    values = steps.tolist() if isinstance(steps, Tensor) or hasattr(steps, "tolist") else steps  # pyright: ignore
    if not isinstance(values, Sequence) or not all(isinstance(c, int) and not isinstance(c, bool) for c in values):
        raise InputError(f"steps is 'log', a number of even steps or the counts of patches (ints), not {steps!r}")
    return list(values)
