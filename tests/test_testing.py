"""What downstream CI uses: strategies draw what they say, assertions fail where they should and name the node."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
import zennit.rules as zr
from hypothesis import HealthCheck, Phase, given, settings
from test_ledger import break_sign
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, Linear

import fxlrp
from fxlrp.place import module_path
from fxlrp.relevance import assign
from fxlrp.rules import Gradient
from fxlrp.testing import (
    assert_conserves,
    assert_matches_zennit,
    assert_same_function,
    assertions,
    composites,
    inputs,
    networks,
    rules,
    trained,
)
from fxlrp.testing.strategies import modules

DRAW = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return trained(nn.Sequential(*layers, nn.Linear(36, 3))).eval()


X = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_networks_hold_every_kind_of_block():
    kinds = Counter()

    @settings(DRAW, max_examples=300)
    @given(networks())
    def draw(model):
        assert not model.training
        x = torch.randn(2, *model.input_shape).double()
        out = model(x)
        assert out.shape == (2, 3)
        assert out.isfinite().all()
        torch.testing.assert_close(model(x.flip(0)).flip(0), out)
        kinds.update({re.sub(r"\dd$", "", type(module).__name__) for module in model.modules()})
        kinds.update({f"{len(model.input_shape) - 1}-d"})
        convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
        kinds.update({f"padding {m.padding_mode}" for m in convolutions if m.padding not in (0, (0,), (0, 0))})
        kinds.update(
            {"groups" for m in convolutions if m.groups > 1} | {"same" for m in convolutions if m.padding == "same"}
        )
        kinds.update({"dilation" for m in convolutions if max(m.dilation) > 1})

    draw()
    wanted = "1-d 2-d 3-d BatchNorm FrozenBatchNorm Conv ConvTranspose Linear ReLU Shared MaxPool AvgPool Gate Residual"
    wanted = {*wanted.split(), "Concat", "Split", "Reused", "LayerScale", "Dropout", "Functional", "groups", "dilation"}
    wanted |= {"same", "padding zeros", "padding reflect", "padding replicate", "padding circular"}
    assert {kind for kind, count in kinds.items() if count >= 2} >= wanted


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (modules.Functional(torch.clamp, min=0), "Functional(clamp, min=0)"),
        (modules.LayerScale(3, 2), "LayerScale(3, dims=2)"),
        (modules.FrozenBatchNorm(4), "FrozenBatchNorm(4)"),
        (
            modules.PadsItself((1, 0), nn.Conv1d(4, 6, 3, stride=2, groups=2)),
            "PadsItself(pad=(1, 0), weight=(6, 2, 3), stride=(2,), dilation=(1,), groups=2)",
        ),
        (modules.Residual(nn.ReLU(), "y += x"), "Residual(\n  y += x\n  (block): ReLU()\n)"),
        (
            modules.Network(nn.ReLU(), input_shape=(3, 4), seed=5, norm_weights="drawn"),
            "Network(\n  input_shape=(3, 4), seed=5, norm_weights='drawn'\n  (0): ReLU()\n)",
        ),
    ],
)
def test_what_a_failing_example_is_made_of_is_printed(module, text):
    assert repr(module) == text


def test_without_biases_there_are_no_live_statistics():
    @settings(DRAW, max_examples=1)
    @given(networks(biases=False, live_statistics=True))
    def draw(model):
        pytest.fail("there is one")

    with pytest.raises(ValueError, match="networks without biases have no live statistics"):
        draw()


def test_networks_without_biases():
    """Nothing but the weights: of a sample of zeros, the output is zero."""

    @settings(DRAW, max_examples=20)
    @given(networks(biases=False, piecewise_linear=True))
    def draw(model):
        assert not model(torch.zeros(1, *model.input_shape).double()).any()

    draw()


def test_inputs_rules_and_composites():
    @settings(DRAW, max_examples=20)
    @given(inputs((2, 3), batch=4), rules(conserving=True), rules(conserving=False), composites())
    def draw(x, conserving, other, composite):
        assert (x.shape, x.dtype) == ((4, 2, 3), torch.float64)
        assert x.isfinite().all()
        assert not isinstance(conserving, zr.AlphaBeta)
        assert isinstance(other, zr.AlphaBeta)
        assert composite.layer_map

    draw()


def test_trained_is_of_its_seed_alone():
    first, second = trained(nn.BatchNorm2d(3), 1), trained(nn.BatchNorm2d(3), 1)
    assert torch.equal(first.running_var, second.running_var)
    assert not torch.equal(first.running_var, trained(nn.BatchNorm2d(3), 2).running_var)
    assert first.running_var.dtype == torch.float64
    assert 0.5 <= first.weight.min() <= first.weight.max() <= 1.5


def test_same_function():
    model = small()
    assert_same_function(fxlrp.canonize(model, X), model, X)
    other = small()
    other[3].bias.data[0] += 1e-3
    with pytest.raises(
        AssertionError, match=r"differ by .*first op whose value differs is '_3': aten.conv2d.* in module '3'"
    ):
        assert_same_function(model, other, X)
    with pytest.raises(AssertionError, match=r"differ by .*first op whose value differs is '_3': aten.conv2d"):
        assert_same_function(fxlrp.canonize(other, X), model, X)
    with pytest.raises(AssertionError, match=r"differ by .*; every op that both have under one name has the same"):
        assert_same_function(model, nn.Sequential(other), X)
    other = nn.Sequential(*small(), nn.Flatten())
    other[6].weight.data[0] = float("nan")
    with pytest.raises(AssertionError, match=r"differ by nan .*'_6'"):
        assert_same_function(model, other, X)
    with pytest.raises(AssertionError, match=r"shapes \(2, 3\) and \(2, 4, 5, 5\)"):
        assert_same_function(model, small()[:1], X)


def test_of_what_cannot_be_captured_no_op_is_named():
    class Choosing(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else 2 * x

    with pytest.raises(AssertionError, match=r"differ by .* \(allowed: 1e-09\)$"):
        assert_same_function(Choosing(), nn.Tanh(), torch.ones(2, 3))


def test_conserves(monkeypatch):
    model = small()
    assert_conserves(fxlrp.convert(model, "epsilon_plus"), X)
    half = LayerMapComposite([(Activation, zr.ReLUDeconvNet()), (Linear, zr.Epsilon())])
    assert_conserves(fxlrp.convert(model, half), X, unconserved=None)
    with pytest.raises(AssertionError, match=r"unconserved is .* at '_[24]' \(relu in '[24]', rule ReLUDeconvNet\)"):
        assert_conserves(fxlrp.convert(model, half), X)
    break_sign(monkeypatch)
    with pytest.raises(AssertionError, match=r"leak is .* at '_6' \(linear in '6', rule Epsilon\(.*\)\): .* came in"):
        assert_conserves(fxlrp.convert(model, EpsilonPlus()), X)


def test_matches_zennit(monkeypatch):
    from zennit.canonizers import SequentialMergeBatchNorm

    model = small()
    model[2].inplace = True
    for composite in (EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]), "epsilon_alpha2_beta1_flat"):
        if isinstance(composite, str):
            assert_matches_zennit(nn.Sequential(*model[:1], *model[2:]), composite, X, 1)
        else:
            assert_matches_zennit(model, composite, X, 1)
    assert model[2].inplace
    break_sign(monkeypatch)
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    with pytest.raises(AssertionError, match=r"relevance differs from zennit's by .*first module .* is '6'"):
        assert_matches_zennit(model, composite, X, 1)


class Branching(nn.Module):
    """A value that two modules read, a sum, a pooling, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.left, self.right, self.sum = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), Sum(-1)
        self.behind, self.pool, self.last = nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.behind(self.sum(torch.stack([self.left(x), self.right(x)], -1)))
        return self.last(self.pool(x).flatten(1))


