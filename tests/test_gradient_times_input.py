"""A wrong map that closes its ledger: of a piecewise linear network, LRP-0 is gradient x input, which autograd knows.

So no share of a constant (a clipped value, a mean that is subtracted) may arrive at a pixel, however it is spelled.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.transforms.functional
import torchvision.transforms.v2
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Norm, Pass
from zennit.types import Activation, AvgPool, BatchNorm, Linear

import fxlrp
from fxlrp.errors import UnsupportedOpError
from fxlrp.testing.assertions import relative, zennit_relevance
from fxlrp.weights import settled, trained


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
    model: Any = nn.Sequential(nn.BatchNorm1d(2, eps=0.0), nn.ReLU(), nn.Linear(2, 1)).double().eval()
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


def test_at_its_threshold_a_unit_is_shut():
    """As a ReLU is at zero: in the relevance, the ledger, and the derivative of a trainable twin; from either side."""
    model: Any = nn.Sequential(nn.BatchNorm1d(3, eps=0.0), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 0.5]))
        model[0].bias.copy_(torch.tensor([-2.0, 2.0, 1.0]))
    x = torch.tensor([[2.0, 2.0, 3.0]]).double()
    for composite in ("epsilon_plus", "epsilon_gamma_box", lrp_0()):
        twin = fxlrp.convert(model, composite)
        assert twin(x, 1).relevance[0, :2].tolist() == [0.0, 0.0]
        assert fxlrp.audit(twin, x, 1).leak <= 1e-12
    of = [x.requires_grad_(), *model.parameters()]
    expected = torch.autograd.grad(model(x)[0, 1], of)
    found = torch.autograd.grad(fxlrp.convert(model, lrp_0(), trainable=True)(x, 1).output[0, 1], of)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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


def test_a_densenet():
    model, x = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5), image(2, 3, 32, 32)
    assert_is_gradient_times_input(settled(trained(model).eval(), x), x, tolerance=1e-5)


class OfNorms(nn.Module):
    """Reads the norms of a layer's values, which are homogeneous of degree one."""

    def __init__(self, order: float) -> None:
        super().__init__()
        self.first, self.head, self.order = nn.Linear(4, 12), nn.Linear(3, 2), order

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.linalg.vector_norm(self.first(x).unflatten(1, (3, 4)), self.order, 2))


@pytest.mark.parametrize("order", [1, 2, 3.5, float("inf")])
def test_a_norm(order):
    torch.manual_seed(0)
    assert_is_gradient_times_input(trained(OfNorms(order)).eval(), image(2, 4) - 0.5, tolerance=1e-5)


