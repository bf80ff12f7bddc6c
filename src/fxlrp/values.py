"""Of a tensor's values: when they may be looked at, where they are made, and in which precision they are summed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["is_wrapped", "may_look_at", "on_the_cpu", "widened"]


def may_look_at(*tensors: Tensor) -> bool:
    """Whether looking costs nothing: in a trace there are no values, and a device would be waited for."""
    return not torch.compiler.is_compiling() and all(x.device.type == "cpu" and not is_wrapped(x) for x in tensors)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for others, in a transform of `torch.func`."""
    return is_functorch_wrapped_tensor(tensor)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def on_the_cpu(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function that finds something out on numbers make these on the CPU, whatever the default device is."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


def widened(tensor: Tensor) -> Tensor:
    """The same numbers in single precision, where they are of half: what is summed of these would be rounded away."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
