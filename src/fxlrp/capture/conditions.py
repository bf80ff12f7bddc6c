"""What holds while a model is run to be followed: nothing of its surroundings is captured, and it leaves no trace."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..models import hooks_leave_no_trace
from .failure import without_graphs

__all__ = ["conditions"]


@contextmanager
def conditions(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Have a model followed: on, gradients; off, inference mode and autocast; what its hooks collect is removed."""
    with ExitStack() as stack:
        stack.enter_context(hooks_leave_no_trace(model))
        stack.enter_context(_normalization_that_can_be_followed())
        stack.enter_context(warnings.catch_warnings())
        # What a forward pass keeps on its module, and the second list of parameters of a recurrent layer, is put back.
        warnings.filterwarnings("ignore", message="The tensor attributes? ")
        stack.enter_context(without_graphs())
        stack.enter_context(torch.inference_mode(False))
        # Where gradients are off already, a model's own no_grad would leave no trace.
        stack.enter_context(torch.enable_grad())
        for kind in {x.device.type for x in inputs}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _normalization_that_can_be_followed() -> Iterator[None]:
    """Put torchvision's second `normalize` in the place of its first, which looks at values of a tensor."""
    functional = sys.modules.get("torchvision.transforms._functional_tensor")
    if functional is None:
        yield
        return
    from torchvision.transforms.v2.functional import normalize_image

    with patch.object(functional, "normalize", normalize_image):
        yield
