"""`fxlrp.search`: guards against scores of other numbers than a trial's, work done again, and trials of another search.

Held against `fxlrp.compare` of composites with plain numbers, each converted by itself.
"""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.rules import Epsilon, Gamma
from zennit.types import Linear

import fxlrp
from fxlrp.errors import InputError, MaskError, MissingExtraError
from fxlrp.evaluation import SPACES, Range, Space, Study, Trial, search
from fxlrp.rules import stabilizers
from fxlrp.testing import trained

pytest.importorskip("optuna")

exactly = {"rel": 1e-10, "abs": 1e-10}


class Net(nn.Sequential):
    """Two convolutions, the first with a batch norm, and a head."""

    def __init__(self):
        head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), *head)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return trained(Net()).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 9, 9, dtype=torch.float64, generator=generator)
    masks = torch.rand(5, 9, 9, generator=generator) > 0.6
    classes = torch.tensor([0, 2, 1, 1, 0])
    return [(x[:3], classes[:3], masks[:3]), (x[3:], classes[3:], masks[3:])]


def gamma_epsilon(gamma, epsilon):
    """Gamma for convolutions, a strong epsilon everywhere."""
    strong = stabilizers["sign"](epsilon)
    return LayerMapComposite([(nn.Conv2d, Gamma(gamma, stabilizer=strong)), (Linear, Epsilon(strong))])


def with_rule(rule, gamma):
    return EpsilonPlus() if rule == "plus" else LayerMapComposite([(Linear, Gamma(gamma))])


SPACE = Space(gamma_epsilon, gamma=Range(0.01, 1.0, steps=3), epsilon=Range(0.0, 0.5, log=False, steps=2))
METRIC = "inside_total_ratio"


def find(model, data, space=SPACE, metric=METRIC, **options):
    return fxlrp.search(model, data, space, metric, progress=False, **options)


def score(model, data, composite, metric=METRIC, canonize=True, **options):
    """Of a composite with plain numbers, converted by itself."""
    names = ("flipping",) if metric.startswith("flipping") else (metric,)
    options = {"options": options} if options else {}
    table = fxlrp.compare(model, data, {"it": composite}, names, canonize=(canonize,), progress=False, **options)
    return table.summary(metric, table.ways[0]).mean


def test_a_grid_has_each_value_once(model, data):
    study = find(model, data, sampler="grid")
    tried = sorted((round(t.values["gamma"], 6), round(t.values["epsilon"], 6)) for t in study.trials)
    assert tried == sorted(itertools.product((0.01, 0.1, 1.0), (0.0, 0.5)))
    assert len({trial.scores for trial in study.trials}) == 6


def test_values_are_spread_by_their_logarithms():
    assert Range(1e-3, 10.0).grid() == pytest.approx([10 ** (-3 + 4 * i / 15) for i in range(16)])
    assert Range(-1.0, 1.0, log=False, steps=5).grid() == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert len(SPACES["tutorial"]((-1, 1)).grid()["gamma"]) == 16


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_scores_are_those_of_plain_numbers(sampler, model, data):
    study = find(model, data, sampler=sampler, trials=4)
    assert len(study.trials) == 4
    for trial in study.trials:
        assert trial.scores == pytest.approx([score(model, data, gamma_epsilon(**trial.values))], **exactly)


FLIPPING = {"patch": 3, "fill": "mean", "steps": 4}


@pytest.mark.parametrize("metric", ["flipping_auc_morf", "flipping_aopc_lerf", "sparseness"])
def test_any_metric_with_its_options(metric, model, data):
    own = {"flipping": FLIPPING} if metric.startswith("flipping") else {"sparseness": {"pool": "abs"}}
    study = find(model, data, metric=metric, trials=2, options=own)
    expected = score(model, data, study.composite, metric, **own)
    assert study.best.scores == pytest.approx([expected], **exactly)
    better = min if metric in ("flipping_auc_morf", "flipping_aopc_lerf") else max
    assert study.best.scores == better(trial.scores for trial in study.trials)


