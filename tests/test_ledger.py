"""The ledger: each share is its formula, a broken rule is a leak at its node, and what a rule drops is told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import zennit.rules as zr
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.core import BasicHook, Hook, Stabilizer, stabilize
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear

import fxlrp
from fxlrp import errors, ops, rules
from fxlrp.relevance.emit import _Writer
from fxlrp.rules.zennit import stabilizer, traced
from fxlrp.rules.zennit.planned import PlannedRule
from fxlrp.testing import trained
from fxlrp.vocabulary import Call, lookup

aten = torch.ops.aten
BASE = [(Activation, zr.Pass()), (Sum, zr.Norm()), (AvgPool, zr.Norm()), (BatchNorm, zr.Pass())]


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def composite_of(rule, base=BASE):
    return LayerMapComposite([*base, (Linear, rule)])


def ledger_of(model, x, composite, target=0):
    return fxlrp.audit(fxlrp.convert(model, composite), x, target)


def row_of(ledger, path):
    (row,) = [row for row in ledger.rows if row.path == path]
    return row


class Residual(nn.Module):
    """A stem, a residual block, a gate, a pool and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.squeeze, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.outer(F.relu(self.inner(x))) + x)
        x = x * self.squeeze(x.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return trained(Residual()).eval()


def test_shares_of_epsilon():
    """The bias takes ``sum_k b_k R_k / (z_k + eps sign z_k)``, the stabilizer ``sum_k eps sign z_k R_k / (...)``."""
    layer = trained(nn.Linear(5, 3))
    x, seed = rand(4, 5), rand(4, 3)
    row = row_of(ledger_of(nn.Sequential(layer), x, composite_of(zr.Epsilon(0.1)), seed), "0")
    z = layer(x)
    share = seed / stabilize(z, 0.1)
    assert row.received == pytest.approx(seed.sum().item(), rel=1e-12)
    assert row.scale == pytest.approx(seed.abs().sum().item(), rel=1e-12)
    assert row.bias == pytest.approx((share * layer.bias).sum().item(), rel=1e-12)
    assert row.stabilizer == pytest.approx((share * 0.1 * z.sign()).sum().item(), rel=1e-12)
    assert row.definition == 0
    assert row.leak < 1e-14


@pytest.mark.parametrize("stabilizer", [Stabilizer(0.3, clip=True), Stabilizer(0.2, norm_scale=True)])
def test_other_stabilizers(stabilizer):
    layer = trained(nn.Conv2d(2, 3, 3, padding=1))
    x, seed = rand(2, 2, 4, 4), rand(2, 3, 4, 4)
    row = row_of(ledger_of(nn.Sequential(layer), x, composite_of(zr.Epsilon(stabilizer)), seed), "0")
    z = layer(x)
    expected = (seed * (1 - z / stabilizer(z))).sum().item()
    assert row.stabilizer == pytest.approx(expected, rel=1e-9)
    assert row.leak < 1e-13


def over_exponentials(stabilizer):
    return lambda r, outputs: [r / stabilizer(outputs[0].exp())]


@pytest.mark.parametrize(
    "mapper",
    [
        lambda r, outputs: [r.tanh()],
        lambda r, outputs: [r / (outputs[0].abs() + 1)],
        over_exponentials(Stabilizer(0.1)),
    ],
    ids=["no quotient", "no stabilizer", "another denominator"],
)
def test_what_a_rule_without_shares_of_its_output_drops_is_its_definitions(mapper):
    layer, x, seed = trained(nn.Linear(5, 3)), rand(4, 5), rand(4, 3)
    rule = BasicHook(
        [lambda x: x], [zr.NoMod()], [lambda z: z], mapper, lambda inputs, gradients: inputs[0] * gradients[0]
    )
    row = row_of(ledger_of(nn.Sequential(layer), x, composite_of(rule), seed), "0")
    (mapped,) = mapper(seed, [layer(x)])
    assert row.definition == pytest.approx((seed.sum() - (x * (mapped @ layer.weight)).sum()).item(), rel=1e-9)
    assert (row.bias, row.stabilizer) == (0, 0)
    assert row.leak < 1e-13


def test_the_worked_example_of_one_sided_alpha_beta():
    """With no negative contribution, alpha - beta = 1 is not kept: beta's share was taken off nothing, and is added."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.fill_(1)
    ledger = ledger_of(nn.Sequential(layer).double(), torch.tensor([[1.0, 3.0]]).double(), composite_of(zr.AlphaBeta()))
    row = row_of(ledger, "0")
    assert row.received == 4
    assert sum(row.to.values()) == pytest.approx(8, rel=1e-5)
    assert row.definition == pytest.approx(-4, rel=1e-12)
    assert ledger.unconserved == pytest.approx(1)
    assert ledger.leak < 1e-12


def test_what_has_nothing_to_share_out_stays_with_the_stabilizer():
    """z+ of a unit without a positive contribution is 0 / 0, and drops its relevance."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.fill_(-1)
    ledger = ledger_of(nn.Sequential(layer).double(), torch.ones(1, 2).double(), composite_of(zr.ZPlus()))
    row = row_of(ledger, "0")
    assert (row.received, row.stabilizer, row.definition) == (-2, -2, 0)
    assert ledger.unconserved == 0


def test_a_sum_without_a_rule_doubles():
    """zennit's gradient through ``x + f(x)``: both get all of it."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return x + self.layer(x)

    x = rand(2, 3)
    ledger = ledger_of(trained(Twice()), x, LayerMapComposite([(Linear, zr.Epsilon())]), lambda out: out)
    (row,) = [row for row in ledger.rows if row.op == "add"]
    assert row.definition == pytest.approx(-row.received, rel=1e-12)
    assert ledger.leak < 1e-13


@pytest.mark.parametrize("activation", [F.relu, F.silu, F.gelu, F.hardswish, F.leaky_relu])
def test_the_gradient_drops_by_definition(activation):
    """``R_i = sum_k J_ki R_k``: of unit k, ``R_k (1 - sum_i J_ki)`` is dropped."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return activation(self.layer(x))

    model, x, seed = trained(Net()), rand(3, 4), rand(3, 4)
    ledger = ledger_of(model, x, LayerMapComposite([(Linear, zr.Epsilon())]), seed)
    row = ledger.rows[0]
    at = model.layer(x).detach().requires_grad_()
    slope = torch.autograd.grad(activation(at).sum(), at)[0]
    assert row.definition == pytest.approx((seed * (1 - slope)).sum().item(), rel=1e-10)
    assert ledger.leak < 1e-13


def test_constants_take_their_share():
    """Padding by a constant, and a constant operand of a sum: what goes to them is booked with the biases."""

    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.offset = nn.Linear(4, 4), nn.Parameter(rand(6))

        def forward(self, x):
            return F.pad(self.layer(x), (1, 1), value=0.7).relu() + self.offset

    model, x = trained(Constants()), rand(3, 4)
    composite = composite_of(zr.Epsilon(1e-12), [(Sum, zr.Norm(1e-12))])
    ledger = ledger_of(model, x, composite, lambda out: out)
    pad = next(row for row in ledger.rows if row.op == "pad")
    add = next(row for row in ledger.rows if row.op == "add")
    assert add.bias == pytest.approx(3 * model.offset.sum().item(), rel=1e-6)
    assert pad.bias == pytest.approx(3 * 2 * 0.7, rel=1e-6)
    assert ledger.unconserved == 0
    assert ledger.leak < 1e-12


def test_layer_norm_softmax_and_attention():
    """AttnLRP: the softmax's remainder is dropped by definition; the rest of a transformer block conserves."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).view(len(x), 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
            w = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            y = (y + w).transpose(1, 2).reshape(len(x), 5, 6)
            return self.head((x + self.out(y)).mean(1))

    model, x = trained(Block()), rand(2, 5, 6)
    ledger = ledger_of(model, x, composite_of(zr.Epsilon(1e-6)))
    by_definition = {row.op for row in ledger.rows if row.unconserved > 1e-9}
    assert by_definition == {"softmax", "scaled_dot_product_attention"}
    assert ledger.leak < 1e-9


CONSERVING = {
    "epsilon": zr.Epsilon(),
    "z+": zr.ZPlus(),
    "gamma": zr.Gamma(),
    "flat": zr.Flat(),
    "w2": zr.WSquare(),
    "box": zr.ZBox(-4.0, 4.0),
    "epsilon without bias": zr.Epsilon(0.01, zero_params="bias"),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_conserving_rules(residual, name):
    ledger = ledger_of(residual, rand(2, 3, 6, 6), composite_of(CONSERVING[name]))
    assert ledger.leak < 1e-9
    assert ledger.unconserved < 1e-9
    total = sum(row.bias + row.stabilizer for row in ledger.rows) + sum(ledger.inputs.values())
    assert total == pytest.approx(ledger.seed, rel=1e-9)


class Opaque(Hook):
    """A user's rule of which nothing is known."""

    def backward(self, module, grad_input, grad_output):
        return (0.5 * grad_input[0],)


class Squared(BasicHook):
    """A user's rule whose reducer is not linear, without a stabilizer."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: x],
            param_modifiers=[lambda p, name: p],
            output_modifiers=[torch.tanh],
            gradient_mapper=lambda r, outputs: [r / (1 + outputs[0].abs())],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] ** 2,
        )


class Mixed(BasicHook):
    """A user's rule whose reducer reads gradients alone, and products, with modified outputs."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: 0.5 * x, lambda x: x.clamp(-1, 1)],
            param_modifiers=[lambda p, name: 2 * p, lambda p, name: p.abs()],
            output_modifiers=[lambda y: y, torch.tanh],
            gradient_mapper=lambda r, outputs: [r / (1 + output.abs()) for output in outputs],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] - 0.3 * gradients[1],
        )


