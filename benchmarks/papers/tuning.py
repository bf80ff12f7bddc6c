"""Rules tuned by gradient, beside the grid and TPE in the same time, judged on scenes that none of them saw."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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


def samplers(
    model: nn.Module, loader: Loader, metric: str, seed: int
) -> dict[str, tuple[Callable[[int], Study], Callable[[float], int]]]:
    """Each way of searching, by its number of trials; and how many there are of what fits into the time."""
    layers = each_layer(model, loader[0][0])

    def run(space: Space, sampler: str, trials: int | None) -> Study:
        return fxlrp.search(
            model, loader, space, metric, sampler=sampler, trials=trials, options=OPTIONS, seed=seed, bounds=BOUNDS
        )

    def grid(trials: int) -> Study:
        space, side = SPACES["tutorial"](BOUNDS), max(math.isqrt(trials), 2)
        ranges = {name: Range(each.low, each.high, steps=side) for name, each in space.ranges.items()}
        return run(Space(space.make, **ranges), "grid", None)

    of_tutorial = SPACES["tutorial"](BOUNDS)
    return {
        "grid, tutorial": (grid, lambda n: max(math.isqrt(int(n)), 2) ** 2),
        "tpe, tutorial": (lambda n: run(of_tutorial, "tpe", n), int),
        "tpe, each layer": (lambda n: run(layers, "tpe", n), int),
        "gradient, each layer": (lambda n: run(layers, "gradient", n), int),
    }


class Ended(NamedTuple):
    """A search, its trials, and the seconds of the processor that it took."""

    study: Study
    trials: int
    seconds: float


def timed(run: Callable[[int], Study], trials: int) -> Ended:
    start = time.process_time()
    return Ended(run(trials), trials, time.process_time() - start)


def within(run: Callable[[int], Study], whole: Callable[[float], int], seconds: float) -> Ended:
    """A search that takes so long."""
    few, many = timed(run, whole(4)), timed(run, whole(9))
    each = max((many.seconds - few.seconds) / (many.trials - few.trials), 1e-3)
    return timed(run, max(whole((seconds - few.seconds) / each + few.trials), few.trials))


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
            f"{name}, by {TUNED_BY[metric]}": within(*search, settings.seconds)
            for metric in TUNED_BY
            for name, search in samplers(model, tuned_on, metric, settings.how.seed).items()
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
    text="""Each way of searching gets the same time of the processor, and as many trials (steps of Adam) as fit into
it. Tuned on 40 scenes, by mu with masks or by the area under MoRF without any; then judged on other scenes (other
photographs; means with 95 % intervals), by these and by other metrics. In brackets, what mu and MoRF are on the
scenes that it was tuned on: what is better there than on the unseen ones, beyond what the default loses, is
overfitting. MoRF is better when lower.""",
    body=body,
)