def test_a_trial_converts_nothing_again(model, data, monkeypatch):
    counts = {"export": 0, "canonized": 0, "emit": 0}

    def counting(owner, name, key):
        plain = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[key] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    counting(torch.export, "export", "export")
    counting(fxlrp.recipe.Recipe, "_canonized", "canonized")
    counting(fxlrp.recipe, "emit", "emit")
    monkeypatch.setattr(fxlrp.capture, "_TRACES", type(fxlrp.capture._TRACES)())
    find(model, data, trials=1)
    once = dict(counts)
    assert min(once.values()) > 0
    counts.update(dict.fromkeys(counts, 0))
    study = find(model, data, trials=5)
    assert len({trial.scores for trial in study.trials}) == 5
    assert counts == {**once, "export": 0}


def test_canonization_and_rules_to_choose_from(model, data):
    space = Space(with_rule, rule=["plus", "gamma"], gamma=Range(0.1, 1.0, steps=2), canonize=[True, False])
    study = find(model, data, space, sampler="grid")
    assert len(study.trials) == 8
    found = {}
    for trial in study.trials:
        values = {name: value for name, value in trial.values.items() if name != "canonize"}
        canonize = trial.values["canonize"]
        assert trial.scores == pytest.approx([score(model, data, with_rule(**values), canonize=canonize)], **exactly)
        found.setdefault((values["rule"], canonize), set()).add(trial.scores)
    # The gamma of the one rule makes no difference to the other.
    assert [len(found[each, True]) for each in ("plus", "gamma")] == [1, 2]
    assert found["plus", True] != found["plus", False]
    assert "canonize" not in study.code


class Interrupted(Exception):
    """What happens midway."""


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_search_goes_on_where_it_was_interrupted(sampler, model, data, tmp_path, monkeypatch):
    plain, tried = search_module()._Tried.__call__, []

    def counted(self, values):
        if len(tried) == stop:
            raise Interrupted
        tried.append(tuple(values.values()))
        return plain(self, values)

    monkeypatch.setattr(search_module()._Tried, "__call__", counted)
    asked = {"sampler": sampler, "trials": 6, "storage": tmp_path / "study.log"}
    stop = 3
    with pytest.raises(Interrupted):
        find(model, data, **asked)
    stop = None
    study = find(model, data, **asked)
    assert len(study.trials) == len(tried) == len(set(tried)) == 6
    assert [tuple(trial.values.values()) for trial in study.trials] == tried
    # All is there.
    again = find(model, data, **asked)
    assert len(tried) == 6
    assert [(trial.values, trial.scores) for trial in again.trials] == [(t.values, t.scores) for t in study.trials]


def search_module():
    return sys.modules["fxlrp.evaluation.search"]


def other_space(gamma, epsilon):
    return gamma_epsilon(gamma, epsilon)


ANOTHER = {
    "model": lambda model, data: {"model": trained(Net(), seed=3).eval()},
    "images": lambda model, data: {"data": data[:1]},
    "options": lambda model, data: {"options": {METRIC: {"pool": "abs"}}},
    "space": lambda model, data: {"space": Space(other_space, **SPACE.ranges)},
    "sampler": lambda model, data: {"sampler": "grid"},
    "seed": lambda model, data: {"seed": 1},
}


@pytest.mark.parametrize("what", ANOTHER)
def test_trials_of_another_search_are_not_taken_for_its_own(what, model, data, tmp_path):
    asked = {"model": model, "data": data, "sampler": "random", "trials": 2, "storage": tmp_path / "study.log"}
    first = find(**asked)
    changed = {**asked, **ANOTHER[what](model, data), "trials": 3}
    other = find(**changed)
    assert len(other.trials) == 3
    fresh = find(**{**changed, "storage": None})
    assert [trial.scores for trial in other.trials] == [trial.scores for trial in fresh.trials]
    assert [trial.scores for trial in find(**asked).trials] == [trial.scores for trial in first.trials]


def test_scores_that_are_nan(model, data):
    empty = [(x, y, torch.zeros_like(mask)) for x, y, mask in data]
    study = find(model, empty, trials=2)
    assert study.trials == []
    with pytest.raises(InputError, match=r"no trial has a score by inside_total_ratio: it was NaN of each image"):
        _ = study.best


