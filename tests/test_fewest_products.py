"""A rule comes to as few products as can be derived by hand, and gives what all of them give.

Guards against a plan that is right for a rule's class and not for its functions, against one that takes a ReLU for
closed that lets relevance through, and against operations that come back unnoticed.
"""

from __future__ import annotations

import pytest
import torch
import zennit.rules as zr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, Stabilizer
from zennit.layer import Sum
from zennit.types import Activation

import fxlrp
from fxlrp.relevance.rewrites import fewest_products
from fxlrp.relevance.step import Step
from fxlrp.rules.zennit.planned import PlannedRule
from fxlrp.rules.zennit.reading import Use, reading_of
from fxlrp.rules.zennit.traced import traced
from fxlrp.testing import composites, inputs, networks, trained
from fxlrp.testing.assertions import relative

aten = torch.ops.aten
WIDTH = 4


class Chain(nn.Module):
    """A layer of an input of any sign, one that a ReLU stands on either side of, and one that is not shut.

    What the last layer is given is not negative; its value is read by none that is closed at zero.
    """

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return self.last(self.inner(self.first(x).relu()).relu()).mean((2, 3))


class Counted(TorchDispatchMode):
    """Counts convolutions and their transposes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (aten.convolution.default, aten.convolution_backward.default)
        return func(*args, **(kwargs or {}))


def twin_of(model, rule, **options):
    layers = [(Activation, zr.Pass()), (Sum, zr.Norm()), (nn.Conv2d, rule)]
    return fxlrp.convert(model, LayerMapComposite(layers), **options)


def steps_of(twin):
    return [module for module in twin.graph_module.modules() if isinstance(module, Step)]


def planned(twin):
    return sum(isinstance(step.rule, PlannedRule) for step in steps_of(twin))


@pytest.fixture(autouse=True)
def few_inputs_too(monkeypatch):
    monkeypatch.setattr(fewest_products, "FEWEST_INPUTS", 1)


# Beside the forward pass, by hand: of inputs of any sign and in front of a ReLU, of non-negative ones in front of a
# ReLU, of non-negative ones with nothing behind. Two transposes side by side are one call.
BY_HAND = {
    # z is known: R / z is taken back.
    "epsilon": (zr.Epsilon(), (1, 1, 1)),
    # z+ = (|w||x| + z) / 2; by w+ for what is positive and w- for what is negative; by w+ alone.
    "z+": (zr.ZPlus(), (1 + 2, 1 + 1, 1 + 1)),
    # z + gamma z+, of inputs of any sign as above; a shut unit has no relevance; (2 + gamma) z - z1 where it is not,
    # back by w + gamma w+ and w + gamma w- side by side.
    "gamma": (zr.Gamma(0.25), (1 + 2, 1 + 1, 1 + 1)),
    # z- = z - z+; back by |w| and w, or by w+ and w- side by side.
    "alpha-beta": (zr.AlphaBeta(2, 1), (1 + 2, 1 + 1, 1 + 1)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_products_are_as_few_as_derived(name):
    torch.manual_seed(0)
    rule, by_hand = BY_HAND[name]
    model, x = trained(Chain()).eval(), torch.randn(2, WIDTH, 6, 6, dtype=torch.float64)
    twin = twin_of(model, rule, example_inputs=x)
    with torch.no_grad(), Counted() as counted:
        out = twin(x, 1)
    assert counted.count == 3 + sum(by_hand)
    assert relative(out.relevance, twin_of(model, rule, optimize=False)(x, 1).relevance) < 1e-11
    rules = {step.site.where.split("'")[1]: step.rule for step in steps_of(twin)}
    for layer, count in zip(("first", "inner", "last"), by_hand, strict=True):
        rule = rules[layer]
        assert isinstance(rule, PlannedRule)
        transposes = sum(1 if rule.beside else len(share.parts) for share in rule.plan.shares)
        assert len(rule.plan.products) + transposes == count


@pytest.mark.parametrize("kind", ["gamma", "alpha-beta"])
@settings(
    max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(number=st.floats(1e-5, 100.0))
def test_products_are_as_few_whatever_the_rules_number(kind, number):
    """A difference of numbers that are nearly equal is rounded: what is left of rank one is so within that alone."""
    torch.manual_seed(0)
    # zennit wants alpha - beta to be 1 to the last digit.
    beta = max(round(number * 1024), 1) / 1024
    rule = zr.Gamma(number) if kind == "gamma" else zr.AlphaBeta(1 + beta, beta)
    model, x = trained(Chain()).eval(), torch.randn(2, WIDTH, 6, 6, dtype=torch.float64)
    twin = twin_of(model, rule, example_inputs=x)
    with torch.no_grad(), Counted() as counted:
        out = twin(x, 1)
    assert counted.count == 3 + sum(BY_HAND[kind][1])
    assert relative(out.relevance, twin_of(model, rule, optimize=False)(x, 1).relevance) < 1e-11


class Own(BasicHook):
    """A rule of no class of zennit's: a leaky weight, three branches of which two are summed up, one halved."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: 3 * x.clamp(min=0), lambda x: x.clamp(max=0), lambda x: x.abs()],
            param_modifiers=[
                lambda p, _: nn.functional.leaky_relu(p, 0.3),
                lambda p, _: p.clamp(max=0) / 2,
                lambda p, _: p,
            ],
            output_modifiers=[lambda z: z] * 3,
            gradient_mapper=lambda r, o: [
                r / Stabilizer(0.1)(o[0] + o[1]),
                2 * r / Stabilizer(0.1)(o[0] + o[1]),
                o[2] * r,
            ],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] - inputs[1] * gradients[1] / 2,
        )


