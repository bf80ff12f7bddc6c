"""Composites that speak of depth, that need data, or that stabilize otherwise give each layer the rule they say.

The kind of fault: a layer counted twice or not at all (a functional call, a shared module, one in another order than it
runs in), a published table read off by one, a rule's derivative lost where its numbers are taken for constants, and a
pattern that is not the data's.
"""

from __future__ import annotations

import math
import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.rules as zr
from reference import seed_of
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES, LayerMapComposite, MixedComposite, NameMapComposite, layer_map_base
from zennit.core import Composite, Stabilizer
from zennit.types import Linear

import fxlrp
from fxlrp import errors
from fxlrp.composites import by_layer, decreasing_gamma, pattern_attribution, tutorial
from fxlrp.rules import stabilizers
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

X = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DENSE = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def vgg(*channels: int) -> nn.Module:
    """Convolutions of these channels, pooled twice, and two fully connected layers."""
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(zip((3, *channels), channels, strict=False)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels[-1] * 4, 7), nn.ReLU(), nn.Linear(7, 4)]
    return trained(nn.Sequential(*layers, *head).double()).eval()


def dense() -> nn.Module:
    return trained(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    ).eval()


def of_zennit(model: nn.Module, composite: Composite, x: torch.Tensor, target: int = 1) -> torch.Tensor:
    with Gradient(model, composite) as attributor:
        return attributor(x.clone().requires_grad_(), seed_of(model(x), target))[1]


def of_fxlrp(model: nn.Module, composite: Composite, x: torch.Tensor, target: int = 1, **options) -> torch.Tensor:
    return fxlrp.convert(model, composite, **options)(x, target).relevance


def rules_of(model: nn.Module, composite, x: torch.Tensor) -> list[str]:
    """The rules of the linear layers, in the order of execution."""
    plans = fxlrp.check(model, composite, x).plans
    return [plan.rule for plan in plans if plan.op.startswith(("conv", "linear"))]


# What gets which rule


BY_LAYER = {
    "range": [(range(2), zr.Gamma(0.5)), (range(2, 7), zr.Epsilon(0.1))],
    "slice from the end": [(slice(None, -2), zr.ZPlus()), (slice(-2, None), zr.Epsilon(0.1))],
    "steps": [(slice(0, None, 2), zr.Gamma(0.5)), (slice(1, None, 2), zr.Epsilon(0.1))],
    "pairs": [((0, 3), zr.AlphaBeta(2, 1)), ((3, -1), zr.Gamma(0.1)), (-1, zr.Epsilon(0.1))],
    "shares": [((0.0, 0.4), zr.Gamma(0.5)), ((0.4, 1.0), zr.Epsilon(0.1))],
    "some": [(range(1, 3), zr.Gamma(0.5))],
}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("rules", BY_LAYER.values(), ids=BY_LAYER)
def test_by_layer_is_zennits(rules, optimize):
    model = vgg(4, 5, 6, 6, 6)
    composite = by_layer(rules, first=zr.ZBox(-3.0, 3.0))
    assert relative(of_fxlrp(model, composite, X, optimize=optimize), of_zennit(model, composite, X)) < 1e-10


@pytest.mark.parametrize(
    "make", [lambda: tutorial(-3.0, 3.0, 0.3, 0.2), lambda: decreasing_gamma(-3.0, 3.0)], ids=["tutorial", "decreasing"]
)
def test_those_of_the_tables_are_zennits(make):
    model = vgg(4, 5, 6, 6, 6)
    assert relative(of_fxlrp(model, make(), X), of_zennit(model, make(), X)) < 1e-10