@pytest.mark.parametrize(
    "rule", [zr.AlphaBeta(2, 1), zr.AlphaBeta(1, 0), Opaque(), Squared(), Mixed()], ids=lambda rule: type(rule).__name__
)
def test_rules_that_need_not_conserve(residual, rule):
    ledger = ledger_of(residual, rand(2, 3, 6, 6), composite_of(rule))
    assert ledger.leak < 1e-9
    assert ledger.unconserved > 1e-3 or isinstance(rule, zr.AlphaBeta)


@pytest.mark.parametrize("hook", [zr.ReLUGuidedBackprop(), zr.ReLUDeconvNet(), zr.ReLUBetaSmooth()])
def test_gradient_methods(residual, hook):
    ledger = ledger_of(residual, rand(2, 3, 6, 6), LayerMapComposite([(nn.ReLU, hook)]))
    assert ledger.leak < 1e-9
    assert ledger.unconserved > 1e-3


# A ledger that cannot show a leak is no ledger: each of these mistakes has to be found, and at its node.


def break_bias(patch):
    """A rule that takes the forward's output without the bias for its denominator."""
    plain = PlannedRule.propagate

    def propagate(self, call, output, relevance):
        bias = call.op.at_zero(call) if call.op is lookup(aten.conv2d.default) else None
        return plain(self, call, output if bias is None else output - bias, relevance)

    patch.setattr(PlannedRule, "propagate", propagate)
    return {"stem", "inner", "outer"}


