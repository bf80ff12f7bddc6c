"""What a search found: its trials, the best composite, one line of Python that makes it, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from zennit.core import Composite

from .. import composites
from ..errors import InputError
from ..plot.canvas import canvas, write
from .objective import directions_of
from .space import Space

__all__ = ["Study", "Trial"]


class Trial(NamedTuple):
    """A composite that was tried.

    Attributes
    ----------
    number : int
        From 0.
    values : dict
        Of the space's parameters.
    scores : tuple of float
        The mean of each metric over all images.
    """

    number: int
    values: Mapping[str, Any]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Study:
    """The trials of a search; printed, the best of them and how to make it.

    Attributes
    ----------
    space : Space
        What was searched.
    metrics : sequence of str
        By what.
    trials : sequence of Trial
        Those with a score for each metric, in their order.
    """

    space: Space
    metrics: Sequence[str]
    trials: Sequence[Trial]

    @property
    def best(self) -> Trial:
        """The best trial by the first metric.

        Raises
        ------
        InputError
            If no trial has a score.
        """
        return self.best_by(self.metrics[0])

    def best_by(self, metric: str) -> Trial:
        """The best trial by one of the metrics."""
        if metric not in self.metrics:
            raise InputError(f"the search was by {', '.join(self.metrics)}, not by {metric!r}")
        at = list(self.metrics).index(metric)
        known = [trial for trial in self.trials if not np.isnan(trial.scores[at])]
        if not known:
            raise InputError(f"no trial has a score by {metric}: it was NaN of each image, or no trial ended")
        sign = -1 if directions_of([metric]) == ["maximize"] else 1
        return min(known, key=lambda trial: sign * trial.scores[at])

    @property
    def front(self) -> list[Trial]:
        """Of several metrics, the trials that no other is better than in one and as good as in all others."""
        signs = [1 if each == "maximize" else -1 for each in directions_of(self.metrics)]
        scores = np.array([[s * v for s, v in zip(signs, trial.scores, strict=True)] for trial in self.trials])
        beaten = lambda own: bool(((scores >= own).all(1) & (scores > own).any(1)).any())
        return [trial for trial, own in zip(self.trials, scores, strict=True) if not beaten(own)]

    @property
    def composite(self) -> Composite:
        """The best composite, with numbers."""
        return self.space.composite(self.best.values)

    @property
    def code(self) -> str:
        """The line of Python that makes it, of the function that the space was given."""
        values = {name: value for name, value in self.best.values.items() if name != "canonize"}
        return _called(self.space.make, values)

    def save(self, path: str | Path) -> None:
        """Draw the first metric: over one range a line, over two its contours (Bermudez Schettino, figures 4.1, 4.2).

        Raises
        ------
        InputError
            If the space has no range.
        MissingExtraError
            If matplotlib is not installed.
        """
        names = list(self.space.ranges)
        if not names:
            raise InputError("there is a picture of ranges only: the space has none")
        drawing = canvas(5.2, 4.2)
        axes = drawing.add_axes((0.14, 0.13, 0.8, 0.77))
        values = {name: np.array([trial.values[name] for trial in self.trials]) for name in names}
        scores, best = np.array([trial.scores[0] for trial in self.trials]), self.best
        axes.set_xlabel(names[0])
        axes.set_xscale("log" if self.space.ranges[names[0]].log else "linear")
        if len(names) == 1 or len(self.trials) < 4:
            order = values[names[0]].argsort()
            axes.plot(values[names[0]][order], scores[order], marker=".")
            axes.plot(best.values[names[0]], best.scores[0], "k*", markersize=12)
            axes.set_ylabel(self.metrics[0])
        else:
            x, y = (np.log(values[n]) if self.space.ranges[n].log else values[n] for n in names[:2])
            back = lambda name, at: np.exp(at) if self.space.ranges[name].log else at
            grid = self._grid(names[:2], x, y, scores)
            shown = axes.contourf(back(names[0], grid[0]), back(names[1], grid[1]), grid[2], levels=20, cmap="viridis")
            drawing.colorbar(shown, ax=axes, label=self.metrics[0])
            axes.plot(values[names[0]], values[names[1]], "k.", markersize=2)
            axes.plot(best.values[names[0]], best.values[names[1]], "r*", markersize=12)
            axes.set_ylabel(names[1])
            axes.set_yscale("log" if self.space.ranges[names[1]].log else "linear")
        axes.set_title(f"{len(self.trials)} trials; the best: {best.scores[0]:.3g}", fontsize=9)
        write(drawing, path)

    def _grid(
        self, names: Sequence[str], x: np.ndarray, y: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores on a grid: of trials on one, their own; of others, the nearest trial's."""
        rows, columns = np.unique(y), np.unique(x)
        if len(rows) * len(columns) > 4 * len(scores):
            columns, rows = np.linspace(x.min(), x.max(), 40), np.linspace(y.min(), y.max(), 40)
        across, up = np.meshgrid(columns, rows)
        span = lambda of: max(float(np.ptp(of)), 1e-12)
        far = ((across[..., None] - x) / span(x)) ** 2 + ((up[..., None] - y) / span(y)) ** 2
        return across, up, scores[far.argmin(-1)]

    def __str__(self) -> str:
        best = self.best
        values = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in best.values.items())
        scores = ", ".join(f"{name} {score:.4g}" for name, score in zip(self.metrics, best.scores, strict=True))
        return f"the best of {len(self.trials)} trials: {values}: {scores}\n{self.code}"


def _called(make: Callable[..., object], values: Mapping[str, Any]) -> str:
    """A call of a function as code; of one without a name, as the space's."""
    inner = make.func if isinstance(make, partial) else make
    fixed = make.args if isinstance(make, partial) else ()
    named = {**make.keywords, **values} if isinstance(make, partial) else values
    name = getattr(inner, "__qualname__", "<>")
    home = "fxlrp.composites" if hasattr(composites, name) else inner.__module__
    # What stands in a script, or is typed, has no module that could be imported.
    own = name if home in (None, "__main__") else f"{home}.{name}"
    called = "space.make" if "<" in name else own
    return (
        f"{called}({', '.join([*map(_spelled, fixed), *(f'{key}={_spelled(each)}' for key, each in named.items())])})"
    )


def _spelled(value: object) -> str:
    return f"torch.tensor({value.tolist()!r})" if isinstance(value, Tensor) else repr(value)