@pytest.fixture(scope="module")
def branching():
    torch.manual_seed(0)
    return trained(Branching()).eval()


def with_every_kind():
    return LayerMapComposite([(Activation, zr.Pass()), ((Sum, AvgPool), zr.Norm()), (Linear, zr.Epsilon(0.1))])


@pytest.mark.parametrize("place", ["first", "left", "sum", "behind", "pool", "last"])
def test_the_module_whose_rule_is_broken_is_the_one_named(monkeypatch, branching, place):
    """Ours is broken at one module alone: those above it are right, and those beside it."""
    assert_matches_zennit(branching, with_every_kind(), X, 1)
    plain = assign._rule_of

    class Broken(Gradient):
        def propagate(self, call, output, relevance):
            return [1.5 * share for share in super().propagate(call, output, relevance)]

    def rule_of(hook, module, node, op):
        broken = module_path(node) == place
        return Broken() if broken else plain(hook, module, node, op)

    monkeypatch.setattr(assign, "_rule_of", rule_of)
    with pytest.raises(AssertionError, match=rf"whose input's relevance differs is '{place}'"):
        assert_matches_zennit(branching, with_every_kind(), X, 1)


@pytest.mark.parametrize("place", ["first", "right", "behind", "last"])
def test_the_module_is_named_by_what_zennit_does_there(monkeypatch, branching, place):
    """zennit's is another at one module alone, though the plain gradient behind its hooks is the same everywhere."""
    plain = assertions._recorded

    def recorded(model, composite, x, seed):
        def module_map(ctx, name, module):
            return zr.ZPlus() if name == place else composite.module_map(ctx, name, module)

        return plain(model, Composite(module_map=module_map), x, seed)

    monkeypatch.setattr(assertions, "_recorded", recorded)
    with pytest.raises(AssertionError, match=rf"whose input's relevance differs is '{place}'"):
        assert_matches_zennit(branching, with_every_kind(), X, 1)