def test_a_number_of_values_has_no_rule():
    with pytest.raises(UnsupportedOpError, match=r"no rule for aten.linalg_vector_norm.default"):
        fxlrp.explain(trained(OfNorms(0)).eval(), image(2, 4))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def per_channel(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


class Preprocessed(nn.Module):
    """A network that normalizes its own input, by a function."""

    def __init__(self, normalize, inner: nn.Module) -> None:
        super().__init__()
        self.normalize, self.inner = normalize, inner
        self.register_buffer("mean", per_channel(MEAN))
        self.register_buffer("std", per_channel(STD))
        self.embedding = nn.Parameter(torch.rand(1, 3, 12, 12).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.normalize(self, x))


def in_place(m: Preprocessed, x: Tensor) -> Tensor:
    return x.clone().sub_(m.mean).div_(m.std)


def channel_by_channel(m: Preprocessed, x: Tensor) -> Tensor:
    x = x.clone()
    for i in range(3):
        x[:, i].sub_(MEAN[i]).div_(STD[i])
    return x


def channels_joined(m: Preprocessed, x: Tensor) -> Tensor:
    """Inception's transform_input."""
    return torch.cat([x[:, i].unsqueeze(1) * (0.5 / STD[i]) + (0.5 - MEAN[i]) / STD[i] for i in range(3)], 1)


def two_readers(m: Preprocessed, x: Tensor) -> Tensor:
    y = x - m.mean
    return torch.cat([y[:, :1], (y / m.std)[:, 1:]], 1)


SPELLINGS = {
    "operators": lambda m, x: (x - m.mean) / m.std,
    "numbers": lambda m, x: 2 * x - 1,
    "negated": lambda m, x: -(m.mean - x) * m.std.reciprocal(),
    "alpha": lambda m, x: torch.sub(x, m.mean, alpha=2.0).mul(0.5),
    "reversed with alpha": lambda m, x: torch.rsub(x, m.mean, alpha=3.0),
    "expanded": lambda m, x: (x - m.mean.expand_as(x)) / m.std.expand(x.shape[0], -1, x.shape[2], x.shape[3]),
    "numbers made in the forward pass": lambda m, x: (x - torch.full((3, 1, 1), 0.5, dtype=x.dtype)) / 0.5,
    "in place": in_place,
    "channel by channel": channel_by_channel,
    "channels joined": channels_joined,
    "moved in between": lambda m, x: ((x.flip(3) - m.mean).flip(3) / m.std).roll(1, 2),
    "functional normalize": lambda m, x: torchvision.transforms.functional.normalize(x, MEAN, STD),
    "transforms": lambda m, x: torchvision.transforms.Normalize(MEAN, STD)(x),
    "transforms v2": lambda m, x: torchvision.transforms.v2.Normalize(MEAN, STD)(x),
    "an embedding of pixels": lambda m, x: x + m.embedding,
    "a mean image": lambda m, x: (x - m.embedding) * 2,
    "an affine map of each pixel": lambda m, x: x * m.embedding + m.embedding.flip(3),
    "one map, read by another and by itself": two_readers,
    "twice": lambda m, x: ((x - m.mean) / m.std + m.embedding) * 3 - 1,
    "tensors made in the forward pass": lambda m, x: (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD)[0],
    "numbers of a lower precision": lambda m, x: (x - m.mean.float()) / m.std.float(),
    "for each sample": lambda m, x: (x * torch.arange(1.0, 3.0).view(2, 1, 1, 1)) - m.mean,
}


def small_network(padding: int) -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(3)
    return network(nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_map_in_front_of_a_layer(spelling, padding):
    model = Preprocessed(SPELLINGS[spelling], small_network(padding)).eval()
    assert_is_gradient_times_input(model, image(2, 3, 12, 12))


@pytest.mark.parametrize(
    "composite", ["epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"]
)
def test_a_constant_map_is_a_frozen_batch_norm(composite):
    """Under every rule, a network that normalizes its input in operators is one that begins with a batch norm."""
    inner, x = small_network(1), image(2, 3, 12, 12)
    norm = nn.BatchNorm2d(3, eps=0.0, affine=False).double().eval()
    norm.running_mean.copy_(torch.tensor(MEAN))
    norm.running_var.copy_(torch.tensor(STD).double() ** 2)
    expected = fxlrp.explain(nn.Sequential(norm, inner).eval(), x, 1, composite)
    for name in ("operators", "in place", "channel by channel", "transforms"):
        found = fxlrp.explain(Preprocessed(SPELLINGS[name], inner).eval(), x, 1, composite)
        torch.testing.assert_close(found.output, expected.output, rtol=1e-7, atol=1e-7)
        assert relative(found.relevance, expected.relevance) <= 1e-6, name


class Within(nn.Module):
    """Constants between layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.kind = nn.Linear(4, 3), kind
        self.of_channels, self.of_pixels = nn.Parameter(torch.rand(4, 1, 1)), nn.Parameter(torch.rand(1, 4, 10, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = {
            "bias": lambda: h + self.of_channels,
            "bias, subtracted from": lambda: self.of_channels - h,
            "in front of a layer": lambda: h.relu() + self.of_channels,
            "map in front of a layer": lambda: h.relu() - self.of_pixels,
            "between nonlinearities": lambda: (h.relu() + self.of_pixels).relu() * self.of_channels,
            "in front of a pool": lambda: torch.nn.functional.avg_pool2d(h.relu() - self.of_channels, 3, 1, 1),
        }[self.kind]()
        return self.head(self.second(h).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "kind",
    ["bias", "bias, subtracted from", "in front of a layer", "map in front of a layer", "between nonlinearities",
     "in front of a pool"],
)  # fmt: skip
def test_a_constant_within(kind):
    torch.manual_seed(0)
    assert_is_gradient_times_input(trained(Within(kind)).eval(), image(2, 3, 12, 12) - 0.5)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_a_constant_behind_a_layer_is_its_bias(composite):
    torch.manual_seed(0)
    model, x = trained(Within("bias")).eval(), image(2, 3, 12, 12) - 0.5
    with torch.no_grad():
        layers = [nn.Conv2d(3, 4, 3).double(), model.second, nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        layers[0].weight.copy_(model.first.weight)
        layers[0].bias.copy_(model.of_channels.flatten())
    expected = fxlrp.explain(nn.Sequential(*layers, nn.Flatten(), model.head).eval(), x, 1, composite)
    found = fxlrp.explain(model, x, 1, composite)
    assert relative(found.relevance, expected.relevance) <= 1e-9


class Added(nn.Module):
    """A layer's value with constants added, that of nothing else but linear maps, in front of a ReLU and a head."""

    def __init__(self, before, layer: nn.Module, shape: tuple[int, ...], x: Tensor) -> None:
        super().__init__()
        self.before, self.layer, self.constant = before, layer, nn.Parameter(torch.randn(shape))
        self.in_front, self.behind = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        trained(self).eval()
        with torch.no_grad():
            self.head = nn.Linear(self.before(self, x).flatten(1).shape[1], 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.before(self, x).relu().flatten(1))

    def as_dense(self, x: Tensor) -> nn.Module:
        """The same, with all that is in front of the ReLU as the one linear layer that it is, for flat pixels."""
        flat = lambda x: self.before(self, x.unflatten(1, shape)).flatten(1)
        shape = x.shape[1:]
        zero = torch.zeros(1, shape.numel(), dtype=torch.float64)
        weight = torch.autograd.functional.jacobian(lambda x: flat(x[None])[0], zero[0])
        layer = nn.Linear(*weight.shape[::-1]).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(flat(zero)[0])
        return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), self.head).eval()


