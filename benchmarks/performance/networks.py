"""What is measured: networks with weights as training leaves them, and composites."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import nn
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.core import BasicHook
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from zennit.types import Convolution

__all__ = ["CLASS", "NETWORKS", "RULES", "composite", "images", "model_of"]

NETWORKS = ("resnet50", "vgg16", "densenet121", "efficientnet_b0", "convnext_tiny")

RULES: dict[str, Callable[[], BasicHook]] = {
    "epsilon": lambda: Epsilon(1e-6),
    "z+": ZPlus,
    "gamma": lambda: Gamma(0.25),
    "alpha2-beta1": lambda: AlphaBeta(2, 1),
}
"""Of convolutions; fully connected layers have epsilon."""

CLASS = 7


def composite(rule: str, canonizers: list | None = None) -> LayerMapComposite:
    layers = [(Convolution, RULES[rule]()), (nn.Linear, Epsilon(1e-6))]
    return LayerMapComposite([*layer_map_base(), *layers], canonizers=canonizers)


def model_of(name: str) -> nn.Module:
    """A network of torchvision with random weights, statistics and biases, in evaluation mode."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_(0, 0.2)
    return model


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
