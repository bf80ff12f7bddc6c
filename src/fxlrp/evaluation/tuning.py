"""Rules tuned by gradient: the numbers that a composite's rules hold go down the gradient of a metric's smooth form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import InputError, MaskError
from ..metrics.localization import inside_total_ratio
from ..metrics.scoring import output_of
from .objective import Data, Objective
from .several import Several
from .space import Space

__all__ = ["SMOOTH", "Smooth", "joined", "positions", "smooth_flipping", "smooth_localization", "tuned"]

Smooth = Callable[[nn.Module, Data, Tensor], Tensor]
"""``(model, data, relevance) -> loss``: a number, less is better, that heatmaps can be improved by."""

PATCH = 8
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
SHARPNESS = 8.0


def smooth_localization(model: nn.Module, data: Data, relevance: Tensor) -> Tensor:
    """One minus the share of positive relevance on the object, mu (Kohlbrenner et al. 2020, eq. 5)."""
    if data.mask is None:
        raise MaskError("to tune rules towards localization takes masks: the loader has to give (x, label, mask)")
    return 1 - inside_total_ratio(relevance, data.mask).nanmean()


def smooth_flipping(model: nn.Module, data: Data, relevance: Tensor) -> Tensor:
    """The class's probability without the most relevant patches, minus that without the least relevant ones.

    As pixel flipping, with a mask that is soft at its edge: a patch is taken away by a sigmoid of how far its relevance
    lies above (below) the quantile of a share, in deviations of all patches; in its place stands the image's colour.
    """
    x = data.x
    patches = nn.functional.avg_pool2d(relevance.sum(1, keepdim=True), PATCH, ceil_mode=True)
    flat = patches.flatten(1)
    scaled = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + torch.finfo(flat.dtype).tiny)
    mean = x.mean((2, 3), keepdim=True)
    loss = x.new_zeros(())
    for share in SHARES:
        for sign in (1, -1):
            edge = torch.quantile(sign * scaled, 1 - share, dim=1, keepdim=True)
            gone = torch.sigmoid(SHARPNESS * (sign * scaled - edge)).view_as(patches)
            gone = nn.functional.interpolate(gone, scale_factor=PATCH)[..., : x.shape[2], : x.shape[3]].to(x.dtype)
            chance = output_of(model(x + gone * (mean - x))).softmax(1).gather(1, data.target[:, None])
            loss = loss + sign * chance.mean() / len(SHARES)
    return loss


SMOOTH: dict[str, Smooth] = {"inside_total_ratio": smooth_localization, "flipping": smooth_flipping}
"""By the metric that each stands for; "flipping" for all of pixel flipping."""


def positions(space: Space) -> dict[str, Tensor]:
    """Where tuning starts: the middle of each range, by its logarithm."""
    return {
        name: torch.tensor((math.log(each.low) + math.log(each.high)) / 2, dtype=torch.float64)
        for name, each in space.ranges.items()
    }


def tuned(
    objective: Objective,
    space: Space,
    metric: str | Smooth,
    *,
    steps: Iterable[int],
    rate: float,
    alike: float,
) -> list[tuple[dict[str, float], float]]:
    """The numbers at each step, and the loss there.

    Parameters
    ----------
    objective : Objective
        Of the data.
    space : Space
        Ranges alone, all of them logarithmic: their logarithms are tuned, and held within.
    metric : str or callable
        A name of `SMOOTH`, or a loss of one's own.
    steps : iterable of int
        Of Adam, each over all data, as long as it gives numbers.
    rate : float
        Its learning rate, of logarithms.
    alike : float
        How strongly neighbouring parameters, in the order of the space, are drawn together: the weight of the mean
        absolute difference of their logarithms, which leaves few distinct values.

    Raises
    ------
    InputError
        If the space has choices or ranges that are not logarithmic, or there is no smooth form of the metric.
    """
    if space.choices or any(not each.log for each in space.ranges.values()):
        raise InputError("by gradient, logarithmic ranges alone are tuned: the space has choices, or other ranges")
    loss_of = metric if callable(metric) else SMOOTH.get("flipping" if metric.startswith("flipping") else metric)
    if loss_of is None:
        raise InputError(f"{metric} has no smooth form to go down: tune by {', '.join(SMOOTH)}, or give a loss")
    knobs, logs = space.knobs(), {name: each.requires_grad_() for name, each in positions(space).items()}
    explainer = objective.explainer(space.composite(knobs), canonized=True)
    leaves = list(logs.values())
    optimizer = torch.optim.Adam(leaves, lr=rate)
    found: list[tuple[dict[str, float], float]] = []
    for _ in steps:
        _write(knobs, logs)
        optimizer.zero_grad()
        loss = _loss(objective, explainer, loss_of, knobs)
        found.append(({name: knob.item() for name, knob in knobs.items()}, loss))
        for leaf, knob in zip(leaves, knobs.values(), strict=True):
            # d/d log(v) = v d/dv.
            leaf.grad = torch.zeros_like(leaf) if knob.grad is None else knob.grad * knob.detach()
            knob.grad = None
        with torch.enable_grad():
            apart = _apart(logs)
            if apart:
                (alike * torch.stack(apart).abs().mean()).backward()
        optimizer.step()
        with torch.no_grad():
            for leaf, each in zip(leaves, space.ranges.values(), strict=True):
                leaf.clamp_(math.log(each.low), math.log(each.high))
    return found


def _loss(objective: Objective, explainer: Several, loss_of: Smooth, knobs: Mapping[str, Tensor]) -> float:
    """The loss over all data; the knobs get its gradient."""
    total, images = 0.0, sum(len(data.x) for data in objective.data)
    for data in objective.data:
        with torch.enable_grad():
            loss = loss_of(objective.model, data, objective.relevance(explainer, data)) * (len(data.x) / images)
            loss.backward(inputs=list(knobs.values()))
        total += loss.item()
    return total


def _write(knobs: Mapping[str, Tensor], logs: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, knob in knobs.items():
            knob.copy_(logs[name].exp())


def _apart(logs: Mapping[str, Tensor]) -> list[Tensor]:
    """How far neighbours are apart: parameters of one name that end in the numbers of layers, gamma_0, gamma_1."""
    return [logs[b] - logs[a] for a, b in pairwise(logs) if _are_neighbours(a, b)]


def _are_neighbours(one: str, next_one: str) -> bool:
    stem = one.rpartition("_")[0]
    return stem != "" and stem == next_one.rpartition("_")[0]


def joined(values: Mapping[str, float], within: float = 0.05) -> dict[str, float]:
    """Neighbours that are nearly alike, by their geometric mean: few distinct values."""
    groups: list[list[str]] = []
    for name in values:
        if (
            groups
            and _are_neighbours(groups[-1][-1], name)
            and abs(math.log(values[name] / values[groups[-1][-1]])) < within
        ):
            groups[-1].append(name)
        else:
            groups.append([name])
    mean = lambda group: math.exp(sum(math.log(values[name]) for name in group) / len(group))
    return {name: mean(group) for group in groups for name in group}
