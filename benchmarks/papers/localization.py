"""Kohlbrenner et al. 2020, Table I: which heatmaps lie on the object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scene_networks import Training, trained
from torch import Tensor, nn
from zennit.composites import layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon

import fxlrp
from fxlrp.composites import by_layer, pattern_attribution
from fxlrp.evaluation import Table

from .section import Section, Settings, right, rows_of

__all__ = ["LOCALIZATION"]

NETWORKS = ("vgg", "vgg_plain")
SCENES = ("shapes", "focus", "pointing")
Z = "LRP-z"
MU, MU_W = "inside_total_ratio", "inside_total_ratio_weighted"
BATCHES = 4
"""Of 50 training scenes, that patterns are estimated from."""

PAPER = {
    "CMP: alpha2 + flat": 1.902,
    "CMP: alpha2": 1.797,
    "CMP: alpha1": 1.7044,
    "CMP: alpha1 + flat": 1.7043,
    "alpha2-beta1": 1.702,
    "guided backprop": 1.640,
    "alpha1-beta0": 1.609,
    "PatternAttribution": 1.591,
    Z: 1.347,
    "uniform": 1.0,
}
"""mu_w on ImageNet (VGG-16)."""


def everywhere(rule: Any) -> Composite:
    return by_layer([((0.0, 1.0), rule)], layer_map=layer_map_base())


def uniform(x: Tensor, target: Tensor) -> Tensor:
    """The paper's baseline: relevance spread evenly."""
    return torch.ones_like(x)


def analyzers(model: nn.Module, how: Training) -> dict[str, Any]:
    """The paper's rows, and ours."""
    images, labels, _ = how.scenes("train", 50 * BATCHES).tensors()
    return {
        "CMP: alpha2 + flat": "epsilon_alpha2_beta1_flat",
        "CMP: alpha2": "epsilon_alpha2_beta1",
        "CMP: alpha1": "epsilon_plus",
        "CMP: alpha1 + flat": "epsilon_plus_flat",
        "alpha2-beta1": everywhere(AlphaBeta(2, 1)),
        "guided backprop": "guided_backprop",
        "alpha1-beta0": everywhere(AlphaBeta(1, 0)),
        "PatternAttribution": pattern_attribution(model, list(zip(images.split(50), labels.split(50), strict=True))),
        Z: everywhere(Epsilon(1e-9)),
        "uniform": uniform,
    }


def body(settings: Settings) -> str:
    """For each network and kind of scenes, mu_w of each way; of the first, mu too."""
    tables = dict[str, Table]()
    for network in settings.networks or NETWORKS:
        model, count = trained(network, settings.how), settings.images or 300
        ways = analyzers(model, settings.how)
        for kind in SCENES:
            scenes = replace(settings.how, kind=kind).scenes("test", count)
            loader = right(model, *scenes.tensors(), count)
            table = fxlrp.compare(model, loader, ways, (MU_W, MU), examples=0)
            tables[f"{network}, {kind} ({len(table.rows)})"] = table
    name, first = next(iter(tables.items()))
    ranked = first.ranked(MU_W)
    rows = [
        [way, f"{PAPER[way]:.3f}", str(first.summary(MU, way)), *(cell(table, way) for table in tables.values())]
        for way in (*ranked, *(way for way in PAPER if way not in ranked))
    ]
    return rows_of(["", "mu_w in the paper", f"mu: {name}", *(f"mu_w: {each}" for each in tables)], rows)


def cell(table: Table, way: str) -> str:
    """A mean, with how it stands to LRP-z."""
    against = table.difference(MU_W, way, Z)
    return f"{table.summary(MU_W, way)}{'' if not against.p < 0.05 else ' +' if against.mean > 0 else ' -'}"


LOCALIZATION = Section(
    name="localization",
    text="""mu_w, the share of positive relevance on the object by the object's share of the image, with 95 %
intervals; beside it what the paper found with VGG-16 on ImageNet. VGG-16, an eighth as wide, with batch norms ("vgg")
and without, trained on shapes; test scenes that it gets right, in brackets how many. Focus: two of four tiles are of
the class; pointing: one. A sign says that a way is above (+) or below (-) LRP-z, p < 0.05 (Wilcoxon).""",
    body=body,
)