def test_what_a_rule_comes_to_is_found_out_by_its_functions():
    reading = reading_of(Own().gradient_mapper, Use(3, (0, 1), (), shut=False))
    assert reading == (((0, 1),), (((0, 1.0), (1, 2.0)),))
    torch.manual_seed(0)
    model, x = trained(Chain()).eval(), torch.randn(2, WIDTH, 6, 6, dtype=torch.float64)
    twin = twin_of(model, Own(), example_inputs=x)
    assert planned(twin) == 3
    assert relative(twin(x, 1).relevance, twin_of(model, Own(), optimize=False)(x, 1).relevance) < 1e-11


def test_a_mapper_is_followed_as_far_as_it_is_wanted():
    """Of gamma's in front of a ReLU, a quotient is left: no comparison, and not the forward pass's value."""
    mapper = zr.Gamma(0.25).gradient_mapper
    shut = traced(mapper, Use(5, (0,), (4,), shut=True), [0, 4])
    assert shut is not None
    assert shut.reads == {0}
    open_ = traced(mapper, Use(5, (0, 2), (4,), shut=False), [0, 2, 4])
    assert open_ is not None
    assert open_.reads == {0, 2, 4}
    draw = lambda seed: torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    relevance, z, zero = draw(0), draw(1), torch.zeros(())
    outputs = [draw(2), zero, draw(3), zero, z]
    for found, i in ((shut, 0), (open_, 0), (open_, 2)):
        r = relevance * (z > 0) if found is shut else relevance
        torch.testing.assert_close(found(r, outputs)[i], mapper(r, outputs)[i], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "mapper",
    [
        lambda r, o: [r / (1 + o[0].abs().max())] if bool((o[0] > -9).all()) else [r],
        lambda r, o: [r * float(o[0].sum())],
    ],
    ids=["looks at values", "leaves torch"],
)
def test_a_mapper_that_cannot_be_followed_is_called(mapper):
    assert traced(mapper, Use(1, (0,), (), shut=False), [0]) is None


def test_what_is_found_out_is_remembered_while_a_pass_is_written_and_no_longer():
    """A modifier may hold a number that is changed later."""
    slope, asked = [0.3], []

    def leaky(param, name):
        asked.append(name)
        return nn.functional.leaky_relu(param, slope[0])

    rule = BasicHook(
        input_modifiers=[lambda x: x],
        param_modifiers=[leaky],
        output_modifiers=[lambda z: z],
        gradient_mapper=lambda r, o: [r / Stabilizer(0.1)(o[0])],
        reducer=lambda inputs, gradients: inputs[0] * gradients[0],
    )
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU()) for _ in range(6)]
    x = torch.randn(2, WIDTH, 4, 4, dtype=torch.float64)
    models = [trained(nn.Sequential(*layers[:count], nn.Flatten())).eval() for count in (2, 6)]
    counts = []
    for model in models:
        asked.clear()
        twin_of(model, rule, example_inputs=x)
        counts.append(len(asked))
    # Each layer's parameters are modified once; the rest is found out once, however many layers there are.
    assert counts[1] - counts[0] <= 4 * 2
    before = twin_of(models[1], rule)(x, 0).relevance
    slope[0] = 0.9
    found, plain = twin_of(models[1], rule)(x, 0), twin_of(models[1], rule, optimize=False)(x, 0)
    assert relative(found.relevance, plain.relevance) < 1e-11
    assert relative(found.relevance, before) > 1e-3


def far_below(r, o):
    return [(o[0] > -10.0) * r / (1 + o[0].abs()), r]


def far_above(r, o):
    return [r / (1 + (o[0].clamp(max=20.0) + o[1]).abs())] * 2


def of_a_sum(r, o):
    return [r / (1 + (o[0] + o[1]).abs())] * 2


