"""ISNet against the paper's formulas, each written out slowly and on its own; and what training with it does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference import directional_derivatives
from torch import nn
from torch.nn import functional as F
from zennit.composites import LayerMapComposite

import fxlrp
from fxlrp.capture import capture
from fxlrp.isnet import variants
from fxlrp.isnet.loss import background_loss, foreground_loss, gwrp, mask_at
from fxlrp.isnet.ranges import Welford, range_of
from fxlrp.isnet.supervision import bottlenecks
from fxlrp.testing import trained

EPS = 0.05


class Residual(nn.Module):
    """Two branches and their sum; batch norms; both kinds of pooling."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(5)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.gap(x).flatten(1))


def plain_network(bias: bool = True) -> nn.Sequential:
    """Layers and ReLUs alone: what LRP-Flex is made for."""
    return trained(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, stride=2, bias=bias),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * 9, 4, bias=bias),
        )
    )


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(6, 2, 8, 8, dtype=torch.float64)


def sign(z):
    return torch.where(z < 0, -1.0, 1.0).to(z)


class Slow:
    """LRP of `Residual` in training mode, layer by layer, from (2), (4), (5), (33)-(36)."""

    def __init__(self, model: Residual, x: torch.Tensor):
        self.model, self.x = model, x
        self.w1, self.b1, self.z1 = self.fused(x, model.conv1, model.bn1)
        self.a1, self.where = F.max_pool2d(self.z1.relu(), 2, return_indices=True)
        self.w2, self.b2, self.z2 = self.fused(self.a1, model.conv2, model.bn2)
        self.total = self.z2 + self.a1
        self.a2 = self.total.relu()
        self.mean = self.a2.mean((2, 3))
        self.logits = self.mean @ model.fc.weight.T + model.fc.bias

    @staticmethod
    def fused(x, conv, bn):
        """The convolution that the batch's statistics make of convolution and batch norm."""
        z = F.conv2d(x, conv.weight, conv.bias, padding=1)
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
        scale = bn.weight / (var + bn.eps).sqrt()
        bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
        w, b = conv.weight * scale[:, None, None, None], (bias - mean) * scale + bn.bias
        return w, b, F.conv2d(x, w, b, padding=1)

    def epsilon(self, relevance):
        """From the logits' relevance to the input's, (2) everywhere."""
        s = relevance / (self.logits + EPS * sign(self.logits))
        relevance = self.mean * (s @ self.model.fc.weight)
        s = relevance / (self.mean + EPS * sign(self.mean))
        relevance = self.a2 * (s / 16)[:, :, None, None]
        s = relevance / (self.total + EPS * sign(self.total))
        of_z2, of_skip = self.z2 * s, self.a1 * s
        s = of_z2 / (self.z2 + EPS * sign(self.z2))
        of_a1 = self.a1 * F.conv_transpose2d(s, self.w2, padding=1) + of_skip
        of_z1 = F.max_unpool2d(of_a1, self.where, 2, output_size=self.z1.shape[2:])
        s = of_z1 / (self.z1 + EPS * sign(self.z1))
        return self.x * F.conv_transpose2d(s, self.w1, padding=1)

    def positive(self):
        """From (5) to the input's relevance, (4) everywhere; the input has both signs."""
        w, b = self.model.fc.weight.clamp(min=0), self.model.fc.bias.clamp(min=0)
        z = self.mean @ w.T + b
        relevance = self.mean * ((z / (z + EPS)) @ w)
        relevance = self.a2 * (relevance / (self.mean + EPS) / 16)[:, :, None, None]
        one, two = self.z2.clamp(min=0), self.a1.clamp(min=0)
        s = relevance / (one + two + EPS)
        of_z2, of_skip = one * s, two * s
        w, b = self.w2.clamp(min=0), self.b2.clamp(min=0)
        s = of_z2 / (F.conv2d(self.a1, w, b, padding=1) + EPS)
        of_a1 = self.a1 * F.conv_transpose2d(s, w, padding=1) + of_skip
        of_z1 = F.max_unpool2d(of_a1, self.where, 2, output_size=self.z1.shape[2:])
        up, down = self.w1.clamp(min=0), self.w1.clamp(max=0)
        plus, minus = self.x.clamp(min=0), self.x.clamp(max=0)
        z = F.conv2d(plus, up, self.b1.clamp(min=0), padding=1) + F.conv2d(minus, down, padding=1)
        s = of_z1 / (z + EPS)
        return plus * F.conv_transpose2d(s, up, padding=1) + minus * F.conv_transpose2d(s, down, padding=1)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return trained(Residual()).train()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def eta(z: list[float], c: int, mu: float = 0.0) -> float:
    """(6), (7), (32), for one image."""
    p = math.exp(z[c]) / sum(math.exp(each) for each in z)
    return math.log(p + mu) - math.log(1 - p + mu)