def by_a_hook(m: Added, x: Tensor) -> Tensor:
    """As canonizers of others add a bias map."""
    with torch.no_grad():
        handle = m.layer.register_forward_hook(lambda module, inputs, value: value + m.constant)
    try:
        return m.layer(x)
    finally:
        handle.remove()


BEHIND = {
    "added": lambda m, x: m.layer(x) + m.constant,
    "subtracted from": lambda m, x: m.constant - 2 * m.layer(x),
    "with alpha": lambda m, x: torch.add(m.constant, m.layer(x), alpha=3.0),
    "twice": lambda m, x: (m.layer(x) + m.constant) * 0.5 - m.constant.flip(-1),
    "by a hook": by_a_hook,
    "and the layer read by others": lambda m, x: torch.cat([(y := m.layer(x)) + m.constant, y], 1),
    "and both read by others": lambda m, x: torch.cat(
        [(y := m.layer(x)), (z := y + m.constant), z * z.new_tensor(2)], 1
    ),
}
LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 5, 5), (4, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2, bias=False), (3, 2, 2), (4, 3, 3)),
    "linear": (lambda: nn.Linear(5, 4), (5,), (4,)),
    "linear, of tokens": (lambda: nn.Linear(5, 4), (3, 5), (3, 4)),
}
AROUND = {
    "a batch norm in front": lambda m, x: m.layer(m.in_front(x)) + m.constant,
    "a batch norm behind": lambda m, x: m.behind(m.layer(x) + m.constant),
    "a batch norm behind what moves": lambda m, x: m.behind((m.layer(x) + m.constant).flip(2)),
    "batch norms on both sides": lambda m, x: m.behind(m.layer(m.in_front(x)) + m.constant),
}
ONE_LAYER = {"epsilon": Epsilon(epsilon=0.3), "gamma": Gamma(gamma=0.5, stabilizer=0.1)}


