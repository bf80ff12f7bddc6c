"""Pahde et al. 2023: heatmaps with canonization and without it, by six kinds of metrics."""

from __future__ import annotations

import torch
from scene_networks import trained
from scenery import COLOURS
from scenes import Scenes, Several
from torch import Tensor, nn
from zennit.composites import layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, ZBox

import fxlrp
from fxlrp.composites import by_layer
from fxlrp.evaluation import Table

from .section import Section, Settings, right, rows_of

__all__ = ["CANONIZATION"]

METRICS = {
    "sparseness": "sparseness",
    "faithfulness_correlation": "correlation",
    "flipping_aopc_morf": "AOPC",
    "relevance_mass_accuracy": "RMA",
    "relevance_rank_accuracy": "RRA",
    "random_logit": "random logit",
    "sensitivity_mean": "mean sensitivity",
    "sensitivity_max": "max sensitivity",
}
"""What a table calls them, as the columns of PAPER."""

MEASURED = ("flipping", *(name for name in METRICS if not name.startswith("flipping")))
OPTIONS = {"flipping": {"patch": 8, "fill": "mean", "orders": ("morf",)}}

EB, ALPHA_BETA, EPSILON_PLUS, CUSTOM = "EB", "alpha2-beta1", "epsilon-plus", "custom"

Pairs = tuple[float | None, ...]

PAPER: dict[str, dict[str, tuple[Pairs, Pairs]]] = {
    "vgg": {
        EB: ((0.57, 0.06, 0.35, 0.68, 0.70, 1.00, 0.22, 0.23), (0.59, 0.06, 0.36, 0.70, 0.71, 1.00, 0.18, 0.20)),
        ALPHA_BETA: (
            (0.70, 0.05, 0.38, 0.65, 0.63, 0.59, 0.31, 0.34),
            (0.84, 0.03, 0.39, 0.77, 0.67, 0.66, 0.34, 0.37),
        ),
        EPSILON_PLUS: (
            (0.51, 0.09, 0.36, 0.64, 0.69, 0.57, 0.19, 0.21),
            (0.62, 0.08, 0.39, 0.71, 0.71, 0.54, 0.21, 0.24),
        ),
    },
    "resnet": {
        EB: ((0.55, 0.03, 0.29, 0.66, 0.68, 0.97, 0.16, 0.18), (0.57, 0.04, 0.29, 0.67, 0.69, 0.97, 0.14, 0.15)),
        ALPHA_BETA: (
            (0.67, 0.04, 0.32, 0.69, 0.65, 0.65, 0.21, 0.22),
            (0.76, 0.03, 0.32, 0.75, 0.67, 0.61, 0.26, 0.28),
        ),
        EPSILON_PLUS: (
            (0.51, 0.04, 0.30, 0.65, 0.69, 0.70, 0.14, 0.15),
            (0.58, 0.04, 0.30, 0.69, 0.70, 0.70, 0.15, 0.16),
        ),
    },
    "densenet": {
        EB: ((0.66, 0.01, 0.15, 0.53, 0.58, 0.75, 0.57, 1.05), (0.62, 0.03, 0.31, 0.73, 0.72, 0.89, 0.17, 0.19)),
        ALPHA_BETA: (
            (0.82, 0.01, 0.25, 0.68, 0.64, 0.40, 0.65, 1.30),
            (0.81, 0.02, 0.33, 0.81, 0.71, 0.44, 0.28, 0.31),
        ),
        EPSILON_PLUS: (
            (0.67, 0.01, 0.26, 0.71, 0.70, 0.39, 0.63, 1.23),
            (0.66, 0.03, 0.33, 0.77, 0.74, 0.48, 0.19, 0.21),
        ),
    },
    "efficientnet": {
        EB: ((0.85, 0.00, 0.24, 0.79, 0.73, 0.99, 0.42, 0.48), (0.70, 0.00, 0.27, 0.72, 0.67, 1.00, 0.33, 0.37)),
        ALPHA_BETA: (
            (0.75, 0.00, 0.29, 0.79, 0.72, 0.57, 0.48, 0.52),
            (0.77, 0.00, 0.20, 0.73, 0.65, 0.51, 0.49, 0.54),
        ),
        EPSILON_PLUS: (
            (0.50, 0.01, 0.28, 0.69, 0.75, 0.61, 0.12, 0.13),
            (0.73, 0.00, 0.30, 0.79, 0.75, 0.65, 0.21, 0.23),
        ),
    },
    "relation": {
        EB: ((0.92, None, 0.50, 0.56, 0.66, 1.00, None, 1.34), (0.79, None, 0.50, 0.38, 0.63, 1.00, None, 1.29)),
        CUSTOM: ((0.69, None, 0.52, 0.34, 0.71, 0.99, None, 1.19), (0.82, None, 0.52, 0.46, 0.71, 0.99, None, 1.24)),
    },
}
"""Without and with canonization: ILSVRC2017 with VGG-16, ResNet-18, DenseNet-121, EfficientNet-B0 (tables A.13, A.14,
A.18 and A.16), CLEVR-XAI with a Relation Network (A.20, simple questions, max-norm pooling: one metric of faithfulness
and one of robustness, put here as AOPC and max sensitivity)."""


