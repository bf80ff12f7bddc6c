"""What the tests compare with: zennit where it is right, finite differences; and models as training leaves them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random running statistics, affine parameters and biases: fresh ones are nearly the identity and hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model.double()


def without_eps(model: nn.Module) -> nn.Module:
    """The same function with each batch norm's eps in its variance: zennit 0.5.1 leaves eps in a merged batch norm."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.running_var += module.eps
            module.eps = 0.0
    return model


class InTurn(nn.Module):
    """A ReLU for each call: a zennit hook of a module that is called twice sees the last call's input in both."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(count))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.relus[(self.calls - 1) % len(self.relus)](x)


def for_zennit(model: nn.Module) -> nn.Module:
    """A copy in which no hook can see a wrong input: no in-place ReLU, no ReLU called twice."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, nn.ReLU):
            module.inplace = False
        convolutions = [name for name, _ in module.named_children() if name.startswith("conv")]
        if isinstance(getattr(module, "relu", None), nn.ReLU) and len(convolutions) > 1:
            module.relu = InTurn(len(convolutions))
    return model


def zennit_relevance(model: nn.Module, composite, x: Tensor, seed: Tensor) -> Tensor:
    """zennit's relevance of `x` for a seed on the output."""
    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x, seed)[1]


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


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item()


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
