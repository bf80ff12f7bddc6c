"""The same heatmap by gradient x input, by fxlrp and by its peers: functions without arguments, ready to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import VGG, DenseNet, ResNet
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

import fxlrp

from .measuring import Run
from .networks import CLASS, composite, model_of

__all__ = ["METHODS", "gradient_times_input", "method_of"]


def gradient_times_input(model: nn.Module, x: Tensor) -> Run:
    """The unit of all times."""

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, CLASS].sum(), leaf)
        return leaf.detach() * gradient

    return run


def with_fxlrp(model: nn.Module, x: Tensor, rule: str) -> Run:
    twin = fxlrp.convert(model, composite(rule), example_inputs=x)
    return lambda: twin(x, CLASS)


def with_zennit(model: nn.Module, x: Tensor, rule: str) -> Run:
    # Of DenseNet, zennit has no canonizer.
    made = {ResNet: ResNetCanonizer, VGG: VGGCanonizer, DenseNet: None}.get(type(model), SequentialMergeBatchNorm)
    attributor = Gradient(model=model, composite=composite(rule, [made()] if made else None))
    attributor.__enter__()
    seed = torch.eye(1000)[[CLASS] * len(x)]
    return lambda: attributor(x, seed)


def with_captum(model: nn.Module, x: Tensor, rule: str) -> Run | None:
    """None where captum cannot: residual networks, alpha2-beta1, layers that it has no rule for."""
    try:
        from captum.attr import LRP  # pyright: ignore[reportMissingImports]
        from captum.attr._utils import lrp_rules  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    rules = {
        "epsilon": lambda: lrp_rules.EpsilonRule(1e-6),
        "z+": lrp_rules.Alpha1_Beta0_Rule,
        "gamma": lambda: lrp_rules.GammaRule(0.25),
    }
    if rule not in rules or not isinstance(model, VGG):
        return None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = rules[rule]()  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    lrp = LRP(model)
    return lambda: lrp.attribute(x, target=CLASS)


def with_autolrp(model: nn.Module, x: Tensor, rule: str) -> Run | None:
    """None where autolrp cannot: alpha2-beta1. It takes 1 as the seed, and not the logit: the work is the same."""
    try:
        import autolrp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    rules = {"epsilon": "epsilon", "z+": "zplus", "gamma": ("gamma", {"gamma": 0.25})}
    if rule not in rules:
        return None
    config = autolrp.LRPConfig(rule={**autolrp.BASE, "ConvolutionBackward": rules[rule]}, eps=1e-6)

    def run() -> Tensor:
        wrapped = autolrp.tensor(x)
        model(wrapped)[0, CLASS].lrp(config=config)
        assert wrapped.relevance is not None
        return wrapped.relevance

    return run


METHODS: dict[str, Callable[[nn.Module, Tensor, str], Run | None]] = {
    "fxlrp": with_fxlrp,
    "zennit": with_zennit,
    "captum": with_captum,
    "autolrp": with_autolrp,
}


def method_of(name: str, network: str, x: Tensor, rule: str) -> Run | None:
    """A method on a model of its own: some change it."""
    return METHODS[name](model_of(network), x, rule)