def assert_is_one_layer(model: Added, x: Tensor) -> None:
    dense, seed = model.as_dense(x), torch.eye(3)[[1] * len(x)].double()
    for name, rule in ONE_LAYER.items():
        composite = LayerMapComposite([(Linear, rule), (Activation, Pass())])
        expected = zennit_relevance(dense, composite, x, lambda output: output * seed)
        found = fxlrp.explain(model, x, 1, composite)
        assert relative(found.relevance, expected) <= 1e-12, name


@pytest.mark.parametrize(
    ("layer", "behind"),
    [
        *(("convolution", behind) for behind in BEHIND),
        *((layer, "added") for layer in LAYERS if layer != "convolution"),
    ],
)
def test_a_constant_map_behind_a_layer_is_its_bias(layer, behind):
    """Of every shape it is one linear layer with one stabilizer, as zennit has it of the dense form."""
    make, image_shape, shape = LAYERS[layer]
    torch.manual_seed(0)
    x = image(2, *image_shape) - 0.5
    assert_is_one_layer(Added(BEHIND[behind], make(), shape, x), x)


@pytest.mark.parametrize("shape", [(), (1, 4, 3, 3), (4, 1, 1), (1, 1, 3), (3, 1), (1, 4, 1, 3)])
def test_a_constant_behind_a_layer_of_any_shape(shape):
    make, image_shape, _ = LAYERS["convolution"]
    torch.manual_seed(0)
    x = image(2, *image_shape) - 0.5
    assert_is_one_layer(Added(BEHIND["added"], make(), shape, x), x)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 4, 3, 3)])
def test_a_constant_for_each_sample(shape):
    """It is a bias of that sample's: what stands in one tensor with it changes nothing."""
    make, image_shape, _ = LAYERS["convolution"]
    torch.manual_seed(0)
    x = image(2, *image_shape) - 0.5
    model = Added(BEHIND["added"], make(), shape, x)
    constants = model.constant.detach().split(1)
    for name, rule in ONE_LAYER.items():
        composite = LayerMapComposite([(Linear, rule), (Activation, Pass())])
        model.constant = nn.Parameter(torch.cat(constants))
        found = fxlrp.explain(model, x, 1, composite).relevance
        for sample, constant, ours in zip(x.split(1), constants, found.split(1), strict=True):
            model.constant = nn.Parameter(constant)
            assert relative(ours, fxlrp.explain(model, sample, 1, composite).relevance) <= 1e-12, name


@pytest.mark.parametrize("around", AROUND)
def test_a_layer_with_a_constant_map_takes_batch_norms_in(around):
    make, image_shape, shape = LAYERS["convolution"]
    torch.manual_seed(0)
    x = image(2, *image_shape) - 0.5
    assert_is_one_layer(Added(AROUND[around], make(), shape, x), x)


def test_the_constants_of_a_trainable_twin_stay_live():
    model, x = Preprocessed(SPELLINGS["an affine map of each pixel"], small_network(1)).eval(), image(2, 3, 12, 12)
    twin = fxlrp.convert(model, lrp_0(), trainable=True)
    assert relative(twin(x, 1).relevance.detach(), gradient_times_input(model, x, 1)) <= 1e-7
    with torch.no_grad():
        model.embedding.mul_(2)
    assert relative(twin(x, 1).relevance.detach(), gradient_times_input(model, x, 1)) <= 1e-7
    twin(x, 1).relevance.square().sum().backward()
    assert model.embedding.grad is not None
    assert bool(model.embedding.grad.any())
