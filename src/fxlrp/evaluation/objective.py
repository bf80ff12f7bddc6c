"""Scores of a composite over data that is read once: what a search asks for at each trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from zennit.core import Composite

from ..composites import Bounds
from ..errors import InputError
from ..metrics import ABOUT
from ..wording import did_you_mean
from .batches import batches
from .compare import classes_in
from .identity import described
from .measures import MEASURES, Case, Found, measures_of, no_masks
from .several import Several

__all__ = ["Data", "Direction", "Objective", "directions_of"]

_WAY = "trial"

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True, eq=False)
class Data:
    """A batch, on the model's device: images, classes, masks or None."""

    x: Tensor
    target: Tensor
    mask: Tensor | None


def directions_of(metrics: Sequence[str]) -> list[Direction]:
    """ "maximize" or "minimize", of each metric.

    Raises
    ------
    InputError
        If there is no such metric.
    """
    for name in metrics:
        if name not in ABOUT:
            raise InputError(
                f"there is no metric {name!r} to search by{did_you_mean(name, ABOUT)} There are: {', '.join(ABOUT)}"
            )
    return ["maximize" if ABOUT[name].better == "higher" else "minimize" for name in metrics]


def _measure_of(metric: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The measure that finds a metric, and its options."""
    if metric.startswith("flipping_"):
        return "flipping", {"orders": (metric.rpartition("_")[2],), **options}
    if metric not in MEASURES:
        raise InputError(f"{metric} is not measured image by image: search by {', '.join(MEASURES)}")
    return metric, dict(options)


class Objective:
    """The means of metrics over all images of a loader.

    Parameters
    ----------
    model : nn.Module
        A classifier in evaluation mode.
    loader : iterable or Dataset
        As of `fxlrp.compare`; it is read once, and kept.
    metrics : sequence of str
        Of `fxlrp.metrics.ABOUT`.
    options : dict
        Keyword arguments of metrics, by name.
    batch_size : int
        Of a data set.
    bounds : tuple
        As of `fxlrp.compare`.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any] | Dataset[Any],
        metrics: Sequence[str],
        options: Mapping[str, Mapping[str, Any]],
        *,
        batch_size: int,
        bounds: Bounds,
    ) -> None:
        self.metrics, self.model, self._bounds = list(metrics), model, bounds
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.data = [
            Data(batch.x, classes_in(model, batch, None), batch.mask) for batch in batches(loader, device, batch_size)
        ]
        if not self.data:
            raise InputError("the loader gave no images")
        for metric in self.metrics:
            if ABOUT[metric].needs == "mask" and any(data.mask is None for data in self.data):
                raise no_masks(metric)
        self.about = described(options)
        self._measured = []
        for metric in self.metrics:
            name, own = _measure_of(metric, options.get(metric, options.get(metric.partition("_")[0], {})))
            self._measured.append(measures_of([name], {name: own})[name])

    def explainer(self, composite: Composite, *, canonized: bool) -> Several:
        """What explains by a composite, and can be asked again when its rules hold other numbers."""
        ways = {_WAY: composite}
        return Several(self.model, ways, canonized=canonized, bounds=self._bounds)

    def scores(self, explainer: Several) -> list[float]:
        """The mean of each metric over the images of which there is one; NaN if there is none."""
        found: list[list[Tensor]] = [[] for _ in self.metrics]
        for data in self.data:
            relevance = explainer(data.x, data.target)[_WAY]
            case = Case(self.model, data.x, relevance, data.target, data.mask, explainer.alone(_WAY))
            for values, metric, measure in zip(found, self.metrics, self._measured, strict=True):
                measured: Found = measure(case)
                values.append(measured.values[metric].double().cpu())
        return [float(torch.cat(values).nanmean()) for values in found]

    def relevance(self, explainer: Several, data: Data) -> Tensor:
        """The heatmaps of a batch, with a derivative with respect to the numbers that rules hold."""
        return explainer.differentiable(data.x, data.target)[_WAY]
