"""A trainable twin: its relevance's gradients are finite differences', and it is the model, not a copy of it."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import directional_derivatives
from torch import nn
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Pass, WSquare, ZBox, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution

import fxlrp
from fxlrp.testing import trained

BASE = [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm()), (BatchNorm, Pass())]


def composite(rule):
    return LayerMapComposite([*BASE, (Convolution, rule), (nn.Linear, Epsilon())])


COMPOSITES = {
    "epsilon": composite(Epsilon(0.1)),
    "zplus": composite(ZPlus(0.1)),
    "gamma": composite(Gamma(0.25, 0.1)),
    "alphabeta": composite(AlphaBeta(2, 1, 0.1)),
    "zbox": SpecialFirstLayerMapComposite(
        [*BASE, (nn.Linear, Epsilon(0.1)), (Convolution, Epsilon(0.1))], [(Convolution, ZBox(-3, 3, 0.1))]
    ),
    "wsquare_flat": SpecialFirstLayerMapComposite([*BASE, (nn.Linear, Flat(0.1)), (Convolution, WSquare(0.1))], []),
}


class Net(nn.Module):
    """Residual sum, batch norms with and without a layer in front, pooling, strides and groups."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 1, stride=2)
        self.bn3 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + self.down(x)
        x = self.relu(self.bn3(x))
        return self.fc(self.pool(x).flatten(1))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_gradients_are_finite_differences(name, training):
    model = trained(Net()).train(training)
    twin = fxlrp.convert(model, COMPOSITES[name], trainable=True)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def loss():
        relevance = twin(x, 1).relevance
        return (weights * relevance).sum() + relevance.square().sum()

    names = ["x", *(name for name, _ in model.named_parameters())]
    tensors = [x, *model.parameters()]
    scale = loss().abs().item()
    for label, (automatic, numeric) in zip(names, directional_derivatives(loss, tensors), strict=True):
        assert automatic == pytest.approx(numeric, rel=1e-4, abs=1e-6 * scale), label


@pytest.mark.parametrize("how", ["detach", "no_grad"])
@pytest.mark.parametrize("captured_without_gradients", [False, True])
def test_where_the_model_stops_gradients_the_twin_does(how, captured_without_gradients):
    class Net(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.conv, self.fc, self.how = nn.Conv2d(2, 4, 3), nn.Linear(4, 3), how

        def forward(self, x):
            x = self.conv(x)
            with torch.set_grad_enabled(self.how != "no_grad"):
                largest = x.amax((2, 3), keepdim=True)
            return self.fc((x + (largest.detach() if self.how == "detach" else largest)).mean((2, 3)))

    model, x = trained(Net(how)).eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    twin = fxlrp.convert(model, trainable=True)
    with torch.set_grad_enabled(not captured_without_gradients):
        twin(x)
    ours, own = (torch.autograd.grad(f(x)[:, 1].sum(), model.conv.weight)[0] for f in (lambda x: twin(x).output, model))
    torch.testing.assert_close(ours, own)
    # The value is the same with gradients as without: so is its explanation.
    model.how = "neither"
    plain = fxlrp.convert(model, trainable=True)
    assert not torch.allclose(torch.autograd.grad(model(x)[:, 1].sum(), model.conv.weight)[0], own)
    torch.testing.assert_close(twin(x).relevance, plain(x).relevance)


def test_the_gradients_are_not_all_zero():
    """The comparison above would hold for a relevance that is cut from the parameters, if differences were small."""
    model = trained(Net()).train()
    twin = fxlrp.convert(model, COMPOSITES["zplus"], trainable=True)
    twin(torch.randn(3, 2, 6, 6).double(), 1).relevance.square().sum().backward()
    for name, parameter in model.named_parameters():
        # A bias in front of a batch norm on the batch's statistics has no effect; all others have.
        if name != "conv2.bias":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-8, name


def test_it_shares_the_models_parameters_and_buffers():
    model = trained(Net())
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True, example_inputs=torch.randn(2, 2, 6, 6).double())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in twin.buffers()} == {id(b) for b in model.buffers()}
    captured = {id(p) for p in twin.graph_module.parameters()}
    assert captured <= {id(p) for p in model.parameters()}


def test_it_follows_an_optimizer_step():
    model = trained(Net()).eval()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    x = torch.randn(2, 2, 6, 6).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin(x, 1).relevance.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(twin(x, 1).output, model(x), rtol=1e-9, atol=1e-9)
    fresh = fxlrp.convert(copy.deepcopy(model), "epsilon_plus")(x, 1)
    torch.testing.assert_close(twin(x, 1).relevance, fresh.relevance, rtol=1e-9, atol=1e-9)


def test_training_mode_updates_running_statistics_as_the_model_does():
    model = trained(Net()).train()
    other = copy.deepcopy(model)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    for seed in range(2):
        x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
        torch.testing.assert_close(twin(x).output, other(x), rtol=1e-9, atol=1e-9)
    for (name, ours), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
        assert not ours.requires_grad, name


def test_it_follows_the_mode():
    model = trained(Net()).train()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    x = torch.randn(4, 2, 6, 6).double()
    in_training = twin(x).output
    twin.eval()
    assert not model.training
    torch.testing.assert_close(twin(x).output, model(x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(twin(x).output, in_training)
    model.train()
    assert torch.allclose(twin(x).output, in_training)


def test_batch_statistics_send_no_relevance_to_other_samples():
    """In training mode the statistics define the layer: with an input's seed alone, others get no relevance."""
    model = trained(Net()).train()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    x = torch.randn(4, 2, 6, 6).double()
    seed = torch.zeros(4, 3).double()
    seed[0, 1] = 1
    relevance = twin(x, seed).relevance
    assert relevance[0].abs().sum() > 0
    assert torch.equal(relevance[1:], torch.zeros_like(relevance[1:]))


def test_dropout_in_training_mode_drops_what_the_model_drops():
    model = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3)).double().train()
    )
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    x = torch.randn(5, 3, 2, 2).double()
    twin(x)  # The capture is made here, and draws no random numbers after it.
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    out = twin(x, 0)
    torch.testing.assert_close(out.output, expected)
    # Without biases all relevance arrives, whatever was dropped.
    torch.testing.assert_close(out.relevance.sum((1, 2, 3)), out.output[:, 0], rtol=1e-4, atol=1e-6)
