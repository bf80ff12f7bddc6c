"""The metrics of `fxlrp.metrics` by name, each as what a table can hold of a batch: numbers, one for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import metrics
from ..errors import InputError, MaskError
from ..given import check_options
from ..metrics.inpainting import opencv
from ..wording import did_you_mean
from .several import Explainer

__all__ = ["MEASURES", "Case", "Found", "Measure", "Metric", "measures_of", "no_masks"]


@dataclass(frozen=True, eq=False)
class Case:
    """A batch with its heatmaps.

    Attributes
    ----------
    model : nn.Module
        The model.
    x, relevance : Tensor
        Shape (B, C, H, W).
    target : Tensor
        The classes, (B,).
    mask : Tensor or None
        Shape (B, 1, H, W): what relevance should lie on.
    explain : callable
        Makes other heatmaps by the same method.
    """

    model: nn.Module
    x: Tensor
    relevance: Tensor
    target: Tensor
    mask: Tensor | None
    explain: Explainer


@dataclass(frozen=True, eq=False)
class Found:
    """What a metric found.

    Attributes
    ----------
    values : dict of str to Tensor
        By the names of `fxlrp.metrics.ABOUT`, or of one's own: (B,).
    curves : dict of str to (Tensor, Tensor)
        Shares of flipped pixels and scores, (B, S + 1) each, by order.
    """

    values: Mapping[str, Tensor]
    curves: Mapping[str, tuple[Tensor, Tensor]]


Measure = Callable[..., Found]
Metric = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""One's own: ``(model, x, relevance, target, mask) -> (B,)``."""


def _flipping(case: Case, *, orders: Sequence[str] = ("morf", "lerf"), **options: Any) -> Found:
    values, curves = {}, {}
    for order in orders:
        curve = metrics.pixel_flipping(case.model, case.x, case.relevance, case.target, order=order, **options)
        values |= {f"flipping_auc_{order}": curve.auc, f"flipping_aopc_{order}": curve.aopc}
        curves[order] = curve.shares, curve.scores
    return Found(values, curves)


def no_masks(name: str) -> MaskError:
    """The error that a metric needs masks, and there are none."""
    return MaskError(
        f"{name} compares heatmaps with masks: the loader has to give (x, label, mask), with mask (B, H, W)"
    )


def _masked(name: str, measure: Callable[..., Tensor], **fixed: Any) -> Measure:
    def found(case: Case, **options: Any) -> Found:
        if case.mask is None:
            raise no_masks(name)
        return Found({name: measure(case.relevance, case.mask, **fixed, **options)}, {})

    return found


def _of_model(name: str, measure: Callable[..., Tensor]) -> Measure:
    return lambda case, **options: Found(
        {name: measure(case.model, case.x, case.relevance, case.target, **options)}, {}
    )


def _of_explainer(name: str, measure: Callable[..., Tensor], **fixed: Any) -> Measure:
    return lambda case, **options: Found({name: measure(case.explain, case.x, case.target, **fixed, **options)}, {})


MEASURES: dict[str, Measure] = {
    "flipping": _flipping,
    "inside_total_ratio": _masked("inside_total_ratio", metrics.inside_total_ratio),
    "inside_total_ratio_weighted": _masked("inside_total_ratio_weighted", metrics.inside_total_ratio, weighted=True),
    "relevance_mass_accuracy": _masked("relevance_mass_accuracy", metrics.relevance_mass_accuracy),
    "relevance_rank_accuracy": _masked("relevance_rank_accuracy", metrics.relevance_rank_accuracy),
    "sparseness": lambda case, **options: Found({"sparseness": metrics.sparseness(case.relevance, **options)}, {}),
    "faithfulness_correlation": _of_model("faithfulness_correlation", metrics.faithfulness_correlation),
    "random_logit": _of_explainer("random_logit", metrics.random_logit),
    "sensitivity_max": _of_explainer("sensitivity_max", metrics.sensitivity),
    "sensitivity_mean": _of_explainer("sensitivity_mean", metrics.sensitivity, reduce="mean"),
}
"""By name; "flipping" is MoRF and LeRF, with the areas under and over the curves."""


def measures_of(
    given: Sequence[str] | Mapping[str, str | Metric], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[Case], Found]]:
    """What is to be measured, by name.

    Parameters
    ----------
    given : sequence of str, or dict of str to str or callable
        Names of `MEASURES`; one's own metrics by names of one's own.
    options : dict of str to dict
        Keyword arguments of metrics, by their names.

    Raises
    ------
    InputError
        If there is no such metric, or options are for none.
    MissingExtraError
        If inpainting is asked for without OpenCV: now, and not when the first heatmaps are made.
    """
    named = (
        given if isinstance(given, Mapping) else {name: name for name in ([given] if isinstance(given, str) else given)}
    )
    check_options("metrics", options, list(named))
    found: dict[str, Callable[[Case], Found]] = {}
    for name, metric in named.items():
        own = dict(options.get(name, {}))
        if callable(metric):
            found[name] = _ones_own(name, metric, own)
        elif metric in MEASURES:
            found[name] = _with(MEASURES[metric], own)
        else:
            hint = did_you_mean(metric, MEASURES)
            raise InputError(f"there is no metric {metric!r}{hint} There are: {', '.join(MEASURES)}")
        if metric == "flipping" and own.get("fill", "inpaint") == "inpaint":
            opencv()
    return found


def _with(measure: Measure, options: Mapping[str, Any]) -> Callable[[Case], Found]:
    return lambda case: measure(case, **options)


def _ones_own(name: str, metric: Metric, options: Mapping[str, Any]) -> Callable[[Case], Found]:
    def found(case: Case) -> Found:
        values = metric(case.model, case.x, case.relevance, case.target, case.mask, **options)
        if not isinstance(values, Tensor) or values.shape != (len(case.x),):
            what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"the metric {name!r} returns one number for each image, ({len(case.x)},), not {what}")
        return Found({name: values}, {})

    return found