def test_the_rules_of_layers_by_dense_arithmetic():
    """First z^B, then gamma, then epsilon: each layer's relevance by its own formula, in loops over units."""
    model = dense()
    found = of_fxlrp(
        model, by_layer([((0.3, 0.6), zr.Gamma(0.5)), (2, zr.Epsilon(0.1))], first=zr.ZBox(-3, 3)), DENSE, 2
    )
    w1, w2, w3 = (model[i].weight.detach() for i in (0, 2, 4))
    b1, b2, b3 = (model[i].bias.detach() for i in (0, 2, 4))
    for x, relevance in zip(DENSE, found, strict=True):
        a1 = (w1 @ x + b1).relu()
        a2 = (w2 @ a1 + b2).relu()
        z3 = (w3 @ a2 + b3)[2]
        r2 = a2 * w3[2] * z3 / (z3 + 0.1 * z3.sign())
        r1 = torch.zeros_like(a1)
        for k in range(4):
            weight, bias = w2[k] + 0.5 * w2[k].clamp(min=0), b2[k] + 0.5 * b2[k].clamp(min=0)
            # A unit that is shut has no relevance.
            total = weight @ a1 + bias
            r1 += a1 * weight * r2[k] / (total + 1e-6 * total.sign())
        r0 = torch.zeros_like(x)
        for k in range(6):
            low, high = -3 * w1[k].clamp(min=0), 3 * w1[k].clamp(max=0)
            total = w1[k] @ x + b1[k] - low.sum() - b1[k].clamp(min=0) - high.sum() - b1[k].clamp(max=0)
            r0 += (x * w1[k] - low - high) * r1[k] / (total + 1e-6 * total.sign())
        assert relative(relevance, r0) < 1e-10


GROUPS = {
    "tutorial": (
        "tutorial",
        {
            "ZBox(-3, 3)": [0],
            "Gamma(0.25)": range(1, 17),
            "Epsilon(0.25)": range(17, 31),
            "Epsilon(1e-06)": range(31, 38),
        },
    ),
    "decreasing gamma": (
        "decreasing_gamma",
        {
            "ZBox(-3, 3)": [0],
            "Gamma(0.5)": range(2, 11),
            "Gamma(0.25)": range(11, 18),
            "Gamma(0.1)": range(18, 25),
            "Gamma(0)": range(25, 38),
        },
    ),
}
"""Tables 2.4 and 2.3 of Bermudez Schettino, whose layers are numbered as the modules of VGG-16, one behind another."""