def break_sign(patch):
    """A transpose with the wrong sign."""
    plain = Call.vjp

    def vjp(self, gradient):
        found = plain(self, gradient)
        return tuple(-g for g in found) if self.op is lookup(aten.linear.default) else found

    patch.setattr(Call, "vjp", vjp)
    return {"head", "squeeze"}


def break_stabilizer(patch):
    """A stabilizer that has no sign."""
    for module in (stabilizer, traced):
        patch.setattr(module, "stabilized", lambda z, epsilon: z + 0.1)
    return {"stem", "inner", "outer", "head", "", "norm"}


def break_consumer(patch):
    """Of a value with several consumers, one is forgotten."""

    def total(self, node):
        if node not in self._totals and node in self._received:
            self._totals[node] = self._received[node][0][1]
        return self._totals.get(node)

    patch.setattr(_Writer, "total", total)
    return {""}


def break_gate(patch):
    """A gate that lets a part of the signal's relevance go."""
    plain = rules.Gate.propagate
    patch.setattr(rules.Gate, "propagate", lambda self, *args: [0.9 * share for share in plain(self, *args)])
    return {""}


def break_pool(patch):
    """A mean that is taken for a sum."""
    entry = lookup(aten.adaptive_avg_pool2d.default)
    plain = entry.vjp
    broken = lambda call, gradient: tuple(share * 4 for share in plain(call, gradient))
    patch.setitem(ops._OPS, aten.adaptive_avg_pool2d.default, replace(entry, vjp=broken))
    return {""}