FAR = {
    "a mapper below": (far_below, lambda inputs, gradients: inputs[0] * gradients[0]),
    "a mapper above": (far_above, lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1]),
    "a reducer": (
        of_a_sum,
        lambda inputs, gradients: inputs[0] * gradients[0] + (inputs[1] * gradients[1]).clamp(-9, 9),
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_what_a_rule_does_with_large_values_alone_is_seen(name):
    """Probed on numbers about one, it would be taken for what it does there."""
    mapper, reducer = FAR[name]
    rule = BasicHook(
        input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)],
        param_modifiers=[lambda p, _: p] * 2,
        output_modifiers=[lambda z: z] * 2,
        gradient_mapper=mapper,
        reducer=reducer,
    )
    torch.manual_seed(0)
    model, x = trained(Chain()).eval(), 100 * torch.randn(2, WIDTH, 6, 6, dtype=torch.float64)
    found, plain = twin_of(model, rule)(x, 1), twin_of(model, rule, optimize=False)(x, 1)
    assert relative(found.relevance, plain.relevance) < 1e-11


@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trainable"])
@pytest.mark.parametrize("names", [True, ("fewest_products", "side_by_side")], ids=["all", "two"])
def test_weights_that_are_no_constants_are_taken_back_one_by_one(names, trainable):
    """A batch norm in training mode makes them of the batch's statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH))
    model, x = trained(nn.Sequential(model, nn.Flatten())).train(), torch.randn(3, WIDTH, 4, 4, dtype=torch.float64)
    options = {"trainable": trainable}
    found = twin_of(model, zr.AlphaBeta(2, 1), optimize=names, **options)(x, 1)
    assert (
        relative(found.relevance, twin_of(model, zr.AlphaBeta(2, 1), optimize=False, **options)(x, 1).relevance) < 1e-11
    )


@pytest.mark.parametrize("end", [nn.Flatten(), nn.Identity(), nn.MaxPool2d(2)], ids=["view", "itself", "pool"])
def test_a_unit_is_not_shut_to_a_seed(end):
    """It may be anything, where the ReLU's value is zero too."""
    torch.manual_seed(0)
    model, x = (
        trained(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), end)).eval(),
        torch.randn(2, WIDTH, 4, 4).double(),
    )
    seed = torch.randn_like(model(x))
    found, plain = twin_of(model, zr.Gamma(0.25))(x, seed), twin_of(model, zr.Gamma(0.25), optimize=False)(x, seed)
    assert relative(found.relevance, plain.relevance) < 1e-11


class Branching(nn.Module):
    """A ReLU whose value has another reader."""

    def __init__(self, reader):
        super().__init__()
        self.layer, self.next, self.reader = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), reader

    def forward(self, x):
        x = self.layer(x).relu()
        return (self.next(x) + self.reader(x)).mean((2, 3))


READERS = {
    "a layer": (nn.Conv2d(WIDTH, WIDTH, 1), True),
    "nothing": (nn.Identity(), True),
    "a max pool": (nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 1)), True),
    "a view": (nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (4, 4)), nn.Conv2d(WIDTH, WIDTH, 1)), True),
    "a flat layer": (nn.ConvTranspose2d(WIDTH, WIDTH, 1), False),
    "a max pool and a flat layer": (nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ConvTranspose2d(WIDTH, WIDTH, 1)), False),
    "an activation that has no zero": (nn.Sequential(nn.Sigmoid(), nn.Conv2d(WIDTH, WIDTH, 1)), False),
}


@pytest.mark.parametrize("name", READERS)
def test_a_unit_is_shut_if_all_readers_share_in_proportion(name):
    torch.manual_seed(0)
    reader, shut = READERS[name]
    model, x = trained(Branching(reader)).eval(), torch.randn(2, WIDTH, 4, 4, dtype=torch.float64)
    layers = [(Activation, zr.Pass()), (Sum, zr.Norm()), (nn.ConvTranspose2d, zr.Flat()), (nn.Conv2d, zr.Gamma(0.25))]
    twin = fxlrp.convert(model, LayerMapComposite(layers))
    out = twin(x, 1)
    (step,) = [step for step in steps_of(twin) if "'layer'" in step.site.where]
    assert step.site.shut == shut
    plain = fxlrp.convert(model, LayerMapComposite(layers), optimize=False)(x, 1)
    assert relative(out.relevance, plain.relevance) < 1e-11


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_drawn_rules_give_the_same_on_drawn_networks(count):
    count_planned = []

    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(networks().flatmap(lambda m: inputs(m.input_shape).map(lambda x: (m, x))), composites())
    def check(case, composite):
        model, x = case
        twin = fxlrp.convert(model, composite)
        found, plain = twin(x, 0), fxlrp.convert(model, composite, optimize=False)(x, 0)
        assert relative(found.output, plain.output) < 1e-10
        assert relative(found.relevance, plain.relevance) < 1e-10
        count_planned.append(planned(twin))

    check()
    assert sum(count_planned) >= count