def test_several_objectives(model, data):
    study = find(model, data, metric=[METRIC, "sparseness"], sampler="grid")
    for at, metric in enumerate(study.metrics):
        trial = study.best_by(metric)
        assert trial.scores[at] == max(each.scores[at] for each in study.trials)
        assert trial.scores[at] == pytest.approx(score(model, data, study.space.composite(trial.values), metric))
        assert trial in study.front
    assert study.best == study.best_by(METRIC)


def made(scores, metrics):
    return Study(SPACE, metrics, [Trial(i, {"gamma": 0.1, "epsilon": 0.1}, each) for i, each in enumerate(scores)])


def test_the_front_of_known_numbers():
    scores = [(0.5, 0.5), (0.7, 0.1), (0.1, 0.7), (0.4, 0.4), (0.7, 0.05), (0.5, 0.5)]
    front = lambda *metrics: [trial.number for trial in made(scores, metrics).front]
    assert front(METRIC, "sparseness") == [0, 1, 2, 5]  # Equal ones do not beat each other.
    assert front(METRIC, "flipping_auc_morf") == [4]
    assert front("flipping_auc_morf", "random_logit") == [2, 3, 4]
    assert made(scores, (METRIC, "flipping_auc_morf")).best_by("flipping_auc_morf").number == 4
    with pytest.raises(InputError, match="not by 'sparsenes'"):
        made(scores, (METRIC, "sparseness")).best_by("sparsenes")


CODED = {
    "by its name": "tutorial",
    "with tensors": lambda: SPACES["decreasing_gamma"]((-torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))),
    "a function": lambda: SPACE,
    "with arguments": lambda: Space(partial(with_rule, "gamma"), gamma=(0.01, 1.0)),
}


@pytest.mark.parametrize("kind", CODED)
def test_the_line_of_python_makes_the_composite(kind, model, data):
    space = CODED[kind] if kind == "by its name" else CODED[kind]()
    study = find(model, data, space, trials=2)
    namespace = {"fxlrp": fxlrp, "torch": torch, __name__: sys.modules[__name__]}
    composite = eval(study.code, namespace)
    assert isinstance(composite, type(study.composite))
    x, y, _ = data[0]
    found, expected = (fxlrp.explain(model, x, y, composite=each).relevance for each in (composite, study.composite))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert study.code in str(study)
    assert "the best of 2 trials" in str(study)


def test_of_a_function_without_a_name_the_line_is_the_spaces(model, data):
    space = Space(lambda gamma: LayerMapComposite([(Linear, Gamma(gamma))]), gamma=(0.1, 1.0))
    study = find(model, data, space, trials=1)
    assert study.code == f"space.make(gamma={study.best.values['gamma']!r})"


@pytest.mark.parametrize("module", [None, "__main__"])
def test_a_function_of_a_script_is_called_by_its_name(module, monkeypatch):
    monkeypatch.setattr(gamma_epsilon, "__module__", module)
    assert made([(0.5,)], [METRIC]).code == "gamma_epsilon(gamma=0.1, epsilon=0.1)"


def scored(steps, function, ranges=("gamma", "epsilon")):
    """A study of a grid, by a function of the logarithms."""
    space = Space(gamma_epsilon, **dict.fromkeys(ranges, Range(0.01, 1.0, steps=steps)))
    grid = list(itertools.product(*space.grid().values()))
    values = [dict(zip(ranges, at, strict=True)) for at in grid]
    scores = [function(*map(math.log10, at)) for at in grid]
    return Study(space, [METRIC], [Trial(i, values[i], (scores[i],)) for i in range(len(grid))])


