"""What is left out of the relevance pass changes nothing, each thing by itself and all together.

Guards against a rewrite that takes a branch for known which is not, and against one that cannot be switched off.
"""

from __future__ import annotations

import re

import pytest
import torch
import zennit.rules as zr
from torch import nn
from torch.nn import functional as F
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear

import fxlrp.recipe
from fxlrp.errors import InputError
from fxlrp.relevance.rewrites import FORWARD, REWRITES
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative


class Mixed(nn.Module):
    """Layers behind a ReLU and in front of one, scales that are left outside, a batch norm that stays, a pool, sums."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_norm = nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.BatchNorm2d(16)
        self.wide, self.wide_norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pre, self.after = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.up_norm, self.head = nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool2d(self.norm(self.stem(x)).relu(), 2)
        x = self.after(x + self.inner_norm(self.inner(self.wide_norm(self.wide(x)).relu())))
        x = x + F.silu(self.wide(x)) + self.inner(self.pre(x).relu())
        x = self.up_norm(self.up(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Halves(BasicHook):
    """Two branches that are each the forward pass, and one that is nothing."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: x, lambda x: x.clamp(max=0), lambda x: x],
            param_modifiers=[lambda p, name: p, lambda p, name: p.abs(), lambda p, name: p * 2],
            output_modifiers=[lambda z: z, torch.tanh, lambda z: z],
            gradient_mapper=lambda r, outputs: [r / (1 + output.abs()) for output in outputs],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] + 0.5 * inputs[1] * gradients[1],
        )


RULES = {
    "epsilon": zr.Epsilon(0.1),
    "epsilon without bias": zr.Epsilon(0.1, zero_params="bias"),
    "z+": zr.ZPlus(),
    "gamma": zr.Gamma(0.25),
    "alpha-beta": zr.AlphaBeta(2, 1),
    "flat": zr.Flat(),
    "w2": zr.WSquare(),
    "box": zr.ZBox(-3.0, 3.0),
    "of one's own": Halves(),
}


@pytest.fixture(scope="module")
def case():
    """A model and an input."""
    torch.manual_seed(0)
    model, x = trained(Mixed()).eval(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    model.pre.weight.data.abs_()
    return model, x


def found(model, x, rule, trainable, optimize):
    layers = [(Activation, zr.Pass()), (Sum, zr.Norm(0.1)), (AvgPool, zr.Norm(0.1)), (BatchNorm, rule), (Linear, rule)]
    twin = fxlrp.convert(model, LayerMapComposite(layers), trainable=trainable, optimize=optimize)
    out = twin(x, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(out.relevance.square().sum(), parameters) if trainable else ()
    return out.output, out.relevance, *gradients


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "non-negative"])
@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trainable"])
@pytest.mark.parametrize("name", RULES)
def test_relevance_and_its_gradients_are_the_same_without(case, name, trainable, signed):
    model, x = case
    x = x if signed else x.abs()
    plain = found(model, x, RULES[name], trainable, False)
    one_by_one = [(each,) for each in (*FORWARD, *REWRITES)] if signed else []
    for names in (True, *one_by_one):
        for ours, expected in zip(found(model, x, RULES[name], trainable, names), plain, strict=True):
            assert relative(ours, expected) < 1e-11, names


def test_each_of_them_leaves_something_out(case):
    """That is, none of the comparisons above is of a thing with itself: each changes what those before it leave."""
    model, x = case
    layers = [(Activation, zr.Pass()), (Sum, zr.Norm()), (BatchNorm, zr.ZPlus()), (nn.Linear, zr.AlphaBeta(2, 1))]
    layers.append((Linear, zr.Gamma(0.25)))
    every, codes = (*FORWARD, *REWRITES), {}
    for trainable in (False, True):
        for count in range(len(every) + 1):
            twin = fxlrp.convert(
                model, LayerMapComposite(layers), trainable=trainable, optimize=every[:count], example_inputs=x
            )
            rules = [repr(vars(m.rule)) for m in twin.graph_module.modules() if hasattr(m, "rule")]
            codes[trainable, count] = twin.code, [re.sub(r" at 0x[0-9a-f]+", "", rule) for rule in rules]
    for count, each in enumerate(every):
        assert any(codes[trainable, count] != codes[trainable, count + 1] for trainable in (False, True)), each
    assert "with_scale" not in codes[True, 0][0]


def test_an_unknown_rewrite(case):
    model, _ = case
    with pytest.raises(InputError, match=r"known_branches.*did you mean 'known_branches'"):
        fxlrp.convert(model, "epsilon_plus", optimize=("known_branch",))
