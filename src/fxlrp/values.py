"""Of a tensor's values: when they may be looked at, where and how they are made, and in which precision summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["is_wrapped", "may_look_at", "on_the_cpu", "outside_inference_mode", "widened"]


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


@contextmanager
def outside_inference_mode(*values: Any) -> Iterator[tuple[Any, ...]]:
    """Leave inference mode (not its freedom from gradients), with these tensors as ones that were made outside of it.

    In inference mode, torch.func.vjp gives zeros without a word (torch 2.9).
    """
    if torch.compiler.is_dynamo_compiling():
        yield values
        return
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield tuple(x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in values)
