"""What is to be known of each metric: what it measures, its source, its range, and which way is better."""

from __future__ import annotations

from typing import NamedTuple

from ..wording import columns

__all__ = ["ABOUT", "About", "Table"]

INFINITY = float("inf")


class About(NamedTuple):
    """What is to be known of a metric.

    Attributes
    ----------
    measures : str
        What, in a few words.
    source : str
        Who defined it.
    low, high : float
        Its range, of one image.
    better : str
        "higher" or "lower".
    needs : str
        What it needs beside the heatmap: "mask", "model", "explain" (a way to make other heatmaps) or "".
    call : str
        How to get it, in Python, after ``from fxlrp import metrics``.
    """

    measures: str
    source: str
    low: float
    high: float
    better: str
    needs: str
    call: str


class Table(dict[str, About]):
    """What is to be known of metrics, by name; printed, it is a table."""

    def __str__(self) -> str:
        rows = [
            (name, each.measures, f"{each.low:g} to {each.high:g}", each.better, each.source)
            for name, each in self.items()
        ]
        return "\n".join(columns(("metric", "measures", "range", "better", "source"), rows))


_FLIPPING = "metrics.pixel_flipping(model, x, relevance, target, order={!r}).{}"

ABOUT = Table(
    inside_total_ratio=About(
        "share of positive relevance on the object",
        "Kohlbrenner et al. 2020, eq. 5: mu",
        *(0, 1, "higher", "mask", "metrics.inside_total_ratio(relevance, mask)"),
    ),
    inside_total_ratio_weighted=About(
        "the same, by the object's share of the image",
        "Kohlbrenner et al. 2020, eq. 5: mu_w",
        *(0, INFINITY, "higher", "mask", "metrics.inside_total_ratio(relevance, mask, weighted=True)"),
    ),
    relevance_mass_accuracy=About(
        "share of relevance on the object",
        "Arras et al. 2022: RMA",
        *(0, 1, "higher", "mask", "metrics.relevance_mass_accuracy(relevance, mask)"),
    ),
    relevance_rank_accuracy=About(
        "share of the most relevant pixels on the object",
        "Arras et al. 2022: RRA",
        *(0, 1, "higher", "mask", "metrics.relevance_rank_accuracy(relevance, mask)"),
    ),
    sparseness=About(
        "on how few pixels relevance lies (Gini index)",
        "Chalasani et al. 2020",
        *(0, 1, "higher", "", "metrics.sparseness(relevance)"),
    ),
    flipping_auc_morf=About(
        "score while the most relevant goes first",
        "Samek et al. 2017; Bermudez Schettino",
        *(-INFINITY, INFINITY, "lower", "model", _FLIPPING.format("morf", "auc")),
    ),
    flipping_auc_lerf=About(
        "score while the least relevant goes first",
        "Samek et al. 2017; Bermudez Schettino",
        *(-INFINITY, INFINITY, "higher", "model", _FLIPPING.format("lerf", "auc")),
    ),
    flipping_aopc_morf=About(
        "mean fall while the most relevant goes first",
        "Samek et al. 2017",
        *(-INFINITY, INFINITY, "higher", "model", _FLIPPING.format("morf", "aopc")),
    ),
    flipping_aopc_lerf=About(
        "mean fall while the least relevant goes first",
        "Samek et al. 2017",
        *(-INFINITY, INFINITY, "lower", "model", _FLIPPING.format("lerf", "aopc")),
    ),
    faithfulness_correlation=About(
        "sums over random pixels against the score's fall",
        "Bhatt et al. 2020",
        *(-1, 1, "higher", "model", "metrics.faithfulness_correlation(model, x, relevance, target)"),
    ),
    random_logit=About(
        "likeness to the heatmap of another class (SSIM)",
        "Sixt et al. 2020",
        *(-1, 1, "lower", "explain", "metrics.random_logit(explain, x, target)"),
    ),
    sensitivity_max=About(
        "largest change of the heatmap near the image",
        "Yeh et al. 2019",
        *(0, INFINITY, "lower", "explain", "metrics.sensitivity(explain, x, target)"),
    ),
    sensitivity_mean=About(
        "mean change of the heatmap near the image",
        "Yeh et al. 2019; Bhatt et al. 2020",
        *(0, INFINITY, "lower", "explain", "metrics.sensitivity(explain, x, target, reduce='mean')"),
    ),
    parameter_randomization=About(
        "likeness to a random model's heatmap (Spearman)",
        "Adebayo et al. 2018",
        *(-1, 1, "lower", "explain", "metrics.parameter_randomization(explain_of, model, x, target).values[:, -1]"),
    ),
)
"""Of each metric by name, what is to be known; ``print(metrics.ABOUT)`` prints a table."""