def test_original_maps_each_logit(model, x):
    slow = Slow(model, x)
    heatmaps = fxlrp.ISNet(model, "original", EPS)(x).heatmaps["input"]
    assert heatmaps.shape == (6, 4, 2, 8, 8)
    for k in range(4):
        close(heatmaps[:, k], slow.epsilon(slow.logits * torch.eye(4)[k].double()))


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_what_moves_the_logits_about_has_no_part_in_it(variant, model, x):
    """The rule of the last layer is that layer's, whatever lies behind it."""
    found = []
    for network in (model, nn.Sequential(model, nn.Unflatten(1, (2, 2)), nn.Flatten())):
        torch.manual_seed(0)
        found.append(fxlrp.ISNet(network, variant, EPS)(x).heatmaps["input"])
    close(*found)


def test_original_in_chunks_is_the_same_with_its_gradients(model, x):
    found = []
    for chunk_size in (None, 1, 3):
        out = fxlrp.ISNet(model, "original", EPS, chunk_size=chunk_size)(x)
        gradient = torch.autograd.grad(out.heatmaps["input"].square().sum(), model.conv1.weight)[0]
        found.append((out.heatmaps["input"], gradient))
    for maps, gradient in found[1:]:
        close(maps, found[0][0])
        close(gradient, found[0][1])


@pytest.mark.parametrize("non_negative", [False, True])
def test_dual_maps_all_logits_by_z_plus_and_by_epsilon(non_negative, model, x):
    x = x.abs() if non_negative else x
    slow = Slow(model, x)
    heatmaps = fxlrp.ISNet(model, "dual", EPS)(x).heatmaps["input"]
    close(heatmaps[:, 0], slow.positive())
    close(heatmaps[:, 1], slow.epsilon(slow.logits))
    assert (heatmaps[:, 0] >= 0).all()


def test_selective_explains_the_lowest_class(model, x):
    slow = Slow(model, x)
    weights = torch.zeros_like(slow.logits)
    step = 1e-6
    for i, z in enumerate(slow.logits.tolist()):
        lowest = z.index(min(z))
        for k in range(4):
            up, down = ([each + (j == k) * s for j, each in enumerate(z)] for s in (step, -step))
            weights[i, k] = (eta(up, lowest, 0.01) - eta(down, lowest, 0.01)) / (2 * step)
    expected = slow.epsilon(slow.logits * weights)
    heatmap = fxlrp.ISNet(model, "selective", EPS)(x).heatmaps["input"]
    torch.testing.assert_close(heatmap, expected, rtol=1e-6, atol=1e-8)


def test_pairwise_eta_is_a_layer_of_differences(x):
    """(8)-(10), on a network of one linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 5)).double()
    w, b = model[1].weight, model[1].bias
    mu = 1e-3
    heatmap = fxlrp.ISNet(model, "selective", EPS, eta="pairwise", mu=mu)(x).heatmaps["input"].flatten(1)
    for a, found in zip(x.flatten(1), heatmap, strict=True):
        z = w @ a + b
        c = int(z.argmin())
        others = [k for k in range(5) if k != c]
        total = sum(torch.exp(-(z[c] - z[k])) for k in others)
        expected = torch.zeros_like(a)
        for k in others:
            difference = z[c] - z[k]
            relevance = difference * torch.exp(-difference) / (total + mu)
            expected += (w[c] - w[k]) * a / (difference + EPS * sign(difference)) * relevance
        close(found, expected)


def test_both_etas_have_the_gradient_of_eta():
    """(27), (28): for mu and epsilon to zero, both are the derivative of (6); also far from each other."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(20, 5, dtype=torch.float64)
    for i, z in enumerate(logits):
        leaf = z.clone().requires_grad_()
        p = leaf.softmax(0)[int(z.argmin())]
        (expected,) = torch.autograd.grad(torch.log(p) - torch.log1p(-p), leaf)
        for gradient in (
            variants.bounded_eta_gradient(logits, 1e-300),
            variants.pairwise_eta_gradient(logits, 0.0, 1e-12),
        ):
            torch.testing.assert_close(gradient[i], expected, rtol=1e-6, atol=1e-9)
    far = torch.tensor([[900.0, -900.0, 0.0]], dtype=torch.float64)
    assert variants.pairwise_eta_gradient(far, 1e-5, 1e-2).isfinite().all()
    assert variants.bounded_eta_gradient(far, 1e-2).isfinite().all()


