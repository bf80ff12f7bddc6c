"""Rules tuned by gradient, beside the grid and TPE in the same time, judged on scenes that none of them saw."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from scene_networks import trained
from torch import nn
from zennit.rules import Epsilon

import fxlrp
from fxlrp.composites import by_layer, tutorial
from fxlrp.evaluation import SPACES, Range, Space, Study, each_layer

from .section import Loader, Section, Settings, loader_of, right, rows_of

__all__ = ["TUNING"]

NETWORKS = ("vgg", "efficientnet")
BOUNDS = (0.0, 1.0)
TUNED_BY = {"inside_total_ratio": "mu", "flipping_auc_morf": "MoRF"}
JUDGED = ("inside_total_ratio", "relevance_rank_accuracy", "sparseness", "flipping")
SHOWN = {
    "inside_total_ratio": "mu",
    "relevance_rank_accuracy": "RRA",
    "sparseness": "sparseness",
    "flipping_auc_morf": "MoRF",
    "flipping_auc_lerf": "LeRF",
}
OPTIONS = {"flipping": {"patch": 8, "fill": "mean", "score": "probability"}}


class Ended(NamedTuple):
    """A search, its trials (of the gradient, steps), and the seconds that it took."""

    study: Study
    trials: int
    seconds: float


def searches(model: nn.Module, loader: Loader, metric: str, settings: Settings) -> Iterator[tuple[str, Ended]]:
    """Each way of searching, for the same time."""
    layers, two = each_layer(model, loader[0][0]), SPACES["tutorial"](BOUNDS)
    ranges = {name: Range(each.low, each.high, steps=settings.trials) for name, each in two.ranges.items()}
    ways = {
        "grid, tutorial": (Space(two.make, **ranges), "grid"),
        "tpe, tutorial": (two, "tpe"),
        "tpe, each layer": (layers, "tpe"),
        "gradient, each layer": (layers, "gradient"),
    }
    for name, (space, sampler) in ways.items():
        start = time.monotonic()
        study = fxlrp.search(
            model,
            loader,
            space,
            metric,
            sampler=sampler,
            timeout=settings.seconds,
            options=OPTIONS,
            seed=settings.how.seed,
            bounds=BOUNDS,
        )
        yield name, Ended(study, max(trial.number for trial in study.trials) + 1, time.monotonic() - start)


def body(settings: Settings) -> str:
    """For each network and metric, each way: its trials, its time, and its heatmaps on other scenes."""
    rows = []
    for network in settings.networks or NETWORKS:
        model, count = trained(network, settings.how), settings.images or 200
        # The network saw the photographs of these scenes, and the judged ones are of others.
        seen = replace(settings.how, seed=settings.how.seed + 1).scenes("train", min(count, 40)).tensors()
        tuned_on = loader_of(*seen, batch=20)
        unseen = right(model, *settings.how.scenes("test", 2 * count).tensors(), count)
        ended = {
            f"{name}, by {TUNED_BY[metric]}": search
            for metric in TUNED_BY
            for name, search in searches(model, tuned_on, metric, settings)
        }
        ways: dict[str, Any] = {
            "the default": None,
            "tutorial": tutorial(*BOUNDS),
            "epsilon 1": by_layer([((0.0, 1.0), Epsilon(1.0))]),
            **{name: search.study.composite for name, search in ended.items()},
        }
        judged, known = (
            fxlrp.compare(model, loader, ways, JUDGED, options=OPTIONS, bounds=BOUNDS, examples=0)
            for loader in (unseen, tuned_on)
        )
        for way in ways:
            search = ended.get(way)
            effort = ["-", "-"] if search is None else [str(search.trials), f"{search.seconds:.0f}"]
            here = {metric: f" ({known.summary(metric, way).mean:.3g})" for metric in TUNED_BY}
            rows.append(
                [network, way, *effort, *(f"{judged.summary(name, way)}{here.get(name, '')}" for name in SHOWN)]
            )
    return rows_of(["network", "way", "trials", "s", *SHOWN.values()], rows)


TUNING = Section(
    name="tuning",
    text="""Each way of searching gets the same time (`timeout=`), and as many trials (steps of Adam) as fit into
it. Tuned on 40 scenes, by mu with masks or by the area under MoRF without any; then judged on other scenes (other
photographs; means with 95 % intervals), by these and by other metrics. In brackets, what mu and MoRF are on the
scenes that it was tuned on: what is better there than on the unseen ones, beyond what the default loses, is
overfitting. MoRF is better when lower.""",
    body=body,
)
