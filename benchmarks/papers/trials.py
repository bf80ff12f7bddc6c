"""A search's trials, beside as many conversions by zennit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from scene_networks import trained
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon, Gamma
from zennit.torchvision import VGGCanonizer
from zennit.types import Convolution, Linear

import fxlrp
from fxlrp.evaluation import Range, Space
from fxlrp.rules import stabilizers

from .section import Loader, Section, Settings, right, rows_of

__all__ = ["TRIALS"]

NETWORKS = ("vgg",)
RANGE = (1e-3, 10.0)


def searched(gamma: Any, epsilon: Any) -> Composite:
    """Gamma in convolutions, epsilon in dense layers."""
    sign: Any = stabilizers["sign"](epsilon)
    return LayerMapComposite([(Convolution, Gamma(gamma)), (Linear, Epsilon(sign))])


def by_fxlrp(model: nn.Module, loader: Loader, side: int) -> float:
    """Seconds of a search by a metric that takes next to no time, from the first conversion to the end."""
    space = Space(searched, gamma=Range(*RANGE, steps=side), epsilon=Range(*RANGE, steps=side))
    start = time.process_time()
    fxlrp.search(model, loader, space, "inside_total_ratio", sampler="grid")
    return time.process_time() - start


def by_zennit(model: nn.Module, loader: Loader, values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds of registering composites, and of their heatmaps."""
    registering, heatmaps = 0.0, 0.0
    for gamma, epsilon in values:
        start = time.process_time()
        rules: Any = [(Convolution, Gamma(gamma)), (Linear, Epsilon(epsilon))]
        composite = LayerMapComposite(rules, canonizers=[VGGCanonizer()])
        composite.register(model)
        registered = time.process_time()
        for x, labels, _ in loader:
            leaf = x.clone().requires_grad_()
            output = model(leaf)
            seed = torch.zeros_like(output).scatter_(1, labels[:, None], output.gather(1, labels[:, None]).detach())
            torch.autograd.grad(output, leaf, seed)
        done = time.process_time()
        composite.remove()
        registering += registered - start + time.process_time() - done
        heatmaps += done - registered
    return registering, heatmaps


def body(settings: Settings) -> str:
    """A row for each network."""
    rows = []
    for network in settings.networks or NETWORKS:
        model, count = trained(network, settings.how), settings.images or 50
        loader = right(model, *settings.how.scenes("test", 2 * count).tensors(), count)
        grid = Range(*RANGE, steps=settings.trials).grid()
        ours = by_fxlrp(model, loader, settings.trials)
        registering, heatmaps = by_zennit(model, loader, [(gamma, epsilon) for gamma in grid for epsilon in grid])
        images = sum(len(x) for x, _, _ in loader)
        numbers = ours, registering, heatmaps, (registering + heatmaps) / ours
        rows.append([network, str(len(grid) ** 2), str(images), *(f"{each:.3g}" for each in numbers)])
    head = ["network", "trials", "images", "fxlrp, s", "zennit: conversions, s", "its heatmaps, s", "zennit / fxlrp"]
    return rows_of(head, rows)


TRIALS = Section(
    name="trials",
    text="""A search of gamma in convolutions and epsilon in dense layers, by mu, from the first conversion to the
last trial; beside it as many composites registered with zennit (with its VGG canonizer), their heatmaps, and their
removal. Seconds of the processor.""",
    body=body,
)
