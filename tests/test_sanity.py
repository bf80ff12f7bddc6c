"""Metrics that ask for other heatmaps: guards against ones of another class, image or model than is meant.

Explainers are functions of which the heatmaps are known; what they are asked for is written down, and counted upon.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxlrp
from fxlrp import metrics
from fxlrp.errors import InputError, TargetError

CLASSES = 6

exactly = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def x():
    return torch.rand(3, 2, 9, 11, dtype=torch.float64)


def maps(classes=CLASSES):
    """A heatmap for each class."""
    return torch.randn(classes, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Explainer:
    """The image, times the map of the class; keeps what it was asked for."""

    def __init__(self, classes=CLASSES, output=False):
        self.maps, self.output, self.asked = maps(classes), output, []

    def __call__(self, x, target):
        each = torch.as_tensor(target).expand(len(x)) if target is not None else torch.zeros(len(x), dtype=torch.long)
        relevance = x * self.maps[each].unsqueeze(1)
        self.asked += zip(x, each.tolist(), strict=True)
        if not self.output:
            return relevance
        return fxlrp.Explanation(torch.eye(len(self.maps))[[4] * len(x)], relevance, {})


def flat(heat):
    return [float(v) for v in heat.flatten()]


def ranks(values):
    """Of equal values, the mean of their places."""
    places = sorted(values)
    return [sum(i for i, v in enumerate(places) if v == value) / places.count(value) for value in values]


def correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    above = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True))
    below = math.sqrt(sum((u - mean_a) ** 2 for u in a)) * math.sqrt(sum((v - mean_b) ** 2 for v in b))
    return above / below


def structural(a, b):
    """Wang et al. 2004, eq. 13, in windows of 7 x 7, of maps in units of their largest absolute value."""
    a, b = ([[float(v) / float(each.abs().max()) for v in row] for row in each] for each in (a, b))
    every = [v for each in (a, b) for row in each for v in row]
    c1, c2 = ((share * (max(every) - min(every))) ** 2 for share in (0.01, 0.03))
    found = []
    for top in range(len(a) - 6):
        for left in range(len(a[0]) - 6):
            places = [(top + i, left + j) for i in range(7) for j in range(7)]
            u, v = ([each[i][j] for i, j in places] for each in (a, b))
            mean_u, mean_v = sum(u) / 49, sum(v) / 49
            var_u = sum((value - mean_u) ** 2 for value in u) / 48
            var_v = sum((value - mean_v) ** 2 for value in v) / 48
            both = sum((p - mean_u) * (q - mean_v) for p, q in zip(u, v, strict=True)) / 48
            above = (2 * mean_u * mean_v + c1) * (2 * both + c2)
            found.append(above / ((mean_u**2 + mean_v**2 + c1) * (var_u + var_v + c2)))
    return sum(found) / len(found)


BY_HAND = {
    "pearson": lambda a, b: correlation(flat(a), flat(b)),
    "spearman": lambda a, b: correlation(ranks(flat(a)), ranks(flat(b))),
    "ssim": structural,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_each_similarity_is_what_a_loop_gives(name):
    a = torch.randn(3, 9, 11, dtype=torch.float64)
    b = a + torch.randn(3, 9, 11, dtype=torch.float64)
    a[1], b[1] = a[1].round(), b[1].round()  # With ties.
    b[2] = -3 * a[2]
    found = metrics.SIMILARITIES[name](a, b)
    expected = [BY_HAND[name](*each) for each in zip(a, b, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **exactly)
    torch.testing.assert_close(metrics.SIMILARITIES[name](b, a), found, **exactly)
    itself = metrics.SIMILARITIES[name](a, 5 * a)
    torch.testing.assert_close(itself, torch.ones(3, dtype=torch.float64), **exactly)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_compared_is_nan(name):
    a, b = torch.randn(2, 3, 9, 11)
    a[0] = 0
    b[1, 2, 2] = torch.nan
    assert metrics.SIMILARITIES[name](a, b).isnan().tolist() == [True, True, False]


def test_a_constant_is_one_though_its_mean_is_rounded():
    """The mean of nine times 0.1 is another number than 0.1."""
    constant = torch.full((1, 9), 0.1, dtype=torch.float64)
    assert constant.mean() != 0.1
    assert metrics.SIMILARITIES["pearson"](constant, torch.randn(1, 9)).isnan()


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("target", [2, [0, 5, 2], torch.tensor([0, 5, 2])])
def test_random_logit_compares_with_another_class(x, target, output):
    explain = Explainer(output=output)
    found = metrics.random_logit(explain, x, target, seed=3, batch_size=2)
    before, after = [[c for _, c in part] for part in (explain.asked[:3], explain.asked[-3:])]
    assert before == torch.as_tensor(target).expand(3).tolist()
    assert all(a != b for a, b in zip(before, after, strict=True))
    heat = [(x[i].sum(0) * maps()[before[i]], x[i].sum(0) * maps()[after[i]]) for i in range(3)]
    torch.testing.assert_close(
        found, torch.tensor([structural(*each) for each in heat], dtype=torch.float64), **exactly
    )
    one_by_one = [metrics.random_logit(Explainer(), x[i : i + 1], before[i], seed=3, classes=CLASSES) for i in range(3)]
    torch.testing.assert_close(torch.cat(one_by_one), found, **exactly)


@given(classes=st.integers(2, 1200), seed=st.integers(0, 50), data=st.data())
def test_the_number_of_classes_is_found(classes, seed, data):
    """By what is refused; of more than a thousand, the first thousand."""
    target = data.draw(st.integers(0, min(classes, 1000) - 1))
    asked = []

    def explain(x, target):
        if not 0 <= int(target) < classes:
            raise IndexError(target)
        asked.append(int(target))
        return x

    found = metrics.random_logit(explain, torch.rand(1, 1, 3, 3), target, seed=seed)
    assert found.item() == pytest.approx(1)
    assert asked[-1] != target
    number = min(classes, 1000)
    further = int(torch.randint(1, number, (), generator=torch.Generator().manual_seed(seed)))
    assert asked[-1] == (target + further) % number


def test_each_other_class_is_drawn(x):
    explain = Explainer()
    for seed in range(40):
        metrics.random_logit(explain, x, 1, seed=seed, classes=CLASSES)
    assert {each for _, each in explain.asked} == set(range(CLASSES))


def test_of_a_twin_the_class_and_their_number_are_known(x):
    """The highest output is class 4 of six."""
    explain = Explainer(output=True)
    metrics.random_logit(explain, x, None)
    assert len(explain.asked) == 6
    assert all(each != 4 for _, each in explain.asked[3:])
    explain.asked.clear()
    metrics.sensitivity(explain, x, None, runs=4)
    assert all(each == 4 for _, each in explain.asked[3:])
    for metric in (metrics.random_logit, metrics.sensitivity):
        with pytest.raises(TargetError, match=r"has no `.output`: give the classes"):
            metric(Explainer(), x, None)


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (InputError, "of 1 classes, there is no other", {"explain": Explainer(1), "target": 0}),
        (InputError, "of 3 classes, there is no other than 4", {"classes": 3, "target": 4}),
        (InputError, "classes is a whole number", {"classes": 0}),
        (InputError, "did you mean 'ssim'", {"similarity": "sim"}),
        (InputError, "explain returns the relevance of its images", {"explain": lambda x, target: None}),
        (InputError, r"not \(1, 2\)", {"explain": lambda x, target: torch.ones(1, 2)}),
        (TargetError, r"each of 3 images is needed, \(3,\), not \(2,\)", {"target": [0, 1]}),
        (TargetError, "a seed or a function of the output is none", {"target": lambda z: z}),
    ],
)
def test_what_is_wrong_is_said(x, error, says, options):
    arguments = {"explain": Explainer(), "x": x, "target": 0} | options
    with pytest.raises(error, match=says):
        metrics.random_logit(**arguments)


def distance(a, b):
    return math.sqrt(sum((u - v) ** 2 for u, v in zip(flat(a), flat(b), strict=True)))


@pytest.mark.parametrize(("reduce", "by_hand"), [("max", max), ("mean", lambda v: sum(v) / len(v)), ("none", list)])
def test_sensitivity_is_what_a_loop_gives(x, reduce, by_hand):
    explain, runs, radius = Explainer(), 5, 0.3
    found = metrics.sensitivity(explain, x, [0, 3, 1], radius=radius, runs=runs, batch_size=2, reduce=reduce)
    shown = torch.stack([image for image, _ in explain.asked]).reshape(runs + 1, 3, 2, 9, 11)
    assert [each for _, each in explain.asked] == [0, 3, 1] * (runs + 1)
    moves = shown[1:] - shown[0]
    assert radius * 0.98 < moves.abs().max() <= radius
    assert moves.mean().abs() < 0.02
    torch.testing.assert_close(moves, moves[:, :1].expand_as(moves), **exactly)
    heat = lambda image, each: image * maps()[each]
    expected = []
    for i, each in enumerate([0, 3, 1]):
        first = heat(x[i], each)
        size = distance(first, torch.zeros_like(first))
        expected.append(by_hand([distance(heat(near[i], each), first) / size for near in shown[1:]]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **exactly)
    turned = metrics.sensitivity(Explainer(), x.flip(0), [1, 3, 0], radius=radius, runs=runs, reduce=reduce)
    torch.testing.assert_close(turned.flip(0), found, **exactly)


def test_sensitivity_of_what_does_not_move(x):
    assert metrics.sensitivity(lambda x, target: torch.ones_like(x), x, 0).tolist() == [0] * 3
    assert metrics.sensitivity(lambda x, target: torch.zeros_like(x), x, 0).isnan().all()
    with pytest.raises(InputError, match="radius is a number above 0"):
        metrics.sensitivity(Explainer(), x, 0, radius=0)


class Net(nn.Module):
    """Layers that are not registered in the order in which they are called; one without a way to start anew."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.only_in_training = nn.Linear(8, 3)
        self.first = nn.Conv2d(2, 4, 3)
        self.scale = Scale()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.middle = nn.Linear(4, 8)

    def forward(self, x):
        tokens = self.scale(self.first(x)).flatten(2).transpose(1, 2)
        return self.last(self.middle(self.attention(tokens, tokens, tokens)[0].mean(1)))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        return x * self.factor.reshape(1, -1, 1, 1)


