"""The operations of a heatmap as derived by hand from the network and the rule: docs/performance.md says how."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["derived"]


class Place(NamedTuple):
    """What there is to know of a layer.

    Attributes
    ----------
    non_negative : bool
        Whether its inputs are non-negative, as behind a ReLU.
    shut : bool
        Whether it stands in front of a ReLU whose readers share relevance in proportion to its value.
    """

    non_negative: bool = False
    shut: bool = False


PLACES: dict[str, dict[str, Place]] = {
    "resnet50": {
        r"conv1": Place(shut=True),
        r"layer.*\.conv[12]": Place(non_negative=True, shut=True),
        # A sum stands in front of the ReLU.
        r"layer.*\.(conv3|downsample\.0)": Place(non_negative=True),
    },
    "vgg16": {r"features\.0": Place(shut=True), r"features\..*": Place(non_negative=True, shut=True)},
    "densenet121": {
        # Behind a ReLU whose batch norm is a part of the next layer: it clips at any value.
        r".*\.conv1": Place(shut=True),
        r".*\.conv2": Place(non_negative=True),
        r".*": Place(),
    },
    "efficientnet_b0": {r".*": Place()},
    "convnext_tiny": {r".*": Place()},
}
"""By module path, the first that matches."""

FEW = 16
"""Of fewer inputs than this, differences are not taken (`fxlrp.relevance.rewrites.fewest_products`)."""


def products_of(rule: str, place: Place, inputs: int) -> int:
    """How often a layer's products are computed beside the forward pass, transposes included."""
    if rule == "epsilon":
        return 1
    if place.non_negative:
        return {"z+": 2, "gamma": 2 if place.shut else 3, "alpha2-beta1": 3}[rule]
    if inputs >= FEW:
        return 3
    return {"z+": 4, "gamma": 4 if place.shut else 8, "alpha2-beta1": 8}[rule]


def by_layer(model: nn.Module, x: Tensor) -> Mapping[str, int]:
    """The operations of each layer's forward pass."""
    found: dict[str, int] = {}

    def count(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            found[path] = 2 * output.numel() * weight[0].numel()

        return hook

    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [module.register_forward_hook(count(path)) for path, module in layers.items()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def derived(name: str, model: nn.Module, x: Tensor, rule: str) -> int | None:
    """The operations of a heatmap, by hand; None of a network that nobody has derived them for."""
    if name not in PLACES:
        return None
    modules, total = dict(model.named_modules()), 0
    for path, forward in by_layer(model, x).items():
        # Squeeze and excitation makes a gate: relevance goes by it, as by a constant.
        if re.fullmatch(r".*\.fc[12]", path):
            total += forward
        elif isinstance(modules[path], nn.Linear):
            total += 2 * forward
        else:
            place = next(found for pattern, found in PLACES[name].items() if re.fullmatch(pattern, path))
            weight = modules[path].weight
            assert isinstance(weight, Tensor)
            total += forward * (1 + products_of(rule, place, weight[0].numel()))
    return total
