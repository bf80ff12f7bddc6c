"""Errors of single precision, with all products computed and with the fewest."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

import fxlrp
from fxlrp.testing import trained

from .measuring import Figure
from .networks import CLASS, RULES, composite
from .section import Row, Section, Settings, verdict

__all__ = ["ROUNDING"]

NETWORKS = ("resnet18", "vgg11", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny")
NETWORKS += ("squeezenet1_1", "shufflenet_v2_x1_0", "regnet_y_400mf")


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.size or 96
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for network in settings.networks or NETWORKS:
        torch.manual_seed(0)
        exact = trained(torchvision.models.get_model(network)).eval().requires_grad_(False)
        single = copy.deepcopy(exact).float()
        for rule in RULES:
            relevance = lambda model, x, optimize, rule=rule: (
                fxlrp.convert(model, composite(rule), optimize=optimize)(x, CLASS).relevance
            )
            expected = relevance(exact, x, False)
            plain, fewest = (error(relevance(single, x.float(), each), expected) for each in (False, True))
            yield {
                "network": network,
                "composite": rule,
                "float64, fewest": f"{error(relevance(exact, x, True), expected):.0e}",
                "float32, all": f"{plain:.1e}",
                "float32, fewest": f"{fewest:.1e}",
                "ratio": Figure(fewest / plain),
                "must reach": verdict(Figure(fewest / plain), 3),
            }


ROUNDING = Section(
    name="rounding",
    text="""The largest error of the relevance against float64 with all products computed, relative to the largest
relevance; networks with random weights, statistics and biases, 2 x 96 x 96.""",
    rows=rows,
    once=True,
)
