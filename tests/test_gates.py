"""A gate is a factor with constant bounds, however it is spelled: guards against a gate known by its op's name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon

import fxlrp

LOW, HIGH = torch.zeros(3).double(), torch.ones(3).double()
OPEN = {
    "clamp below": lambda a: a.clamp(min=0),
    "clamp above": lambda a: a.clamp(max=1),
    "infinite clamp": lambda a: a.clamp(0, float("inf")),
    "infinite hardtanh": lambda a: F.hardtanh(a, 0.0, float("inf")),
    "tensor below": lambda a: a.clamp(min=LOW),
    "minimum": lambda a: torch.minimum(a, HIGH),
    "maximum": lambda a: torch.maximum(a, LOW),
    "minimum of a gate": lambda a: torch.minimum(a, (a - 1).sigmoid()),
    "quotient of gates": lambda a: a.sigmoid() / (-a).sigmoid(),
    "half of a cat": lambda a: torch.cat([a[:, :1].sigmoid(), a[:, 1:]], 1),
    "one of two": lambda a: torch.where(LOW > 1, a.sigmoid(), a),
    "masked with infinity": lambda a: a.sigmoid().masked_fill(HIGH < 0, float("inf")),
}
BOUNDED = {
    "clamp": lambda a: a.clamp(0, 1),
    "clamp in two": lambda a: a.relu().clamp(max=1),
    "tensors": lambda a: a.clamp(LOW, HIGH),
    "minimum and maximum": lambda a: torch.maximum(torch.minimum(a, HIGH), LOW),
    "minimum of a ReLU": lambda a: torch.minimum(a.relu(), HIGH),
    "hardtanh": F.hardtanh,
    "cat": lambda a: torch.cat([a[:, :1].sigmoid(), a[:, 1:].clamp(-1, 1)], 1),
    "spelled out": lambda a: F.relu6(a + 3) / 6,
}


def shares(gate):
    """The parts of the relevance that signal and factor get."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2).double()

        def forward(self, a, b):
            return self.head(gate(a) * b)

    a, b = torch.rand(2, 3).double() + 0.1, torch.randn(2, 3).double()
    of_a, of_b = fxlrp.convert(Model())((a, b), 0).relevance
    # What is held constant has none.
    return 0.0 if of_a is None else float(of_a.abs().sum()), float(of_b.abs().sum())


@pytest.mark.parametrize("name", OPEN)
def test_a_factor_without_a_bound_is_an_activation(name):
    of_factor, of_signal = shares(OPEN[name])
    assert of_factor > 0.1 * of_signal


@pytest.mark.parametrize("name", BOUNDED)
def test_a_factor_with_both_bounds_is_a_gate(name):
    of_factor, of_signal = shares(BOUNDED[name])
    assert of_factor == 0 < of_signal


EXPANDED = {
    "broadcast": lambda x, factor: x * factor,
    "expanded": lambda x, factor: x * factor.expand(x.shape),
    "expanded as": lambda x, factor: factor.expand_as(x) * x,
    "cast and expanded": lambda x, factor: x * factor.float().expand(x.shape).double(),
}


@pytest.mark.parametrize("name", EXPANDED)
def test_a_factor_that_the_model_expands_is_broadcast(name):
    """A norm spelled out, ``x / sqrt(mean(x^2))``: all to x, its deviation is held constant, by hand."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(3, 2, bias=False).double()

        def forward(self, x):
            return self.head(EXPANDED[name](x, torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3)))

    model, x = Normed(), torch.randn(2, 3).double()
    found = fxlrp.convert(model, LayerMapComposite([(nn.Linear, Epsilon(1e-12))]))(x, 0)
    deviation = (x.square().mean(1, keepdim=True) + 1e-3).sqrt()
    expected = x / deviation * model.head.weight[0]
    torch.testing.assert_close(found.relevance, expected, rtol=1e-6, atol=1e-9)
