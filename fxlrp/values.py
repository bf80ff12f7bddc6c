"""When a tensor's values may be looked at, to choose what to compute."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["may_look_at"]


def may_look_at(*tensors: Tensor) -> bool:
    """Whether looking costs nothing: in a trace there are no values, and a device would be waited for."""
    return not torch.compiler.is_compiling() and all(x.device.type == "cpu" for x in tensors)
