"""Searches for the composite whose heatmaps are best by a metric."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..composites import Bounds
from ..composites.naming import BOX
from ..errors import InputError, MissingExtraError
from ..given import check_choice, check_count, check_model
from ..io.console import make_error_console, progress_bar
from ..metrics.scoring import check_mode
from .identity import described, digest, digest_of_model, hashed
from .objective import Direction, Objective, directions_of
from .several import Several
from .space import Space, space_of
from .study import Study, Trial
from .tuning import joined, tuned

if TYPE_CHECKING:
    import optuna
    from rich.progress import Progress

__all__ = ["search"]

SAMPLERS = ("grid", "tpe", "random", "gradient")

STEPS = 40
"""Of tuning by gradient."""


def search(
    model: nn.Module,
    loader: Iterable[Any] | Dataset[Any],
    space: Space | str,
    metric: str | Sequence[str] = "flipping_auc_morf",
    *,
    sampler: str = "tpe",
    trials: int | None = None,
    timeout: float | None = None,
    storage: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    alike: float = 0.01,
    rate: float = 0.2,
    batch_size: int = 16,
    bounds: Bounds = BOX,
    progress: bool = True,
) -> Study:
    """Search for the rules whose heatmaps are best by a metric.

    The model is captured and converted once for each combination of choices; a trial that differs in numbers alone
    costs its heatmaps and their measurement. As in Bermudez Schettino, section 3 (a grid of 16 x 16 values, evenly
    spread by their logarithms), and Pahde et al., section 4.

    Parameters
    ----------
    model : nn.Module
        A classifier in evaluation mode.
    loader : iterable or Dataset
        As of `fxlrp.compare`; it is read once, and kept in memory.
    space : Space or str
        What is searched: see `fxlrp.evaluation.Space`, or a name of `fxlrp.evaluation.SPACES`.
    metric : str or sequence of str
        Names of `fxlrp.metrics.ABOUT`: the mean over all images is what is searched by, up or down as each says.
    sampler : {"grid", "tpe", "random", "gradient"}
        Each value of a grid; Optuna's tree-structured Parzen estimator; by chance; or down the gradient of a smooth
        form of the first metric, localization or pixel flipping (`fxlrp.evaluation.tuning`), without choices or
        storage: for many numbers at once, one for each layer (`fxlrp.evaluation.each_layer`).
    trials : int or None
        How many there are in all, those in the storage among them; the steps of Adam. None: the whole grid; else as
        many as the time allows, or without a `timeout` 64, or 40 steps.
    timeout : float or None
        Seconds, after which no other trial begins; there is one at least.
    storage : str, Path or None
        A file in which trials are kept as soon as they end, or a database as Optuna names it ("sqlite:///..."): what
        was interrupted goes on there.
    options : dict of str to dict or None
        Keyword arguments of metrics, by name ("flipping" for all of pixel flipping).
    seed : int
        Of the sampler.
    alike : float
        By gradient: how strongly the numbers of neighbouring layers are drawn together, to few distinct ones.
    rate : float
        By gradient: Adam's learning rate, of the logarithms of numbers.
    batch_size : int
        Of a data set.
    bounds : tuple
        The input's lowest and highest value, for a space that is given by its name.
    progress : bool
        Whether a bar shows how far it is.

    Returns
    -------
    Study
        ``.composite`` is the best one, ``.code`` how to make it, ``.save`` draws a picture.

    Raises
    ------
    InputError
        If there is no such space, metric or sampler, or the loader gives something else.
    MissingExtraError
        If Optuna is not installed.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.squeezenet1_1(num_classes=3).eval()
    >>> data = [torch.randn(2, 3, 32, 32)]
    >>> study = fxlrp.search(model, data, "tutorial", "sparseness", trials=3, progress=False)
    >>> sorted(study.best.values)
    ['epsilon', 'gamma']
    """
    check_model(model, exported=False)
    check_mode(model)
    check_choice("sampler", sampler, SAMPLERS)
    check_count("trials", trials)
    if timeout is not None and not timeout > 0:
        raise InputError(f"timeout is a number of seconds above 0, or None, not {timeout!r}")
    space = space_of(space, bounds)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    directions = directions_of(metrics)
    asked = Objective(model, loader, metrics, options or {}, batch_size=batch_size, bounds=bounds)
    with progress_bar(make_error_console(), transient=True, disable=not progress) as bar:
        if sampler == "gradient":
            steps = _numbers(bar, "tuning", 0, trials or (None if timeout else STEPS), timeout)
            return _by_gradient(asked, space, steps, alike, rate)
        study = _study(sampler, space, _name(asked, space, [sampler, seed]), directions, storage, seed)
        grid = math.prod(len(values) for values in space.grid().values())
        wanted = min(trials or grid, grid) if sampler == "grid" else trials or (None if timeout else 64)
        done, tried = sum(trial.state.is_finished() for trial in study.trials), _Tried(asked, space)
        for _ in _numbers(bar, "searching", done, wanted, timeout):
            _try_one(study, space, tried)
    return Study(space, metrics, [Trial(t.number, _plain(t.params), tuple(t.values)) for t in _ended(study)])


def _numbers(bar: Progress, what: str, first: int, wanted: int | None, timeout: float | None) -> Iterator[int]:
    """Of trials, shown by a bar, until there are as many as are wanted, or the time is over."""
    task, start = bar.add_task(what, total=wanted, completed=first), time.monotonic()
    for number in count(first) if wanted is None else range(first, wanted):
        if number > first and timeout is not None and time.monotonic() - start >= timeout:
            return
        yield number
        bar.advance(task)


def _by_gradient(asked: Objective, space: Space, steps: Iterable[int], alike: float, rate: float) -> Study:
    """Tune the numbers, and measure where tuning began, where its loss was least, and where it ended."""
    path, tried = tuned(asked, space, asked.metrics[0], steps=steps, rate=rate, alike=alike), _Tried(asked, space)
    least = min(range(len(path)), key=lambda step: path[step][1])
    trials = []
    for step in sorted({0, least, len(path) - 1}):
        values = _plain(joined(path[step][0]) if step and alike else path[step][0])
        trials.append(Trial(step, values, tuple(tried(values))))
    return Study(space, asked.metrics, trials)


class _Tried:
    """Scores values: a twin for each combination of choices, whose rules hold the tensors that numbers go into."""

    def __init__(self, objective: Objective, space: Space) -> None:
        self._objective, self._space = objective, space
        self._made: dict[tuple[Any, ...], tuple[dict[str, Tensor], Several]] = {}

    def __call__(self, values: Mapping[str, Any]) -> list[float]:
        chosen = tuple(values[name] for name in self._space.choices)
        if chosen not in self._made:
            knobs = self._space.knobs()
            composite = self._space.composite({**values, **knobs})
            explainer = self._objective.explainer(composite, canonized=bool(values.get("canonize", True)))
            self._made[chosen] = knobs, explainer
        knobs, explainer = self._made[chosen]
        with torch.no_grad():
            for name, knob in knobs.items():
                knob.fill_(values[name])
        return self._objective.scores(explainer)


def _try_one(study: optuna.Study, space: Space, tried: _Tried) -> None:
    """Ask for values, and tell their scores; of an interruption nothing is told, and the values are tried again."""
    from optuna.trial import TrialState

    trial = study.ask()
    scores = tried(_plain(_values(trial, space)))
    failed = any(math.isnan(score) for score in scores)
    study.tell(trial, None if failed else scores, state=TrialState.FAIL if failed else None)


def _name(asked: Objective, space: Space, how: Sequence[str | int]) -> str:
    """Of a study: its metrics, and what tells it from others of the same ones; functions are known by their names."""
    ranges = {name: [each.low, each.high, each.log, each.steps] for name, each in space.ranges.items()}
    images = digest(*(each for data in asked.data for each in (data.x, data.target, data.mask)))
    about = [how, digest_of_model(asked.model), images, asked.about, space.make, ranges, space.choices]
    return f"{', '.join(asked.metrics)} {hashed(described(about))}"


def _study(
    sampler: str,
    space: Space,
    name: str,
    directions: Sequence[Direction],
    storage: str | Path | None,
    seed: int,
) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtraError("searching", "optuna", "evaluate") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Grid(optuna.samplers.GridSampler):
        """Does not stop a loop of Optuna's at its end: there is none, and the end is known."""

        def after_trial(self, study: object, trial: object, state: object, values: object) -> None:
            pass

    samplers = {
        "grid": lambda seed: Grid(space.grid(), seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    kept = None if storage is None else str(storage)
    if kept is not None and "://" not in kept:
        kept = JournalStorage(JournalFileBackend(kept))
    study = optuna.create_study(storage=kept, study_name=name, directions=directions, load_if_exists=True)
    # What was drawn before an interruption is not drawn again; a grid is known by its seed.
    study.sampler = samplers[sampler](seed if sampler == "grid" else seed + len(study.trials))
    return study


def _values(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, each in space.ranges.items():
        values[name] = trial.suggest_float(name, each.low, each.high, log=each.log)
    for name, choices in space.choices.items():
        values[name] = trial.suggest_categorical(name, choices)
    return values


def _ended(study: optuna.Study) -> list[Any]:
    """The trials that have scores: of those whose scores are NaN, Optuna says that they failed."""
    return [trial for trial in study.trials if trial.values is not None]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
