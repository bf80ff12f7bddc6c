"""When a tensor's values may be looked at, to choose what to compute."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["is_wrapped", "may_look_at"]


def may_look_at(*tensors: Tensor) -> bool:
    """Whether looking costs nothing: in a trace there are no values, and a device would be waited for."""
    return not torch.compiler.is_compiling() and all(x.device.type == "cpu" and not is_wrapped(x) for x in tensors)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for others, in a transform of `torch.func`."""
    return is_functorch_wrapped_tensor(tensor)
