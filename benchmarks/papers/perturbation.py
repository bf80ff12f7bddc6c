"""Bermudez Schettino 2022, chapter 4: areas under the curves of pixel flipping over a grid of rules' numbers."""

from __future__ import annotations

from scene_networks import trained
from torch import nn

import fxlrp
from fxlrp.composites import decreasing_gamma, tutorial
from fxlrp.evaluation import SPACES, Range, Space, Study

from .section import Loader, Section, Settings, right, rows_of

__all__ = ["PERTURBATION"]

NETWORKS = ("vgg_plain",)
BOUNDS = (0.0, 1.0)
ORDERS = ("morf", "random", "lerf")
METRICS = [f"flipping_auc_{order}" for order in ("morf", "lerf")]
PAPER = {
    "tutorial": "gamma 0.1 to 1, epsilon 0.4 to 1",
    "decreasing_gamma": "gammas 0.05 to 0.3",
}
"""Where it found the best MoRF, section 4.3."""

OPTIONS = {"flipping": {"patch": 8, "steps": "log", "fill": "inpaint", "bounds": BOUNDS}}


def near(study: Study, metric: str, share: float = 0.05) -> str:
    """Where a metric is within a share of its range from the best."""
    at = list(study.metrics).index(metric)
    scores = [trial.scores[at] for trial in study.trials]
    best, within = study.best_by(metric).scores[at], share * (max(scores) - min(scores))
    close = [trial.values for trial in study.trials if abs(trial.scores[at] - best) <= within]
    ends = {name: (min(v[name] for v in close), max(v[name] for v in close)) for name in study.space.ranges}
    return ", ".join(f"{name} {low:.2g} to {high:.2g}" for name, (low, high) in ends.items())


def grid_of(name: str, model: nn.Module, loader: Loader, settings: Settings) -> Study:
    """The paper's grid, with its picture."""
    space = SPACES[name](BOUNDS)
    ranges = {key: Range(each.low, each.high, steps=settings.trials) for key, each in space.ranges.items()}
    space = Space(space.make, **ranges)
    study = fxlrp.search(model, loader, space, METRICS, sampler="grid", options=OPTIONS, bounds=BOUNDS)
    study.save(settings.pictures / f"contour_{name}.png")
    return study


def body(settings: Settings) -> str:
    """The grids of both composites, and three orders of five ways."""
    (network,) = settings.networks or NETWORKS
    model, count = trained(network, settings.how), settings.images or 40
    loader = right(model, *settings.how.scenes("test", 2 * count).tensors(), count)
    studies = {name: grid_of(name, model, loader, settings) for name in PAPER}
    rows = []
    for name, study in studies.items():
        for at, (order, metric) in enumerate(zip(("MoRF", "LeRF"), METRICS, strict=True)):
            scores = [trial.scores[at] for trial in study.trials]
            best = ", ".join(f"{key} {value:.2g}" for key, value in study.best_by(metric).values.items())
            found = f"{min(scores):.3f} to {max(scores):.3f}", best, near(study, metric)
            rows.append([name, order, *found, PAPER[name] if order == "MoRF" else "near 0"])
    head = "composite", "order", "AUC over the grid", "best at", "within 5 % of its range at", "the paper's best"
    grids = rows_of(head, rows)
    ways = {
        "gradient x input": "gradient_times_input",
        "tutorial": tutorial(*BOUNDS),
        "tutorial, the grid's best": studies["tutorial"].composite,
        "decreasing_gamma": decreasing_gamma(*BOUNDS),
        "decreasing_gamma, the grid's best": studies["decreasing_gamma"].composite,
    }
    options = {"flipping": {**OPTIONS["flipping"], "orders": ORDERS}}
    table = fxlrp.compare(model, loader, ways, ("flipping",), options=options, bounds=BOUNDS, examples=0)
    auc = lambda order, way: str(table.summary(f"flipping_auc_{order}", way))
    orders = rows_of(["", "MoRF", "random", "LeRF"], [[way, *(auc(o, way) for o in ORDERS)] for way in ways])
    return f"{grids}\n\n{orders}"


PERTURBATION = Section(
    name="perturbation",
    text="""Areas under the curves of the logit over the share of flipped pixels (patches of 8 x 8, inpainted, 1, 2,
4, ... of them), means over test scenes that the network gets right; VGG-16 without batch norms, an eighth as wide,
trained on shapes. Grids of the rules' numbers from 0.001 to 10, evenly spread by their logarithms; of
`decreasing_gamma`, "early" is the gamma of layers up to half of the depth, "late" that of the others.""",
    body=body,
)
