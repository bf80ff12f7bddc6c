"""Seeds: the relevance that is put on the model's output, as a target asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TargetError
from ..values import may_look_at, widened

__all__ = ["Target", "as_tensor", "is_given", "seed_relevance"]

Target = int | Sequence[int] | np.ndarray | Tensor | Callable[[Tensor], Tensor] | None
"""What to explain: see `seed_relevance`."""

_HELP = (
    "give None, a class (int), a list of ints or a LongTensor (B,), a float tensor of the output's shape or with K of "
    "these in front, or a function of the output"
)


def seed_relevance(
    output: Tensor, target: Target = None, logits: Tensor | None = None, *, batched: bool = True
) -> Tensor:
    """The relevance on the output that `target` asks for.

    A class is explained by the value of its output, ``R_c = z_c`` (eq. 3 of Bassi et al., Faster ISNet): relevance
    then sums up to that output, up to what biases and stabilizers take.

    Parameters
    ----------
    output : Tensor
        The model's output, shape (B, C) or (B, C, ...): classes in dimension 1. In half precision, the seed (and with
        it all relevance) is in single precision.
    target : int, sequence of int, array, Tensor, callable or None
        None: each sample's highest output. An int: this class. Integers (B,), in a list, an array or a tensor: a class
        for each sample. A floating-point tensor or array of the output's shape: the seed itself; with one more
        dimension in front, (K, B, C): K seeds. A callable: a function of the output that returns the seed.
    logits : Tensor or None
        What stands in front of the output's final activation, of the output's shape: a class is explained by its value
        there, while it is the output that says which class is highest.
    batched : bool
        False: the output is of one sample, without a batch, shape (C,).

    Returns
    -------
    Tensor
        The seed, of the output's shape or with K in front: of relevance of the logits, if these are given.

    Raises
    ------
    TargetError
        If a class is out of range, or a tensor's shape or dtype does not fit. The values of an integer tensor are
        looked at on the CPU only, where that is free. If a seed itself is given beside logits: it is one of the output.
    """
    output = widened(output)
    explained = output if logits is None else widened(logits)
    target = as_tensor(target)
    if logits is not None and is_given(target):
        raise TargetError(
            "a seed given as a tensor is one of the output itself, and this pass explains classes, by the logits in "
            "front of the final activation: call the twin, or convert the model with final_activation='keep'"
        )
    if callable(target) and not isinstance(target, Tensor):
        found = target(output)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise TargetError(f"the target function must return a floating-point tensor, not {_described(found)}")
        return _given(output, found)
    if isinstance(target, Tensor) and target.is_floating_point():
        return _given(output, target)
    if not batched:
        of_logits = None if logits is None else logits.unsqueeze(0)
        return seed_relevance(output.unsqueeze(0), target, of_logits).squeeze(0)
    if output.ndim < 2:
        if target is None:
            return explained
        shape = tuple(output.shape)
        raise TargetError(
            f"the output of shape {shape} has no classes to choose from: it is one number per sample, which "
            f"target=None explains. Or give a float tensor of shape {shape}, the seed itself, or K of these"
        )
    classes = output.shape[1]
    if target is None:
        index = _highest(output, explained)
    elif isinstance(target, Integral) and not isinstance(target, bool):
        target = int(target)
        if not -classes <= target < classes:
            raise TargetError(_out_of_range(target, classes))
        index = torch.full_like(output[:, :1], target % classes, dtype=torch.long)
    elif isinstance(target, Tensor) and target.dtype != torch.bool and not target.is_complex():
        index = _per_sample(output, target)
    else:
        raise TargetError(f"a target cannot be {_described(target)}: {_HELP}")
    return torch.zeros_like(explained).scatter(1, index, explained.gather(1, index))


def is_given(target: Target) -> bool:
    """Whether a target, as `as_tensor` gives it, is the seed itself (or makes it), and no class."""
    if isinstance(target, Tensor):
        return target.is_floating_point()
    return callable(target)


def _highest(output: Tensor, logits: Tensor) -> Tensor:
    """Each sample's highest class: of several whose outputs are rounded to the same, that of the highest logit."""
    if logits is not output:
        output = logits.masked_fill(output < output.amax(1, keepdim=True), -torch.inf)
    return output.argmax(1, keepdim=True)


def as_tensor(target: Target) -> Any:
    """A target, with a list of classes or an array as a tensor.

    Raises
    ------
    TargetError
        If a list holds something else than ints.
    """
    if isinstance(target, np.ndarray) and target.dtype.kind in "iuf":
        return torch.from_numpy(target.astype(np.float64 if target.dtype.kind == "f" else np.int64))
    if not isinstance(target, (list, tuple, range)):
        return target
    for index, value in enumerate(target):
        number = value.item() if isinstance(value, Tensor) and not value.ndim else value
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TargetError(
                f"a list of classes holds an int for each sample, and not {_described(value)} (at {index}): {_HELP}"
            )
    return torch.tensor([int(value) for value in target], dtype=torch.long, device="cpu")


def _per_sample(output: Tensor, target: Tensor) -> Tensor:
    if tuple(target.shape) != (output.shape[0],):
        raise TargetError(
            f"an integer target needs a class for each of the {output.shape[0]} samples, shape ({output.shape[0]},), "
            f"not {tuple(target.shape)}: {_HELP}"
        )
    classes = output.shape[1]
    if may_look_at(target):
        wrong = target[(target < 0) | (target >= classes)]
        if wrong.numel():
            raise TargetError(_out_of_range(int(wrong[0]), classes))
    index = target.to(device=output.device, dtype=torch.long)
    return index.reshape(-1, *(1,) * (output.ndim - 1)).expand(-1, 1, *output.shape[2:])


def _out_of_range(target: int, classes: int) -> str:
    return f"target {target} is out of range: the model has {classes} classes, 0 to {classes - 1}"


def _given(output: Tensor, found: Tensor) -> Tensor:
    if found.shape != output.shape and found.shape[1:] != output.shape:
        shape = tuple(output.shape)
        raise TargetError(
            f"a seed of shape {tuple(found.shape)} does not fit the output's shape {shape}: it needs {shape}, or "
            f"(K, {', '.join(map(str, shape))}) for K seeds"
        )
    return found.to(output)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"