CALLED = ["first", "scale", "attention", "attention.out_proj", "middle", "last"]


def of_parameters(model):
    """Explains by an image of the parameters: any change of these is seen."""
    values = torch.cat([each.detach().flatten() for each in model.parameters()]).double()
    return lambda x, target: x * values[: 9 * 11].reshape(9, 11) + torch.as_tensor(target).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_layers_are_randomized_in_the_order_of_their_calls(x, order):
    model = Net().double().eval()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    changed = []

    def explain_of(of):
        new = of.state_dict()
        changed.append({name.rpartition(".")[0] for name in kept if not torch.equal(new[name], kept[name])})
        return of_parameters(of)

    found = metrics.parameter_randomization(explain_of, model, x, [0, 1, 2], order=order)
    names = CALLED if order == "bottom_up" else CALLED[::-1]
    assert list(found.names) == names
    expected = [{name} if order == "independent" else set(names[: k + 1]) for k, name in enumerate(names)]
    assert changed[0] == set()
    assert changed[1:] == expected
    assert found.values.shape == (3, 6)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_similarities_are_those_to_the_first(x):
    """In batches, and in another order of images; the same for the same seed alone."""
    model = Net().double().eval()
    made = []
    explain_of = lambda model: made.append(of_parameters(model)) or made[-1]
    found = metrics.parameter_randomization(explain_of, model, x, [0, 1, 2], batch_size=2)
    heats = [explain(x, torch.tensor([0, 1, 2])).sum(1) for explain in made]
    for k, heat in enumerate(heats[1:]):
        expected = [BY_HAND["spearman"](*each) for each in zip(heats[0], heat, strict=True)]
        torch.testing.assert_close(found.values[:, k], torch.tensor(expected, dtype=torch.float64), **exactly)
    turned = metrics.parameter_randomization(of_parameters, model, x.flip(0), [2, 1, 0])
    torch.testing.assert_close(turned.values.flip(0), found.values, **exactly)
    other = metrics.parameter_randomization(of_parameters, model, x, [0, 1, 2], seed=9)
    assert not torch.allclose(other.values[:, -1], found.values[:, -1])
    deaf = metrics.parameter_randomization(lambda model: Explainer(), model, x, 0, similarity="ssim")
    torch.testing.assert_close(deaf.values, torch.ones(3, 6, dtype=torch.float64), **exactly)


def test_a_model_without_layers(x):
    with pytest.raises(InputError, match="calls no layer with parameters"):
        metrics.parameter_randomization(lambda model: Explainer(), nn.ReLU(), x, 0)