@pytest.mark.parametrize(("name", "groups"), GROUPS.values(), ids=GROUPS)
def test_of_vgg16_the_tables_are_met_layer_by_layer(name, groups):
    with torch.device("meta"):
        model = torchvision.models.vgg16().eval()
    modules = [*model.features, *model.classifier]
    at_least = {index: rule for rule, indices in groups.items() for index in indices}
    expected = [at_least[i] for i, module in enumerate(modules) if isinstance(module, Linear)]
    assert len(expected) == 16
    small = torchvision.models.VGG(nn.Sequential(*(narrow(m) for m in model.features)), num_classes=2).eval()
    small.classifier = nn.Sequential(nn.Linear(49, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert rules_of(small, name, torch.randn(1, 3, 32, 32)) == expected
    context: dict = {}
    composite = fxlrp.composites.resolve(name)
    of_modules = [(composite.module_map(context, path, module), module) for path, module in model.named_modules()]
    assert [spelled(rule) for rule, module in of_modules if isinstance(module, Linear)] == expected


def narrow(module: nn.Module) -> nn.Module:
    return nn.Conv2d(3 if module.in_channels == 3 else 1, 1, 3, padding=1) if isinstance(module, nn.Conv2d) else module


def spelled(rule) -> str:
    from fxlrp.rules.zennit.spelled import spelled as of_rule

    return of_rule(rule)


def test_another_network_gets_the_same_shares():
    """SqueezeNet: of 26 layers, those with their middle in front of 7/16 (11.4 layers) and of 13/16 (21.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of torchvision: about its default way of making weights.
        model = torchvision.models.squeezenet1_1().eval()
    expected = ["ZBox(-3, 3)"] + 10 * ["Gamma(0.25)"] + 10 * ["Epsilon(0.25)"] + 5 * ["Epsilon(1e-06)"]
    assert rules_of(model, "tutorial", torch.randn(1, 3, 32, 32)) == expected


class Odd(nn.Module):
    """Layers that run in another order than they are made in, one twice, one unused; functional calls; a padded one."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)
        self.shared = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = F.relu(F.conv2d(self.first(x), self.weight))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.last(x.mean((2, 3)))


def test_calls_are_counted_in_the_order_of_execution():
    rules = [(i, zr.Epsilon(float(i + 1))) for i in range(5)]
    model, x = Odd().eval(), torch.randn(1, 3, 8, 8)
    assert rules_of(model, by_layer(rules), x) == [f"Epsilon({i + 1})" for i in range(5)]
    places = []

    def rule(context, name, module):
        if (place := fxlrp.composites.place_of(context, name, module)) is not None:
            places.append((place.index, place.count, name))
            return zr.Epsilon()

    fxlrp.check(model, Composite(module_map=rule), x)
    assert places == [(0, 5, "first"), (1, 5, ""), (2, 5, "shared"), (3, 5, "shared"), (4, 5, "last")]


def test_within_a_mixed_composite_each_part_counts_for_itself():
    model = vgg(4, 5)
    mixed = lambda: MixedComposite([NameMapComposite([(["0"], zr.WSquare())]), by_layer([((0.0, 1.0), zr.Gamma(0.5))])])
    expected = by_layer([((0.0, 1.0), zr.Gamma(0.5))], first=zr.WSquare())
    assert torch.equal(of_fxlrp(model, mixed(), X), of_fxlrp(model, expected, X))
    assert torch.equal(of_zennit(model, mixed(), X), of_zennit(model, expected, X))


def test_other_types_get_the_rules_of_the_map_that_is_given():
    model = vgg(4, 5)
    rules = [((0.0, 1.0), zr.Epsilon(0.1))]
    composite = by_layer(rules, layer_map=[(nn.ReLU, zr.ReLUGuidedBackprop())])
    expected = LayerMapComposite([(Linear, zr.Epsilon(0.1)), (nn.ReLU, zr.ReLUGuidedBackprop())])
    assert torch.equal(of_fxlrp(model, composite, X), of_fxlrp(model, expected, X))
    assert relative(of_fxlrp(model, composite, X), of_fxlrp(model, by_layer(rules), X)) > 1e-3


WRONG = {
    "an empty range": range(3, 3),
    "a range below zero": range(-2, 1),
    "a stop in front of the start": (4, 2),
    "an empty slice": slice(-1, -3),
    "a slice backwards": slice(5, 0, -1),
    "a share beyond one": (0.5, 1.5),
    "a share below zero": (-0.1, 0.5),
    "an empty share": (0.5, 0.5),
    "a float alone": 0.5,
    "a flag": True,
    "three ends": (0, 1, 2),
    "no number": (math.nan, 1.0),
    "a name": "features.0",
}


@pytest.mark.parametrize("where", WRONG.values(), ids=WRONG)
def test_what_says_no_layers_is_an_error(where):
    with pytest.raises(errors.CompositeError, match="says no linear layers"):
        by_layer([(where, zr.Epsilon())])


OVERLAPS = {
    "ranges": (range(0, 4), range(3, 5)),
    "steps": (range(0, 9, 2), slice(4, 5)),
    "shares": ((0.0, 0.5), (0.25, 0.75)),
}
ON_A_MODEL = {
    "from the end": (slice(-2, None), range(0, 3)),
    "shares and numbers": ((0.5, 1.0), (3, 4)),
}


@pytest.mark.parametrize(("one", "other"), OVERLAPS.values(), ids=OVERLAPS)
def test_ranges_that_overlap_are_an_error_at_once(one, other):
    with pytest.raises(errors.CompositeError, match="overlap"):
        by_layer([(one, zr.Epsilon()), (other, zr.ZPlus())])


@pytest.mark.parametrize(("one", "other"), ON_A_MODEL.values(), ids=ON_A_MODEL)
def test_ranges_that_overlap_on_a_model_are_an_error_there(one, other):
    composite = by_layer([(one, zr.Epsilon()), (other, zr.ZPlus())])
    with pytest.raises(errors.CompositeError, match=r"overlap.* of 4"):
        of_fxlrp(vgg(4, 5), composite, X)


def test_ranges_that_touch_do_not_overlap():
    by_layer([((0.0, 0.5), zr.Epsilon()), ((0.5, 1.0), zr.ZPlus())])
    by_layer([(range(0, 4), zr.Epsilon()), (range(4, 8), zr.ZPlus())])
    by_layer([(range(0, 9, 2), zr.Epsilon()), (range(1, 9, 2), zr.ZPlus())])


def test_a_range_that_a_model_has_not_is_an_error():
    with pytest.raises(errors.CompositeError, match=r"\[7:9\], and the model has 4"):
        of_fxlrp(vgg(4, 5), by_layer([(range(0, 4), zr.Epsilon()), (range(7, 9), zr.ZPlus())]), X)


def test_four_gammas():
    with pytest.raises(errors.CompositeError, match="3 gammas were given"):
        decreasing_gamma(-3.0, 3.0, (0.5, 0.25, 0.1))


def test_a_part_of_a_model_that_is_offered_alone_is_an_error():
    with pytest.raises(errors.CompositeError, match="before the model itself"):
        by_layer([((0.0, 1.0), zr.Epsilon())]).module_map({}, "0", nn.Linear(2, 2))


# Names


def test_all_composites_are_listed():
    listed = fxlrp.composites.listed()
    ours = {"tutorial", "decreasing_gamma", "by_layer", "pattern_attribution"}
    assert {each.name for each in listed} == set(COMPOSITES) | ours
    assert all(each.what and each.formula and each.source for each in listed)
    assert all(callable(getattr(fxlrp.composites, each.name)) for each in listed if each.name in ours)
    for each in listed:
        if each.by_name:
            assert isinstance(fxlrp.composites.resolve(each.name), Composite)
    assert all(each.name in str(listed) for each in listed)


def test_a_composite_that_is_registered_is_listed_and_found(monkeypatch):
    class Mine(LayerMapComposite):
        """All by epsilon.

        More.
        """

        def __init__(self):
            super().__init__([(Linear, zr.Epsilon())])

    monkeypatch.setitem(COMPOSITES, "mine", Mine)
    (found,) = [each for each in fxlrp.composites.listed() if each.name == "mine"]
    assert found.what == "All by epsilon."
    assert isinstance(fxlrp.composites.resolve("mine"), Mine)


def test_a_name_has_the_bounds_that_are_given():
    composite = fxlrp.composites.resolve("decreasing_gamma", (-1.0, 2.0))
    assert rules_of(vgg(4, 5), composite, X)[0] == "ZBox(-1, 2)"
    with pytest.raises(errors.CompositeError, match="did you mean 'tutorial'"):
        fxlrp.composites.resolve("tutoriel")


# Stabilizers


RULES = {
    "epsilon": zr.Epsilon,
    "gamma": lambda s: zr.Gamma(0.25, s),
    "z+": zr.ZPlus,
    "alpha-beta": lambda s: zr.AlphaBeta(2, 1, s),
    "box": lambda s: zr.ZBox(-3.0, 3.0, s),
}


def stabilized(name: str) -> Composite:
    """A composite that stabilizes with some per cent."""
    return LayerMapComposite(
        [(Linear, zr.Gamma(0.25, stabilizers[name](0.03))), *layer_map_base(stabilizers[name](0.01))]
    )


@pytest.mark.parametrize(("name", "rule"), list(product(stabilizers, RULES)))
def test_stabilizers_are_the_same_with_and_without_optimizations_and_zennits(name, rule):
    make = lambda: LayerMapComposite(
        [(Linear, RULES[rule](stabilizers[name](0.03))), *layer_map_base(stabilizers[name](0.01))]
    )
    model = vgg(4, 18, 5)
    plain = of_fxlrp(model, make(), X, optimize=False)
    assert relative(of_fxlrp(model, make(), X), plain) < 1e-12
    assert relative(of_zennit(model, make(), X), plain) < 1e-12
    assert relative(of_fxlrp(model, make(), X[:1]), plain[:1]) < 1e-12


@pytest.mark.parametrize("name", stabilizers)
def test_stabilizers_by_their_formulas(name):
    """One layer, in a loop over its units: items 1 to 3 of 2.1.5."""
    layer = trained(nn.Linear(5, 3).double()).requires_grad_(False)
    found = of_fxlrp(layer, LayerMapComposite([(nn.Linear, zr.Epsilon(stabilizers[name](0.3)))]), DENSE, None)
    for x, relevance in zip(DENSE, found, strict=True):
        z = [float(layer.weight[k] @ x + layer.bias[k]) for k in range(3)]
        k = max(range(3), key=z.__getitem__)
        denominator = {
            "vanilla": z[k] + 0.3,
            "sign": z[k] + math.copysign(0.3, z[k]),
            "quadratic_mean": z[k] + 0.3 * math.sqrt(sum(each**2 for each in z) / 3) + 1e-9,
        }[name]
        expected = [float(x[j] * layer.weight[k, j]) / denominator * z[k] for j in range(5)]
        assert relative(relevance, torch.tensor(expected, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("name", stabilizers)
def test_several_seeds_and_the_ledger_know_stabilizers(name):
    """With K seeds in one call, the mean is still a sample's; what the stabilizer takes is booked as its share."""
    model = vgg(4, 5)
    twin = fxlrp.convert(model, stabilized(name))
    seeds = torch.eye(4).double()[:, None].expand(4, len(X), 4)
    assert relative(twin(X, seeds).relevance[2], twin(X, seeds[2]).relevance) < 1e-12
    ledger = fxlrp.audit(twin, X[:1], 1)
    assert ledger.leak < 1e-9
    assert ledger.unconserved < 1e-9
    assert any(abs(row.stabilizer) > 1e-6 for row in ledger.rows)


def test_an_unknown_stabilizer():
    with pytest.raises(errors.RuleError, match="did you mean 'vanilla'"):
        stabilizers["vanila"]
    assert "vanila" not in stabilizers
    assert len(stabilizers) == 3


def test_stabilizers_are_spelled():
    composite = LayerMapComposite([(Linear, zr.Epsilon(stabilizers["quadratic_mean"](0.25)))])
    assert rules_of(vgg(4), composite, X)[0] == "Epsilon(QuadraticMean(0.25))"


# Rules tuned by gradient


def tuned(make, start: float, *, trainable: bool, optimize: bool = True) -> tuple[float, float]:
    """The derivative of a heatmap's log norm along what a rule holds: autograd's, and by differences."""
    model = vgg(4, 18, 5)

    def value(at) -> torch.Tensor:
        relevance = of_fxlrp(model, make(at), X, trainable=trainable, optimize=optimize)
        return relevance[..., :8].square().sum().log()

    number = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    value(number).backward()
    step = 1e-6
    with torch.no_grad():
        f0, f1, f2 = (float(value(torch.tensor(start + i * step, dtype=torch.float64))) for i in range(3))
    return float(number.grad), (4 * f1 - 3 * f0 - f2) / (2 * step)


TUNED = {
    "gamma by layer": (lambda g: by_layer([((0.0, 0.5), zr.Gamma(g)), ((0.5, 1.0), zr.Epsilon(0.1))]), 0.25),
    "gamma where it is zero": (lambda g: by_layer([((0.0, 1.0), zr.Gamma(g))]), 0.0),
    "tutorial": (lambda g: tutorial(-3.0, 3.0, gamma=g), 0.25),
    "the third gamma": (lambda g: decreasing_gamma(-3.0, 3.0, (0.5, 0.25, g, 0.0)), 0.1),
    "epsilon": (lambda e: by_layer([((0.0, 1.0), zr.Epsilon(Stabilizer(epsilon=e)))]), 0.25),
    "of the quadratic mean": (lambda e: tutorial(-3.0, 3.0, epsilon=stabilizers["quadratic_mean"](e)), 0.25),
    "alpha and beta": (lambda a: by_layer([((0.0, 1.0), zr.AlphaBeta(a, a - 1))]), 2.0),
}


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "constant"])
@pytest.mark.parametrize(("make", "start"), TUNED.values(), ids=TUNED)
def test_rules_have_derivatives_along_their_numbers(make, start, trainable):
    automatic, difference = tuned(make, start, trainable=trainable)
    assert abs(difference) > 1e-4
    assert automatic == pytest.approx(difference, rel=1e-5)


def test_a_tuned_rule_follows_its_number():
    """One conversion: what an optimizer writes into gamma is what the next call explains with."""
    model, gamma = vgg(4, 18), torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    twin = fxlrp.convert(model, by_layer([((0.0, 1.0), zr.Gamma(gamma))]))
    for value in (0.25, 1.5):
        with torch.no_grad():
            gamma.fill_(value)
        expected = of_fxlrp(model, by_layer([((0.0, 1.0), zr.Gamma(value))]), X)
        assert relative(twin(X, 1).relevance, expected) < 1e-12


def test_with_a_tuned_rule_the_weights_stay_constants():
    model = vgg(4)
    gamma = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    out = fxlrp.convert(model, by_layer([((0.0, 1.0), zr.Gamma(gamma))]))(X.clone().requires_grad_(), 1)
    assert not out.output.requires_grad
    out.relevance.square().sum().backward()
    assert gamma.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not fxlrp.convert(model, by_layer([((0.0, 1.0), zr.Gamma(0.25))]))(X, 1).relevance.requires_grad


# PatternAttribution


def toy(count: int = 41):
    """Kindermans' example: ``x = a_s y + a_d e``, signal and distractor not correlated, seen by ``w = (1, -1)``."""
    line = torch.linspace(-1, 1, count, dtype=torch.float64)
    y, e = torch.meshgrid(0.5 + 1.5 * line, line, indexing="ij")
    y, e = y.flatten(), e.flatten()
    return torch.stack([y + e, e], 1), y


@pytest.mark.parametrize("gated", [False, True], ids=["linear", "in front of a ReLU"])
def test_patterns_are_the_signals_direction(gated):
    """The weight (1, -1) filters the distractor (1, 1) out; the pattern is the signal's (1, 0), whatever the weight."""
    data, y = toy()
    weigh, keep = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        weigh.weight.copy_(torch.tensor([[1.0, -1.0]]))
        keep.weight.fill_(1.0)
    model = nn.Sequential(weigh, *([nn.ReLU(), keep] if gated else [])).double()
    composite = pattern_attribution(model, [data])
    assert torch.allclose(composite.patterns[0].weight, torch.tensor([[1.0, 0.0]]).double(), atol=1e-12)
    expected = torch.stack([y.clamp(min=0) if gated else y, torch.zeros_like(y)], 1)
    assert torch.allclose(of_fxlrp(model, composite, data, 0), expected, atol=1e-12)


def test_patterns_are_those_of_a_loop_over_the_data():
    """Batches of any size, a strided convolution in groups and two fully connected layers; the last has no ReLU."""
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(54, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    model.requires_grad_(False)
    data = torch.randn(20, 4, 5, 5, dtype=torch.float64)
    found = pattern_attribution(model, [(data[:12], "labels"), (data[12:], "labels")]).patterns
    assert [each.path for each in found.values()] == ["0", "3", "5"]
    hidden = model[:3](data)
    for index, layer, inputs, gated in ((1, model[3], hidden, True), (2, model[5], model[:5](data), False)):
        for k in range(layer.out_features):
            seen = [(x, float(layer.weight[k] @ x), float(layer.weight[k] @ x + layer.bias[k]) > 0) for x in inputs]
            assert relative(found[index].weight[k], pattern_in_a_loop(layer.weight[k], seen, gated)) < 1e-10
    padded = F.pad(data, (1, 1, 1, 1))
    for k in range(6):
        seen = []
        for x, i, j in product(padded, range(3), range(3)):
            patch = x[2 * (k // 3) : 2 * (k // 3) + 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            y = float((conv.weight[k] * patch).sum())
            seen.append((patch, y, y + float(conv.bias[k]) > 0))
        assert relative(found[0].weight[k], pattern_in_a_loop(conv.weight[k], seen, True)) < 1e-10


def pattern_in_a_loop(weight, seen, gated: bool) -> torch.Tensor:
    counted = [(x, y) for x, y, opens in seen if opens or not gated]
    of_both, of_inputs = sum(x * y for x, y in counted) / len(counted), sum(x for x, _ in counted) / len(counted)
    covariance = of_both - of_inputs * sum(y for _, y, _ in seen) / len(seen)
    return covariance / (weight * covariance).sum().item()


class Functional(nn.Module):
    """As modules have it, without modules."""

    def __init__(self, like: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ParameterList(like.parameters())

    def forward(self, x):
        w1, b1, w2, b2 = self.layers
        return F.linear(F.conv2d(x, w1, b1, padding=1).relu().mean((2, 3)), w2, b2)


@pytest.mark.parametrize(("bias", "turned"), [(3.0, 1), (0.0, 0)])
def test_a_pattern_that_a_large_bias_turns_around_is_said(bias, turned):
    """One unit measures x_0 + b, which has the mean 0: b = 3 is opened by what is -2.2 in the mean without it."""
    first = nn.Linear(2, 1)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0]]))
        first.bias.fill_(bias)
    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - torch.tensor([bias, 0.0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pattern_attribution(model, [x])
    assert [str(each.message).partition(" units")[0] for each in said] == ["the patterns of 1 of 2"] * turned


def test_pattern_attribution_is_zennits_with_the_same_rules():
    """A dead unit, batches, a transposed and a circular convolution; functional calls in their place are the same."""
    layers = [nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=2)]
    model = trained(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))).double()
    with torch.no_grad():
        model[0].bias[1] = -100.0
    composite = pattern_attribution(model.eval(), X.split(2))
    assert not composite.patterns[0].weight[1].any()
    found = of_fxlrp(model, composite, X)
    assert relative(found, of_zennit(model, composite, X)) < 1e-10
    conserved = (model[2].weight * composite.patterns[1].weight).unflatten(0, (2, 2)).flatten(3).sum((1, 3)).flatten()
    opened = (model[:3](X) > 0).any(0).flatten(1).any(1)
    assert opened.sum() == 5
    assert torch.allclose(conserved, opened.double())
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    plain, functional = plain.double().eval(), Functional(plain).eval()
    maps = [of_fxlrp(each, pattern_attribution(each, [X]), X) for each in (plain, functional)]
    assert relative(maps[1], maps[0]) < 1e-12


def test_patterns_of_folded_batch_norms():
    """A network with batch norms has the heatmap of the one that they were merged into."""
    torch.manual_seed(0)
    conv, norm, head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), [nn.ReLU(), nn.Flatten(), nn.Linear(784, 2)]
    model = trained(nn.Sequential(conv, norm, *head).double()).eval()
    merged = nn.Sequential(nn.utils.fuse_conv_bn_eval(conv, norm), *head).eval()
    maps = [of_fxlrp(each, pattern_attribution(each, [X]), X) for each in (model, merged)]
    assert relative(maps[0], maps[1]) < 1e-10


def test_patterns_of_another_model_are_an_error():
    composite = pattern_attribution(dense(), [DENSE])
    with pytest.raises(errors.CompositeError, match="no pattern was estimated"):
        of_fxlrp(vgg(4), composite, X)
    other = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    with pytest.raises(errors.CompositeError, match="whose weight has the shape"):
        of_fxlrp(other, composite, DENSE)


@pytest.mark.parametrize(("loader", "match"), [([], "no images"), (["image.png"], "gave a str")])
def test_loaders_without_tensors_are_an_error(loader, match):
    with pytest.raises(errors.InputError, match=match):
        pattern_attribution(dense(), loader)


@pytest.mark.parametrize("name", ["vanilla", "sign", "quadratic_mean"])
def test_a_stabilizer_is_an_attribute_too(name):
    z = torch.randn(2, 5, dtype=torch.float64)
    expected = fxlrp.rules.stabilizers[name](0.25)(z)
    assert torch.equal(getattr(fxlrp.rules.stabilizers, name)(0.25)(z), expected)
    assert not torch.equal(expected, z)
