"""A table of what was measured: a number for each image, way of explaining it and metric; means, tests, files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import InputError, MissingExtraError
from ..io.files import write_file
from ..metrics import ABOUT
from ..wording import did_you_mean

if TYPE_CHECKING:
    from .examples import Example
    from .storage import ImageRow

__all__ = ["Difference", "Summary", "Table"]

RESAMPLES = 2000


class Summary(NamedTuple):
    """A metric's mean over images.

    Attributes
    ----------
    mean : float
        NaN if there is no number.
    low, high : float
        Its 95 % interval, by bootstrap over images (percentiles of 2000 resamples).
    number : int
        Of how many images there is a number.
    missing : int
        Of how many there is none: NaN.
    """

    mean: float
    low: float
    high: float
    number: int
    missing: int

    def __str__(self) -> str:
        text = f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if self.number else "-"
        return f"{text} ({self.missing} NaN)" if self.missing else text


class Difference(NamedTuple):
    """How far two ways differ, image by image.

    Attributes
    ----------
    mean, low, high : float
        Of the first minus the second, with its 95 % interval by bootstrap over images.
    p : float
        Of Wilcoxon's signed-rank test, two-sided; NaN for fewer than two images.
    number : int
        Of how many images both have a number.
    """

    mean: float
    low: float
    high: float
    p: float
    number: int


@dataclass(frozen=True, eq=False)
class Table:
    """What was measured; printed, the means of all images with their intervals, as a table of Markdown.

    Attributes
    ----------
    rows : sequence of ImageRow
        In the order of the images.
    ways : sequence of str
        The ways of explaining, as they were given.
    examples : sequence of Example
        The first images, with their heatmaps.
    """

    rows: Sequence[ImageRow]
    ways: Sequence[str]
    examples: Sequence[Example] = field(default=(), repr=False)

    @property
    def metrics(self) -> list[str]:
        """The names of what was measured."""
        return list(dict.fromkeys(name for row in self.rows for way in row.values.values() for name in way))

    def values(self, metric: str, way: str) -> np.ndarray:
        """A metric of each image under one way of explaining it.

        Returns
        -------
        numpy.ndarray
            Shape (N,), float64; NaN where there is nothing to divide by.

        Raises
        ------
        InputError
            If there is no such metric, or way.
        """
        self._check(metric, way)
        return np.array([row.values[way].get(metric, np.nan) for row in self.rows], dtype=np.float64)

    def summary(self, metric: str, way: str) -> Summary:
        """A metric's mean under one way of explaining, with its interval."""
        values = self.values(metric, way)
        known = values[~np.isnan(values)]
        return Summary(*_interval(known), len(known), len(values) - len(known))

    def difference(self, metric: str, first: str, second: str) -> Difference:
        """How far two ways differ by a metric, paired by image.

        Raises
        ------
        InputError
            If there is no such metric, or way.
        MissingExtraError
            If SciPy, which has the test, is not installed.
        """
        pairs = self.values(metric, first) - self.values(metric, second)
        known = pairs[~np.isnan(pairs)]
        return Difference(*_interval(known), _p(known), len(known))

    def ranked(self, metric: str) -> list[str]:
        """The ways from the best mean to the worst; none of those of which there is no number.

        Of one's own metric, higher counts as better.
        """
        means = {way: self.summary(metric, way).mean for way in self.ways}
        known = [way for way in self.ways if not np.isnan(means[way])]
        return sorted(known, key=lambda way: means[way], reverse=_higher(metric))

    def best(self, metric: str) -> str:
        """The way of the best mean.

        Raises
        ------
        InputError
            If no way has a number, or there is no such metric.
        """
        ranked = self.ranked(metric)
        if not ranked:
            raise InputError(f"there is no best way by {metric}: it is NaN of each image")
        return ranked[0]

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each image, way and metric."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("image", "way", "metric", "value"))
        for row in self.rows:
            writer.writerows(
                (row.image, way, name, value) for way, of in row.values.items() for name, value in of.items()
            )
        write_file(path, lambda file: file.write(text.getvalue().encode()))

    def save(self, path: str | Path) -> None:
        """Draw the first images with their heatmaps and scores, and the curves of pixel flipping.

        Parameters
        ----------
        path : str or Path
            The picture; its ending says the format.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        """
        from .pictures import Drawn, draw

        draw(Drawn(self.rows, self.ways, self.metrics, self.examples), path)

    def __str__(self) -> str:
        arrows = {True: "higher is better", False: "lower is better", None: ""}
        names = [f"{name} ({arrows[_better(name)]})" if _better(name) is not None else name for name in self.metrics]
        best = {name: self._best_or_none(name) for name in self.metrics}
        lines = [["", *names], ["---"] * (len(names) + 1)]
        for way in self.ways:
            cells = [(name, str(self.summary(name, way))) for name in self.metrics]
            lines.append([way, *(f"**{text}**" if best[name] == way else text for name, text in cells)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _best_or_none(self, metric: str) -> str | None:
        if _better(metric) is None or len(self.ways) == 1:
            return None
        try:
            return self.best(metric)
        except InputError:
            return None

    def _check(self, metric: str, way: str) -> None:
        for what, name, known in (("metric", metric, self.metrics), ("way of explaining", way, self.ways)):
            if name not in known:
                raise InputError(
                    f"the table has no {what} {name!r}{did_you_mean(name, known)} It has: {', '.join(known)}"
                )


def _better(metric: str) -> bool | None:
    """Whether higher is better; None of one's own metric, of which nothing is known."""
    return None if metric not in ABOUT else ABOUT[metric].better == "higher"


def _higher(metric: str) -> bool:
    return _better(metric) is not False


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    if not len(values):
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def _p(differences: np.ndarray) -> float:
    try:
        from scipy.stats import wilcoxon
    except ImportError as error:
        raise MissingExtraError("the paired test", "scipy", "evaluate") from error
    if len(differences) < 2:
        return float("nan")
    return 1.0 if not differences.any() else float(np.asarray(wilcoxon(differences))[1])


def rows_of(values: Mapping[str, Mapping[str, Tensor]], numbers: Sequence[int]) -> list[dict[str, dict[str, float]]]:
    """From values of a batch to those of each image: ``values[way][metric][i]`` to ``[i][way][metric]``."""
    return [
        {way: {name: float(each[i]) for name, each in of.items()} for way, of in values.items()}
        for i in range(len(numbers))
    ]