@pytest.mark.parametrize("ranges", [("gamma", "epsilon"), ("gamma",)], ids=["contours", "a line"])
def test_pictures(ranges, tmp_path):
    pytest.importorskip("matplotlib")
    study = scored(6, lambda *at: -sum((each + 1) ** 2 for each in at), ranges)
    study.save(tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as picture:
        pixels = np.array(picture.convert("RGB"))
    assert pixels.shape == (630, 780, 3)
    red = np.argwhere((pixels == (255, 0, 0)).all(-1))
    if len(ranges) == 1:
        assert (pixels == (31, 119, 180)).all(-1).sum() > 300
        return
    # The star stands at the best, which is the middle of both ranges; dark violet and yellow are the ends of the scale.
    top, left, right = 630 * 0.1, 780 * 0.14, 780 * 0.94
    middle = red.mean(0)
    assert middle[0] == pytest.approx((top + 630 * 0.87) / 2, abs=60)
    assert left < middle[1] < right
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_a_picture_takes_a_range(tmp_path):
    study = Study(Space(with_rule, rule=["plus"]), [METRIC], [Trial(0, {"rule": "plus"}, (1.0,))])
    with pytest.raises(InputError, match="the space has none"):
        study.save(tmp_path / "study.png")


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random", "gradient"])
@pytest.mark.parametrize(
    ("asked", "count"), [({"timeout": 45.0}, 5), ({"timeout": 1e-9}, 1), ({"timeout": 45.0, "trials": 2}, 2)]
)
def test_a_search_ends_with_the_time(sampler, asked, count, model, data, monkeypatch):
    """As many trials as begin before its end, each of 10 seconds, but one at least; and no more than are asked for."""
    space = Space(gamma_epsilon, gamma=Range(0.01, 1.0, steps=3), epsilon=Range(0.01, 0.5, steps=2))
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(search_module(), "time", SimpleNamespace(monotonic=lambda: next(clock)))
    study = find(model, data, space, sampler=sampler, **asked)
    # By gradient, some steps alone are measured: the first, the last, the best.
    assert 1 + max(trial.number for trial in study.trials) == count
    assert sampler == "gradient" or len(study.trials) == count


FAULTS = {
    "sampler": ("sampler is 'grid' or .*did you mean 'grid'", {"sampler": "grit"}),
    "metric": ("no metric 'sparsenes' to search by; did you mean 'sparseness'", {"metric": "sparsenes"}),
    "one of the model": ("not measured image by image", {"metric": "parameter_randomization"}),
    "space": ("one of tutorial, .*did you mean 'tutorial'", {"space": "tutoria"}),
    "trials": ("trials is a whole number", {"trials": 0}),
    "timeout": ("timeout is a number of seconds above 0", {"timeout": 0.0}),
    "no images": ("no images", {"data": []}),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_cannot_be_searched(what, model, data):
    words, given = FAULTS[what]
    with pytest.raises(InputError, match=words):
        find(**{"model": model, "data": data, "trials": 1, **given})


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ("has parameters", {}),
        ("gamma is a range", {"gamma": 3}),
        ("gamma is a range", {"gamma": []}),
        ("to a larger one", {"gamma": (1.0, 0.1)}),
        ("lies above 0", {"gamma": (0.0, 1.0)}),
        ("canonize=.True, False.", {"canonize": ["yes"]}),
    ],
)
def test_what_is_no_space(words, parameters):
    with pytest.raises(InputError, match=words):
        Space(with_rule, **parameters)
    with pytest.raises(InputError, match="at least 2 steps"):
        Range(1, 2, steps=1)


def test_an_epsilon_that_zennit_takes_no_tensor_for(model, data):
    space = Space(lambda epsilon: LayerMapComposite([(Linear, Epsilon(epsilon))]), epsilon=(0.1, 1.0))
    with pytest.raises(InputError, match=r"stabilizers\['sign'\]\(epsilon\)"):
        find(model, data, space, trials=1)


def test_masks_and_extras_that_are_missing(model, data, tmp_path, monkeypatch, capfd):
    without = [(x, y) for x, y, _ in data]
    with pytest.raises(MaskError, match=r"the loader has to give \(x, label, mask\)"):
        find(model, without, trials=1, storage=tmp_path / "study.log")
    assert not capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"fxlrp\[evaluate\]"):
        find(model, data, trials=1)


def test_search_is_a_function():
    assert fxlrp.search is search
