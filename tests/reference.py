"""What the tests compare with, beside `fxlrp.testing`: composites by name, seeds, finite differences."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from zennit.composites import COMPOSITES

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def composite_of(name: str, zero_params=None, canonizers=None):
    """A composite of zennit's by name; None if it takes no ``zero_params`` and some are asked for."""
    options = {"low": -3.0, "high": 3.0} if name == "epsilon_gamma_box" else {}
    if zero_params is not None:
        if name in ("deconvnet", "guided_backprop"):
            return None
        options["zero_params"] = zero_params
    return COMPOSITES[name](canonizers=canonizers, **options)


def seed_of(output: Tensor, target: int) -> Tensor:
    seed = torch.zeros_like(output)
    seed[:, target] = output[:, target]
    return seed.detach()


def directional_derivatives(function, tensors, seed: int = 0, step: float = 1e-6):
    """Autograd's and central differences' derivatives of `function()` along a random direction of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.autograd.grad(function(), tensors, allow_unused=True)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * step * direction)
            values.append(function().item())
            with torch.no_grad():
                tensor.sub_(sign * step * direction)
        automatic = 0.0 if gradient is None else (gradient * direction).sum().item()
        yield automatic, (values[0] - values[1]) / (2 * step)


compile_is_broken = pytest.mark.skipif(
    torch.__version__ < "2.10" and sys.version_info[:3] == (3, 13, 0),
    reason="on Python 3.13.0, torch.compile of torch 2.9 does not notice that an attribute of a module has changed, "
    "nor follow a raise",
)
