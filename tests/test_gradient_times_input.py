"""A wrong map that closes its ledger: of a piecewise linear network, LRP-0 is gradient x input, which autograd knows.

So no share of a constant (a clipped value, a mean that is subtracted) may arrive at a pixel, however it is spelled.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import Activation, AvgPool, BatchNorm, Linear
from zennit.layer import Sum

import fxlrp
from fxlrp.testing.assertions import relative
from fxlrp.testing.models import settled, trained


def lrp_0() -> LayerMapComposite:
    """LRP-0 at every layer, with a stabilizer that float64 does not see."""
    tiny = 1e-14
    rules = [(Activation, Pass()), (BatchNorm, Pass()), ((Sum, AvgPool), Norm(stabilizer=tiny))]
    return LayerMapComposite([*rules, (Linear, Epsilon(epsilon=tiny))])


def gradient_times_input(model: nn.Module, x: Tensor, target: int) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    return (x * gradient).detach()


def assert_is_gradient_times_input(model: nn.Module, x: Tensor, target: int = 1, tolerance: float = 1e-7) -> None:
    twin = fxlrp.convert(model, lrp_0())
    out = twin(x, target)
    torch.testing.assert_close(out.output, model(x).detach(), rtol=1e-9, atol=1e-9)
    assert relative(out.relevance, gradient_times_input(model, x, target)) <= tolerance
    assert fxlrp.audit(twin, x, target).leak <= 1e-9


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(*layers: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return trained(nn.Sequential(*layers), seed).eval()


def test_a_shut_unit_hands_nothing_on():
    """BN (scale 1, shifts -2 and 0), ReLU, Linear [1, 1]: at [1, 3] the first unit is zero, and all is the second's."""
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.0), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-2.0, 0.0]))
        model[2].weight.fill_(1)
        model[2].bias.zero_()
    for composite in ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", lrp_0()):
        twin = fxlrp.convert(model, composite)
        # At the threshold itself, a unit is shut.
        for first in (1.0, 2.0):
            x = torch.tensor([[first, 3.0]]).double()
            torch.testing.assert_close(twin(x).relevance, torch.tensor([[0.0, 3.0]]).double(), rtol=1e-5, atol=1e-5)
        ledger = fxlrp.audit(twin, torch.tensor([[1.0, 3.0]]).double())
        assert sum(row.bias for row in ledger.rows) == pytest.approx(0.0, abs=1e-5)
        assert ledger.leak <= 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_batch_norms_in_front_of_relus(seed):
    """DenseNet's order, with scales of both signs."""
    model = network(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4),
        seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight[::2] *= -1
        model[7].weight[1::2] *= -1
    assert_is_gradient_times_input(model, image(2, 3, 12, 12) - 0.3)


def test_densenet_121():
    torch.manual_seed(0)
    model, x = torchvision.models.densenet121(num_classes=5), image(2, 3, 32, 32)
    assert_is_gradient_times_input(settled(trained(model).eval(), x), x, tolerance=1e-5)