def test_stochastic_draws_the_highest_half_of_the_time():
    torch.manual_seed(0)
    n, classes = 40_000, 5
    logits = torch.tensor([0.0, 3.0, -1.0, 1.0, 2.0]).expand(n, classes)
    counts = variants.stochastic_classes(logits).flatten().bincount(minlength=classes) / n
    expected = torch.full((classes,), 0.5 / (classes - 1))
    expected[1] = 0.5
    # Five standard deviations.
    assert ((counts - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_stochastic_maps_one_logit_of_each_image(model, x):
    """Each image's map is one of the original's, not always the same class in the batch."""
    original = fxlrp.ISNet(model, "original", EPS)(x).heatmaps["input"]
    isnet = fxlrp.ISNet(model, "stochastic", EPS)
    torch.manual_seed(0)
    drawn = set()
    for _ in range(4):
        found = isnet(x).heatmaps["input"]
        distance = (original - found.unsqueeze(1)).flatten(2).abs().amax(2)
        assert (distance.amin(1) < 1e-12).all()
        drawn.add(tuple(distance.argmin(1).tolist()))
    assert len(drawn) > 1
    assert any(len(set(classes)) > 1 for classes in drawn)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_box_rule_in_the_first_layer(batch_norm, x):
    """LRP-zB: ``x W - l W+ - h W-`` for numerator and denominator; of the layer that the batch's statistics define."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3) if batch_norm else nn.Identity()
    layers = [nn.Conv2d(2, 3, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)]
    model: Any = trained(nn.Sequential(*layers)).train()
    x = x.sigmoid()
    conv, fc = model[0], model[-1]
    heatmap = fxlrp.ISNet(model, "original", EPS, first_layer="zbox", bounds=(-0.5, 1.5))(x).heatmaps["input"]
    w, b, z = Slow.fused(x, conv, norm) if batch_norm else (conv.weight, conv.bias, conv(x))
    a = z.relu().flatten(1)
    logits = fc(a)
    low, high = torch.full_like(x, -0.5), torch.full_like(x, 1.5)
    up, down = w.clamp(min=0), w.clamp(max=0)
    below = F.conv2d(low, up, b.clamp(min=0), padding=1)
    above = F.conv2d(high, down, b.clamp(max=0), padding=1)
    for k in range(4):
        of_a = (a * fc.weight[k] * (logits[:, k] / (logits[:, k] + EPS * sign(logits[:, k])))[:, None]).view_as(z)
        denominator = z - below - above
        s = of_a / (denominator + EPS * sign(denominator))
        back = lambda w, s=s: F.conv_transpose2d(s, w, padding=1)
        close(heatmap[:, k], x * back(w) - low * back(up) - high * back(down))


class Flex(nn.Module):
    """LRP-Flex as the paper describes it (section 2.4): hooks at the ReLUs, and autograd."""

    def __init__(self, model: nn.Sequential, epsilon: float):
        super().__init__()
        self.model, self.epsilon = model, epsilon

    def explain(self, x, quantity):
        x = x.clone().requires_grad_()
        value = x
        for module in self.model:
            value = module(value)
            if isinstance(module, nn.ReLU):
                step = (value / (value + self.epsilon)).detach()
                value.register_hook(lambda g, step=step: g * step)
        return x.detach() * torch.autograd.grad(quantity(value).sum(), x)[0]


@pytest.mark.parametrize("c", [0, 3])
def test_epsilon_relevance_is_lrp_flex(x, c):
    """(15)-(17): with LRP-0 in the last layer, LRP-epsilon of a ReLU network is the attenuated gradient x input."""
    model = plain_network()
    expected = Flex(model, EPS).explain(x, lambda z: z[:, c])
    flex = fxlrp.ISNet(model, "original", EPS, flex=True)(x).heatmaps["input"][:, c]
    close(flex, expected)
    layers: Any = variants.epsilon_composite(variants.Settings(EPS, None, (0, 1), "bounded", 0.01, False))
    last = LayerMapComposite([(nn.Linear, variants.TimesInput())])
    mixed = LayerMapComposite([*last.layer_map, *[(k, h) for k, h in layers.layer_map]])
    seed = torch.zeros(6, 4).double()
    seed[:, c] = 1
    close(fxlrp.convert(model, mixed)(x, seed).relevance, expected)


def test_flex_of_eta(x):
    """(26): Flex asks autograd for the gradient of the bounded eta."""
    model = plain_network()

    def quantity(z):
        p = z.softmax(1).gather(1, z.argmin(1, keepdim=True))
        return torch.log(p + 0.01) - torch.log(1 - p + 0.01)

    expected = Flex(model, EPS).explain(x, quantity)
    close(fxlrp.ISNet(model, "selective", EPS, flex=True)(x).heatmaps["input"], expected)


def test_without_epsilon_it_is_gradient_times_input(x):
    model = plain_network()
    original = fxlrp.ISNet(model, "original", 1e-11)(x).heatmaps["input"]
    for c in range(4):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, c].sum(), leaf)
        torch.testing.assert_close(original[:, c], x * gradient, rtol=1e-6, atol=1e-8)


def test_gradient_input_is_that_of_the_winning_probability(x):
    """Appendix D.1; in evaluation mode, where statistics are constants for autograd too."""
    model = trained(Residual()).eval()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).softmax(1).amax(1).sum(), leaf)
    isnet = fxlrp.ISNet(model, "gradient_input", deep_supervision=["conv2"])
    out = isnet(x)
    close(out.heatmaps["input"], x * gradient)
    # Within, too, it is multiplied with the value; of a part without bias, the sums agree by Euler's theorem.
    a = model.pool(torch.relu(model.bn1(model.conv1(x)))).detach().requires_grad_()
    rest = model.fc(model.gap(torch.relu(model.bn2(model.conv2(a)) + a)).flatten(1)).softmax(1).amax(1).sum()
    through_conv2 = torch.autograd.grad(rest, a)[0]
    skip = torch.autograd.grad(
        model.fc(model.gap(torch.relu(model.bn2(model.conv2(a.detach())) + a)).flatten(1)).softmax(1).amax(1).sum(), a
    )[0]
    close(out.heatmaps["conv2"], a.detach() * (through_conv2 - skip))


VARIANT_OPTIONS = {
    "selective": {},
    "stochastic": {"first_layer": "zbox", "bounds": (-4.0, 4.0)},
    "dual": {},
    "dual_zbox": {"first_layer": "zbox", "bounds": (-4.0, 4.0)},
    "original": {},
    "original_chunked": {"chunk_size": 2},
    "gradient_input": {},
    "selective_pairwise": {"eta": "pairwise"},
    "selective_flex": {"flex": True},
}


@pytest.mark.parametrize("name", VARIANT_OPTIONS)
def test_the_losss_gradients_are_finite_differences(name, model, x):
    """In training mode with batch norm, for every parameter: through maps, seeds and the batch's statistics."""
    variant = name.removesuffix("_zbox").removesuffix("_chunked").removesuffix("_pairwise").removesuffix("_flex")
    isnet = fxlrp.ISNet(model, variant, EPS, deep_supervision=["conv2"], **VARIANT_OPTIONS[name])
    labels, masks = torch.arange(6) % 4, torch.zeros(6, 8, 8)
    masks[:, 2:5, 3:7] = 1
    pair = (0.5, 0.6)
    criterion = fxlrp.ISNetLoss(0.8, 0.9, ranges={"input": [pair], "conv2": [pair]})

    def loss():
        torch.manual_seed(3)  # The stochastic variant draws the same classes.
        return criterion(isnet(x), labels, masks).heatmap

    names, tensors = zip(*model.named_parameters(), strict=True)
    scale = loss().abs().item()
    found = list(directional_derivatives(loss, tensors, step=1e-7))
    for label, (automatic, numeric) in zip(names, found, strict=True):
        assert automatic == pytest.approx(numeric, rel=2e-4, abs=1e-6 * scale), label
    assert sum(abs(automatic) > 1e-6 for automatic, _ in found) >= 6


def slow_gwrp(values, d):
    ranked = sorted(values, reverse=True)
    weights = [d**i if d else float(i == 0) for i in range(len(ranked))]
    return sum(w * v for w, v in zip(weights, ranked, strict=True)) / sum(weights)


@pytest.mark.parametrize("d", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_ranked_pooling(d):
    torch.manual_seed(0)
    values = torch.randn(3, 400, dtype=torch.float64)
    for row, found in zip(values, gwrp(values, d), strict=True):
        assert float(found) == pytest.approx(slow_gwrp(row.tolist(), d), rel=1e-12)
    if d in (0.0, 1.0):
        expected = values.amax(1) if d == 0 else values.mean(1)
        close(gwrp(values, d), expected)


def test_the_joint_map_of_inputs_of_both_signs():
    """(4), (5) of one linear layer: each logit's positive contributions, of negative inputs too, are its relevance."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double()
    x = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    found = fxlrp.ISNet(model, "dual", epsilon=0.01)(x).heatmaps["input"][:, 0]
    z = (x.reshape(3, 1, 6) * model[1].weight).clamp(min=0)
    joint = z.sum(2) + model[1].bias.clamp(min=0)
    expected = (z * (joint / (joint + 0.01))[:, :, None]).sum(1)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_background_loss_step_by_step():
    """Appendix C, steps 1 to 7, with plain loops."""
    torch.manual_seed(0)
    maps, masks = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64), torch.rand(3, 5, 4) < 0.4
    found = background_loss(maps, masks.double()[:, None, None], d=0.8, activation=1.5)
    for b in range(3):
        for k in range(2):
            absolute = maps[b, k].abs()
            mean = absolute[:, masks[b]].mean()
            losses = []
            for channel in absolute:
                segmented = (channel / mean * ~masks[b]).flatten().tolist()
                score = slow_gwrp(segmented, 0.8)
                losses.append(-math.log(1 - score / (score + 1.5)))
            assert float(found[b, k]) == pytest.approx(sum(losses) / 2, rel=1e-12)


def slow_foreground(s, c1, c2):
    """(39)."""
    if s < c1:
        return (c1 - s) ** 2 / c1**2
    if s <= c2:
        return 0.0
    if s <= c2 + c1:
        return (c2 - s) ** 2 / c1**2
    return 1 + s - (c2 + c1)


def test_foreground_loss():
    totals = torch.linspace(0, 12, 97, dtype=torch.float64).requires_grad_()
    found = foreground_loss(totals[:, None], torch.tensor([1.5]).double(), torch.tensor([3.0]).double())[:, 0]
    for s, value in zip(totals.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(slow_foreground(s, 1.5, 3.0), abs=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), totals)
    for s, slope in zip(totals.tolist(), gradient.tolist(), strict=True):
        if min(abs(s - kink) for kink in (1.5, 3.0, 4.5)) > 1e-3:
            numeric = (slow_foreground(s + 1e-6, 1.5, 3.0) - slow_foreground(s - 1e-6, 1.5, 3.0)) / 2e-6
            assert slope == pytest.approx(numeric, abs=1e-5)
    huge = foreground_loss(torch.tensor([[1e30]]), torch.tensor([1e-20]), torch.tensor([1.0]))
    assert huge.isfinite().all()


def test_masks_at_another_size():
    """Any foreground in a cell of adaptive pooling counts."""
    masks = torch.zeros(1, 1, 7, 5)
    masks[0, 0, 6, 4] = 1
    found = mask_at(masks > 0, (3, 2))
    assert found[0, 0].tolist() == [[False, False], [False, False], [False, True]]
    assert mask_at(torch.ones(1, 1, 7, 5) > 0, (3, 2)).all()


@pytest.mark.parametrize("variant", ["selective", "dual"])
def test_the_loss_of_a_batch(variant, model, x):
    """(37), (38), supervised layers, their own ranges, and samples without a mask."""
    names = ["input", "conv2"]
    maps = 2 if variant == "dual" else 1
    ranges = {"input": [(0.3, 0.4), (2.0, 3.0)][:maps], "conv2": [(0.1, 0.2), (5.0, 9.0)][:maps]}
    out = fxlrp.ISNet(model, variant, EPS, deep_supervision=["conv2"])(x)
    labels = torch.arange(6) % 4
    torch.manual_seed(0)
    masks = torch.rand(6, 1, 8, 8) < 0.3
    has_mask = torch.tensor([True, True, False, True, True, False])
    loss = fxlrp.ISNetLoss(0.7, 0.9, 1.5, 2.5, ranges)(out, labels, masks, has_mask)
    layers, parts = [], {}
    for name in names:
        heatmaps = out.heatmaps[name] if variant == "dual" else out.heatmaps[name].unsqueeze(1)
        foreground = masks.double() if name == "input" else F.adaptive_avg_pool2d(masks.double(), 4).gt(0).double()
        l1, l2 = [], []
        for b in has_mask.nonzero().flatten().tolist():
            each = background_loss(heatmaps[b : b + 1], foreground[b : b + 1, None], 0.9)
            l1.append(each.mean().item())
            totals = (heatmaps[b].abs() * foreground[b]).sum((1, 2, 3)).tolist()
            pairs = zip(totals, ranges[name], strict=True)
            l2.append(sum(slow_foreground(s, *pair) for s, pair in pairs) / maps)
        parts[name] = sum(l1) / 4, sum(l2) / 4
        layers.append(1.5 * parts[name][0] + 2.5 * parts[name][1])
    heatmap = slow_gwrp(layers, 0.7)
    classification = F.cross_entropy(out.logits, labels).item()
    assert loss.classification.item() == pytest.approx(classification, rel=1e-12)
    assert loss.background.item() == pytest.approx(parts["input"][0], rel=1e-10)
    assert loss.foreground.item() == pytest.approx(parts["input"][1], rel=1e-10)
    assert loss.heatmap.item() == pytest.approx(heatmap, rel=1e-10)
    assert loss.total.item() == pytest.approx(0.3 * classification + 0.7 * heatmap, rel=1e-10)


@pytest.mark.parametrize("variant", ["selective", "dual", "original"])
def test_ranges_are_those_of_two_pass_statistics(variant, x):
    torch.manual_seed(0)
    model = trained(Residual()).eval()
    isnet = fxlrp.ISNet(model, variant, EPS, deep_supervision=["conv2"])
    batches = [(x[:1], None), (x[1:4], None), (x[4:], None)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ranges = fxlrp.calibrate(isnet, batches, progress=False)
    with torch.no_grad():
        maps = {name: torch.cat([isnet(batch).heatmaps[name] for batch, _ in batches]) for name in ("input", "conv2")}
    for name, value in maps.items():
        totals = value.abs().flatten(2 if variant != "selective" else 1).sum(-1)
        columns = totals.T if variant == "dual" else [totals.flatten()]
        expected = []
        for column in columns:
            mean = float(sum(column) / len(column))
            deviation = math.sqrt(float(sum((column - mean) ** 2)) / (len(column) - 1))
            low = max(mean / 5, mean - 3 * deviation)
            expected.append((low, min(25 * low, mean + 3 * deviation)))
        found = ranges[name] if variant == "dual" else [ranges[name]]
        assert torch.tensor(found).double().flatten().tolist() == pytest.approx(
            torch.tensor(expected).double().flatten().tolist(), rel=1e-6
        )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_calibration_trains_a_copy(x):
    """The paper's heuristic: epochs of plain training on a copy; the epoch that is measured is trained in too."""
    torch.manual_seed(0)
    model = trained(Residual()).train()
    isnet = fxlrp.ISNet(model, "selective", EPS)
    batches = [(x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([3, 0, 1]))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "clip": 0.5, "progress": False}
    found = fxlrp.calibrate(isnet, batches, **options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    totals = []
    for epoch in range(2):
        for images, labels in batches:
            if epoch:
                totals.extend(isnet(images).heatmaps["input"].abs().flatten(1).sum(1).tolist())
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    statistics = torch.tensor(totals).double()
    assert found["input"] == pytest.approx(range_of(float(statistics.mean()), float(statistics.std())), rel=1e-6)


def test_welford_in_any_batches():
    torch.manual_seed(0)
    values = 1e6 + torch.randn(50, 2, dtype=torch.float64)
    one = Welford()
    for part in values.split([1, 0, 7, 30, 12]):
        one.add(part)
    one.merge(Welford())
    close(one.mean, values.mean(0))
    torch.testing.assert_close(one.deviation, values.std(0), rtol=1e-9, atol=0)


def test_welford_of_nothing():
    """As a process has it that had no image of some kind."""
    none, values = Welford(), torch.tensor([[1.0], [3.0]])
    none.merge(Welford())
    assert none.count == 0
    none.add(values)
    close(none.mean, values.double().mean(0))


def test_ranges_have_limits():
    """(40), (41)."""
    assert range_of(10, 1) == (7, 13)
    assert range_of(10, 3) == (2, 19)
    assert range_of(10, 100) == (2, 50)


RESNET = ["input", "layer1", "layer2", "layer3", "layer4", "avgpool"]
DENSENET = ["input", *(f"features.denseblock{i}" for i in range(1, 5)), "features.norm5"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", RESNET),
        pytest.param("resnet50", RESNET, marks=pytest.mark.slow),
        pytest.param("wide_resnet50_2", RESNET, marks=pytest.mark.slow),
        pytest.param("densenet121", DENSENET, marks=pytest.mark.slow),
        ("vgg11_bn", ["input", "features.4", "features.8", "features.15", "features.22", "avgpool"]),
    ],
)
def test_deep_supervision_finds_the_papers_layers(name, expected):
    """Appendix F: the input, the input of each stage, the input of the global pooling."""
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    model = model.to_empty(device="cpu").eval()
    assert bottlenecks(capture(model, (torch.zeros(2, 3, 64, 64),))) == expected


def test_deep_supervision_of_a_network_of_ones_own(model, x):
    """A value that a skip connection reads too is no module's input alone; the sum behind it is one's."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), Residual()).double()
    assert bottlenecks(capture(model.eval(), (x,))) == ["input", "1.gap"]
    out = fxlrp.ISNet(model, deep_supervision=True)(x)
    assert {name: tuple(maps.shape) for name, maps in out.heatmaps.items()} == {
        "input": (6, 2, 8, 8),
        "1.gap": (6, 5, 4, 4),
    }


def test_batch_and_spatial_size_may_change(model, x):
    isnet = fxlrp.ISNet(model, "selective", EPS)
    for size in ((6, 2, 8, 8), (3, 2, 8, 8), (4, 2, 12, 10)):
        torch.manual_seed(0)
        images = torch.randn(size, dtype=torch.float64)
        out = isnet(images)
        assert out.heatmaps["input"].shape == size
        assert isnet(images[:2]).logits.shape == (2, 4)


def test_what_is_put_in_place_of_a_layer_is_seen(model, x):
    isnet = fxlrp.ISNet(model.eval(), "selective", EPS)
    isnet(x)
    model.fc = nn.Linear(5, 3).double()
    close(isnet(x).logits, model(x))
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)
    close(isnet(x).logits, model(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_on_a_gpu(variant, model, x):
    """In float64 the CPU's maps and gradients; under bf16 autocast finite ones."""
    labels, masks = torch.arange(6) % 4, torch.ones(6, 8, 8)
    masks[:, :4] = 0
    found = []
    for device in ("cpu", "cuda"):
        isnet = fxlrp.ISNet(model.to(device), variant, EPS)
        torch.manual_seed(0)
        out = isnet(x.to(device))
        loss = fxlrp.ISNetLoss()(out, labels.to(device), masks)
        gradient = torch.autograd.grad(loss.heatmap, model.conv1.weight)[0]
        if variant != "stochastic":  # Draws are the device's own.
            found.append((out.heatmaps["input"].cpu(), gradient.cpu()))
    if found:
        close(found[1][0], found[0][0])
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-6, atol=1e-9)
    model.float()
    with torch.autocast("cuda", torch.bfloat16):
        out = isnet(x.float().cuda())
        fxlrp.ISNetLoss()(out, labels.cuda(), masks).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
