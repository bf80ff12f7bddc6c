"""A look, from compiled code, at whether the weights that it has as constants have been written to since."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..errors import FxlrpError
from ..models import weights

__all__ = ["numbered", "unwritten"]

_numbers = itertools.count()
_all: WeakValueDictionary[int, Any] = WeakValueDictionary()


def numbered(program: Any) -> int:
    """A number for a program: all that an op can be given of it."""
    number = next(_numbers)
    _all[number] = program
    return number


@torch.library.custom_op("fxlrp::unwritten", mutates_args=())
def unwritten(x: Tensor, number: int) -> Tensor:
    """A copy of `x`, if the weights are as they were: an op, as torch.compile does not see what PyTorch counts.

    Raises
    ------
    FxlrpError
        If they have been written to.
    """
    program = _all.get(number)
    if program is None or not program.is_of(weights):
        raise FxlrpError(
            "the model's weights were written to after torch.compile, whose code has them as constants: call the twin "
            "once without torch.compile, then it is compiled anew. Or convert the model with trainable=True"
        )
    return x.clone()


@unwritten.register_fake
def _(x: Tensor, number: int) -> Tensor:
    return torch.empty_like(x)


@unwritten.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], x: Tensor, number: int) -> tuple[Tensor, Any]:
    return unwritten(x, number), in_dims[0]