class Positions(nn.Module):
    """Adds embeddings of numbers to what a layer makes of the input; and a module that does nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.nothing, self.last = nn.Conv1d(6, 6, 1), nn.Identity(), nn.Linear(24, 3)
        self.of_position, self.sum = nn.Embedding(6, 4), Sum(-1)

    def forward(self, x):
        shift = self.of_position(torch.arange(6)).expand(len(x), -1, -1)
        return self.nothing(self.last(self.sum(torch.stack([self.first(x), shift], -1)).flatten(1)))


def test_modules_that_relevance_does_not_go_through(monkeypatch):
    torch.manual_seed(0)
    model, x = trained(Positions()).eval(), torch.randn(2, 6, 4, dtype=torch.float64)
    composite = LayerMapComposite([(Linear, zr.Epsilon(0.1)), (Sum, zr.Norm())])
    assert_matches_zennit(model, composite, x, 1)
    break_sign(monkeypatch)
    with pytest.raises(AssertionError, match="whose input's relevance differs is 'last'"):
        assert_matches_zennit(model, composite, x, 1)


FACTORIES = """
import torch
from torch import nn


def model():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 2)), torch.randn(2, 3, 8, 8)


def mixing():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x + x.flip(0))

    return Mixing(), torch.randn(4, 3)


def wrong():
    return 3
"""


@pytest.fixture
def run(pytester):
    """Run pytest beside a test of one's own, with the plugin as it is installed."""
    pytester.makepyfile(mine=FACTORIES, test_own="def test_own():\n    pass\n")
    pytester.syspathinsert()
    return lambda *options: pytester.runpytest_inprocess("-p", "no:cacheprovider", "test_own.py", *options)


def test_the_plugin(run):
    run("--fxlrp-model", "mine:model", "--fxlrp-composite", "epsilon_plus").assert_outcomes(passed=6)


def test_the_plugin_finds_what_is_wrong(run):
    result = run("--fxlrp-model", "mine:mixing", "--fxlrp-composite", "epsilon_plus")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["FAILED*test_samples_do_not_mix*"])
    result = run("--fxlrp-model", "mine:wrong", "--fxlrp-composite", "epsilon_plus")
    result.stdout.fnmatch_lines(["*mine:wrong returned int, not (model, example input)*"])
    result = run("--fxlrp-model", "mine:none")
    result.stdout.fnmatch_lines(["*it is written MODULE:FACTORY*"])