@pytest.mark.parametrize("mutation", [break_bias, break_sign, break_stabilizer, break_consumer, break_gate, break_pool])
def test_a_broken_rule_is_a_leak_at_its_node(monkeypatch, residual, mutation):
    x = rand(2, 3, 6, 6)
    composite = composite_of(zr.Epsilon(1e-3))
    assert ledger_of(residual, x, composite).leak < 1e-9
    places = mutation(monkeypatch)
    ledger = ledger_of(residual, x, composite)
    assert ledger.leak > 1e-4
    assert ledger.worst[0].path in places
    assert {row.path for row in ledger.rows if row.leak > 1e-9} <= places
    assert f"{ledger.worst[0].rest:.1e}" in str(ledger)


def test_a_forgotten_consumer_is_named(monkeypatch, residual):
    break_consumer(monkeypatch)
    ledger = ledger_of(residual, rand(2, 3, 6, 6), composite_of(zr.Epsilon(1e-3)))
    assert {row.op for row in ledger.rows if row.leak > 1e-9} == {"relu"}


# The table, the figures, and what may go wrong.


def test_the_table(residual):
    ledger = ledger_of(residual, rand(2, 3, 6, 6), EpsilonPlus())
    text = str(ledger)
    assert "leak" in text
    assert "stem" in text
    assert "ZPlus" in text
    assert ledger.rows[0].received == pytest.approx(ledger.seed)
    assert len(ledger.table(None).splitlines()) == len(ledger.rows) + 5
    assert len(ledger.table(2).splitlines()) == 2 + 6
    twin = fxlrp.convert(residual, EpsilonPlus())
    x = rand(2, 3, 6, 6)
    ledger = fxlrp.audit(twin, x, 1)
    assert ledger.inputs["x"] == pytest.approx(twin(x, 1).relevance.sum().item(), rel=1e-12)
    lost = [abs(row.bias) + abs(row.stabilizer) for row in ledger.worst]
    scaled = [part / row.scale for part, row in zip(lost, ledger.worst, strict=True)]
    assert scaled == sorted(scaled, reverse=True)


def test_several_inputs_and_a_reused_layer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(8, 3)

        def forward(self, x, index, y):
            a, b = self.layer(F.relu(self.layer(x))).split(2, 1)
            return self.head(torch.cat([a, b * b, self.layer(y)], 1)[:, index])

    model = trained(Two())
    inputs = (rand(3, 4), torch.arange(8), rand(3, 4))
    ledger = fxlrp.audit(fxlrp.convert(model, composite_of(zr.Epsilon())), inputs, 1)
    assert set(ledger.inputs) == {"x", "y"}
    assert ledger.leak < 1e-9
    assert sum(row.path == "layer" for row in ledger.rows) == 3


def test_a_nan_is_a_leak():
    """A stabilizer that scales with the norm gives 0 / 0 where all is zero, in zennit as here."""
    layer = nn.Linear(3, 2, bias=False).double()
    twin = fxlrp.convert(nn.Sequential(layer), composite_of(zr.Epsilon(Stabilizer(0.1, norm_scale=True))))
    ledger = fxlrp.audit(twin, torch.zeros(1, 3).double(), torch.ones_like)
    assert ledger.leak == float("inf")


def test_training_mode_leaves_the_statistics(residual):
    model = trained(Residual()).train()
    before = [buffer.clone() for buffer in model.buffers()]
    twin = fxlrp.convert(model, composite_of(zr.Epsilon()), trainable=True)
    ledger = fxlrp.audit(twin, rand(4, 3, 6, 6), 1)
    assert ledger.leak < 1e-9
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_float32_and_inference_mode(residual):
    twin = fxlrp.convert(trained(Residual()).eval().float(), EpsilonPlus())
    with torch.inference_mode():
        ledger = fxlrp.audit(twin, torch.randn(2, 3, 6, 6), 1)
    assert ledger.leak < 1e-4


def test_bad_input(residual):
    twin = fxlrp.convert(residual, EpsilonPlus())
    with pytest.raises(errors.TargetError, match="one seed"):
        fxlrp.audit(twin, rand(2, 3, 6, 6), rand(5, 2, 3))
    with pytest.raises(errors.TargetError, match="one of the 5"):
        fxlrp.audit(twin, rand(2, 3, 6, 6), lambda out: rand(5, 2, 3))
    with pytest.raises(errors.InputError, match="NaN"):
        fxlrp.audit(twin, rand(2, 3, 6, 6) / 0)
    with pytest.raises(errors.TargetError):
        fxlrp.audit(twin, rand(2, 3, 6, 6), 7)