class Asked(nn.Module):
    """A Relation Network that is asked one question only."""

    def __init__(self, network: nn.Module, colour: str) -> None:
        super().__init__()
        self.network = network
        self.question: Tensor
        self.register_buffer("question", torch.tensor([[float(name == colour) for name in COLOURS]]))

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image, self.question.expand(len(image), -1))


def subject(network: str, settings: Settings, count: int) -> tuple[nn.Module, Scenes]:
    """A trained network, and test scenes for it."""
    model, how = trained(network, settings.how), settings.how
    if network != "relation":
        return model, how.scenes("test", count)
    return Asked(model, "red").eval(), Several("test", count, size=how.size, seed=how.seed, colour="red")


def composites(network: str) -> dict[str, Composite | str]:
    """The paper's (table A.1)."""
    positive = AlphaBeta(1, 0)
    if network == "relation":
        return {
            EB: "excitation_backprop",
            CUSTOM: by_layer([((0.0, 1.0), positive)], first=ZBox(0.0, 1.0), layer_map=layer_map_base()),
        }
    return {EB: "excitation_backprop", ALPHA_BETA: "epsilon_alpha2_beta1", EPSILON_PLUS: "epsilon_plus"}


def sign(table: Table, metric: str, way: str) -> str:
    """Where a metric goes by canonization; = where Wilcoxon's test does not see it."""
    found = table.difference(metric, way, f"{way}, not canonized")
    return "=" if not found.p < 0.05 else "+" if found.mean > 0 else "-"


def papers_sign(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return "=" if before == after else "+" if after > before else "-"


def body(settings: Settings) -> str:
    """A row for each network and composite, and how often signs agree."""
    rows, alike = [], {"the same": 0, "the other": 0, "none": 0}
    for network in settings.networks or PAPER:
        count = settings.images or 100
        model, scenes = subject(network, settings, 2 * count)
        loader = right(model, *scenes.tensors(), count)
        table = fxlrp.compare(
            model, loader, composites(network), MEASURED, canonize=(False, True), options=OPTIONS, examples=0
        )
        for way, pairs in PAPER[network].items():
            cells = []
            for metric, before, after in zip(METRICS, *pairs, strict=True):
                ours, theirs = sign(table, metric, way), papers_sign(before, after)
                means = (f"{table.summary(metric, name).mean:.2f}" for name in (f"{way}, not canonized", way))
                cells.append(f"{' → '.join(means)} {ours}{f' ({theirs})' if theirs else ''}")
                if theirs in ("+", "-"):
                    alike["the same" if ours == theirs else "none" if ours == "=" else "the other"] += 1
            rows.append([f"{network} ({len(table.rows)})", way, *cells])
    found = rows_of(["network", "composite", *METRICS.values()], rows)
    counted = ", ".join(f"{name} in {number}" for name, number in alike.items())
    return f"{found}\n\nOf {sum(alike.values())} signs of the paper's, ours is {counted}."


CANONIZATION = Section(
    name="canonization",
    text="""Without canonization → with it: means over test scenes that the network gets right (in brackets, how
many). The sign is where the metric goes (= where Wilcoxon's test over scenes has p >= 0.05), in brackets the paper's,
of the larger networks of the same family. Sparseness, correlation, AOPC, RMA and RRA are better when higher, the
others when lower.""",
    body=body,
)
