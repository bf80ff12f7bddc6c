"""Ops that functorch cannot differentiate: guards against one way to a derivative being taken for the only one."""

from __future__ import annotations

import pytest
import torch
import zennit.rules as zr
from reference import directional_derivatives
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import stabilize
from zennit.types import Linear

import fxlrp
from fxlrp import errors, vocabulary
from fxlrp.ops.derivative import pull_back


@torch.library.custom_op("fxlrp_tests::scaled_square", mutates_args=())
def scaled_square(x: Tensor, scale: Tensor) -> Tensor:
    return x * x * scale


@scaled_square.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx, gradient):
    x, scale = ctx.saved_tensors
    return 2 * x * scale * gradient, (x * x * gradient).sum(0)


scaled_square.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))

library = torch.library.Library("fxlrp_tests", "FRAGMENT")
library.define("cube(Tensor x) -> Tensor")


class Cube(torch.autograd.Function):
    """Without `setup_context`, as autograd functions were written before functorch."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fxlrp_tests.cube(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x * x * gradient


library.impl("cube", lambda x: x * x * x, "CPU")
library.impl("cube", torch.empty_like, "Meta")
library.impl("cube", Cube.apply, "Autograd")


class Model(nn.Module):
    """Two linear layers and something between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x), self.scale))


KINDS = {
    "custom_op": (scaled_square, lambda x, scale: x.square() * scale),
    "autograd function": (lambda x, scale: torch.ops.fxlrp_tests.cube(x), lambda x, scale: x.pow(3)),
}
COMPOSITE = LayerMapComposite([(Linear, zr.Epsilon(1e-3))])


def by_hand(model, formula, x, seed):
    """Epsilon, the gradient of the formula, epsilon."""

    def epsilon(layer, x, relevance):
        z = layer(x)
        return x * ((relevance / stabilize(z, 1e-3)) @ layer.weight)

    y = model.first(x)
    value = formula(y, model.scale)
    above = epsilon(model.second, value, seed)
    (slope,) = torch.autograd.grad(formula(y, model.scale).sum(), y, create_graph=True)
    return epsilon(model.first, x, above * slope)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("trainable", [False, True])
def test_the_plain_gradient_of_a_foreign_op(name, trainable):
    op, formula = KINDS[name]
    model, x, seed = Model(op).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    twin = fxlrp.convert(model, COMPOSITE, unmatched="gradient", trainable=trainable)
    expected = by_hand(model, formula, x, seed)
    torch.testing.assert_close(twin(x, seed).relevance, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(twin(x, seed).relevance, expected, rtol=1e-10, atol=1e-10)
    seeds = torch.randn(3, 5, 2).double()
    found = twin(x, seeds).relevance
    for one, ours in zip(seeds, found, strict=True):
        torch.testing.assert_close(ours, by_hand(model, formula, x, one), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_it_works_in_inference_mode(name):
    op, formula = KINDS[name]
    model, x, seed = Model(op).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    twin = fxlrp.convert(model, COMPOSITE, unmatched="gradient")
    with torch.inference_mode():
        found = twin(x, seed).relevance
    torch.testing.assert_close(found, by_hand(model, formula, x, seed), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_relevance_through_it_is_differentiated(name, several):
    model, x = Model(KINDS[name][0]).double(), torch.randn(5, 3).double()
    seed = torch.randn(*([2] if several else []), 5, 2).double()
    twin = fxlrp.convert(model, COMPOSITE, unmatched="gradient", trainable=True)
    parameters = [model.first.weight, model.scale, model.second.weight]
    for automatic, numeric in directional_derivatives(lambda: twin(x, seed).relevance.square().sum(), parameters):
        assert automatic == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_relevance_through_it_within_a_transform_of_something_else(name):
    model, x = Model(KINDS[name][0]).double(), torch.randn(5, 3).double()
    twin = fxlrp.convert(model, COMPOSITE, unmatched="gradient")
    expected, factors = twin(x, 1).relevance, torch.tensor([1.0, 2.0]).double()
    found = torch.func.vmap(lambda factor: factor * twin(x, 1).relevance)(factors)
    torch.testing.assert_close(found, factors.view(2, 1, 1) * expected, rtol=1e-10, atol=1e-10)


class Breaks(torch.autograd.Function):
    """Without `setup_context`; its derivative fails."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("broken on the way back")


def test_errors_of_an_ops_own_are_raised_as_they_are():
    calls = []

    def breaks(x):
        calls.append(x)
        raise RuntimeError("broken on the way there")

    with pytest.raises(RuntimeError, match="broken on the way there"):
        pull_back(breaks, torch.ones(2))
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match=r"^broken on the way back"):
        pull_back(Breaks.apply, torch.ones(2))[1](torch.ones(2))


def test_a_registered_foreign_op_with_a_gradient_rule():
    target = torch.ops.fxlrp_tests.scaled_square.default
    op, formula = KINDS["custom_op"]
    model, x, seed = Model(op).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    vocabulary.register(target, default=lambda node, slots: fxlrp.rules.Gradient())
    try:
        found = fxlrp.convert(model, COMPOSITE)(x, seed).relevance
    finally:
        vocabulary.remove(target)
    torch.testing.assert_close(found, by_hand(model, formula, x, seed), rtol=1e-10, atol=1e-10)


@torch.library.custom_op("fxlrp_tests::without_derivative", mutates_args=())
def without_derivative(x: Tensor) -> Tensor:
    return x * x


without_derivative.register_fake(torch.empty_like)


def test_an_op_without_any_derivative():
    model = Model(lambda x, scale: without_derivative(x)).double()
    with pytest.raises(errors.RuleError, match=r"without_derivative.default.*has no derivative.*register"):
        fxlrp.convert(model, COMPOSITE, unmatched="gradient")(torch.randn(5, 3).double())
