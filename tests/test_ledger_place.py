"""The ledger sees where relevance lies: what only moves it about within a value closes all sums, and is a leak."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import zennit.rules as zr
from test_ledger import Mixed, Opaque, Residual, Squared, composite_of, rand
from torch import fx, nn
from zennit.core import Stabilizer

import fxlrp
from fxlrp import rules
from fxlrp.ledger.books import relative
from fxlrp.ops import _OPS, linear, lookup
from fxlrp.ops.pooling import max_pooled
from fxlrp.relevance.emit import _Writer
from fxlrp.relevance.rewrites import FORWARD
from fxlrp.relevance.rewrites.winners import keep_winners_of_max_pooling
from fxlrp.rules import BasicRule
from fxlrp.testing import assert_conserves, trained

aten = torch.ops.aten
SIZE = 4


class Movers(nn.Module):
    """One op of each kind, all of whose dimensions are of one size: no mistake is a mistake of shapes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(SIZE, SIZE, 3, padding=1), nn.LayerNorm(SIZE)
        self.left, self.right, self.gate = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.qkv, self.head = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE * SIZE, 3)

    def forward(self, x):
        x = F.avg_pool2d(F.max_pool2d(self.conv(x), 3, 1, 1), 3, 1, 1)
        a, b = x.split(SIZE // 2, 1)
        x = torch.cat([a.roll(1, 3), b.flip(2)], 1).permute(0, 2, 3, 1)
        x = self.norm(x.mean(1))
        x = (self.left(x) @ self.right(x)).softmax(-1) + x
        x = x * self.gate(x).sigmoid()
        q, k, v = self.qkv(x).split(SIZE, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


X = torch.randn(SIZE, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COMPOSITE = composite_of(zr.Epsilon(1e-3))


@pytest.fixture(scope="module")
def movers():
    torch.manual_seed(0)
    model = trained(Movers()).eval()
    return model


def audited(model):
    return fxlrp.audit(fxlrp.convert(model, COMPOSITE, trainable=True), X, 1)


def leaking(ledger):
    return {row.op for row in ledger.rows if row.leak > 1e-9}


def test_nothing_is_misplaced(movers):
    ledger = audited(movers)
    assert ledger.leak < 1e-12
    assert all(row.misplaced is not None for row in ledger.rows)
    assert {row.op for row in ledger.rows} >= {*MOVED, "input"} - {"getitem"}
    again = audited(movers)
    assert [row.misplaced for row in again.rows] == [row.misplaced for row in ledger.rows]


def transposed_by(target, vjp):
    """An op whose transpose is another: a function of the call, the gradient, and what is right."""

    def mutate(patch):
        entry = lookup(target)
        right = lambda call, gradient: replace(call, op=entry).vjp(gradient)
        patch.setitem(_OPS, target, replace(entry, vjp=lambda call, gradient: vjp(call, gradient, right)))

    return mutate


def propagated_by(kind, change, only=None):
    """A rule that changes what it hands on."""

    def changed(plain):
        def propagate(self, call, *args):
            found = plain(self, call, *args)
            return change(found) if only in (None, call.target) else found

        return propagate

    def mutate(patch):
        for each in (kind, *kind.__subclasses__()):
            patch.setattr(each, "propagate", changed(vars(each)["propagate"]))

    return mutate


def other_factor(patch):
    patch.setattr(rules.Gate, "receivers", lambda self, slots: [slot for slot in slots if slot[0] != self.signal])


def flipped_kernel(patch):
    plain = linear.transpose
    patch.setattr(linear, "transpose", lambda gradient, weight, *args: plain(gradient, weight.flip(2, 3), *args))


def mixed_readers(patch):
    """What a value gets from its readers is summed up across the samples."""
    plain = _Writer._sum

    def summed(self, parts, name):
        mirrored = [self._graph.create_node("call_method", "flip", (part, 0)) for part in parts[1:]]
        return plain(self, [parts[0], *mirrored], name)

    patch.setattr(_Writer, "_sum", summed)


def mixed_outputs(patch):
    plain = _Writer._relevance_of

    def relevance_of(self, node):
        found = plain(self, node)
        return found[::-1] if isinstance(found, list) else found

    patch.setattr(_Writer, "_relevance_of", relevance_of)


def mirrored_at_the_input(patch):
    plain = _Writer.arrived
    patch.setattr(
        _Writer, "arrived", lambda self, node: self._graph.create_node("call_method", "flip", (plain(self, node), 3))
    )


def winners_of_another_pooling(patch):
    """Not the transpose is wrong, but the reading of the op."""

    def read(graph_module: fx.GraphModule):
        keep_winners_of_max_pooling(graph_module)
        for node in list(graph_module.graph.nodes):
            if node.meta.get("stands_for") is max_pooled:
                with graph_module.graph.inserting_before(node):
                    mirrored = graph_module.graph.call_method("flip", (node.args[-1], 3))
                    mirrored.meta["val"] = node.args[-1].meta["val"]
                node.args = (*node.args[:-1], mirrored)

    patch.setitem(FORWARD, "max_pool_winners", read)


reverse = lambda found: found[::-1]
MUTATIONS = {
    "queries for keys": (
        "scaled_dot_product_attention",
        propagated_by(rules.Attention, lambda found: [found[1], found[0], found[2]]),
    ),
    "a cat reversed": ("cat", transposed_by(aten.cat.default, lambda call, g, right: right(call, g)[::-1])),
    "winners mirrored": ("max_pooled", transposed_by(max_pooled, lambda call, g, right: right(call, g.flip(3)))),
    "winners of another pooling": ("max_pooled", winners_of_another_pooling),
    "a permute by the wrong order": (
        "permute",
        transposed_by(aten.permute.default, lambda call, g, right: (g.permute(call.args[1]),)),
    ),
    "a flip left out": ("flip", transposed_by(aten.flip.default, lambda call, g, right: (g,))),
    "a roll by the other direction": (
        "roll",
        transposed_by(aten.roll.default, lambda call, g, right: (g.roll(*call.args[1:]),)),
    ),
    "factors of a product swapped": ("matmul", propagated_by(rules.Bilinear, reverse)),
    "samples of a split mixed": (
        "split",
        transposed_by(aten.split.Tensor, lambda call, g, right: tuple(f.roll(1, 0) for f in right(call, g))),
    ),
    "outputs of a split mixed": ("split", mixed_outputs),
    "a kernel flipped": ("conv2d", flipped_kernel),
    "a pooling's share shifted": (
        "avg_pool2d",
        transposed_by(aten.avg_pool2d.default, lambda call, g, right: (right(call, g)[0].roll(1, 3),)),
    ),
    "the gate for the signal": ("mul", other_factor),
    "a sum's shares swapped": ("add", propagated_by(BasicRule, reverse, only=aten.add.Tensor)),
    "a mean along another dimension": (
        "mean",
        transposed_by(aten.mean.dim, lambda call, g, right: (right(call, g)[0].mT,)),
    ),
    "a softmax's shares rolled": (
        "softmax",
        propagated_by(rules.Softmax, lambda found: (found[0].roll(1, -1),)),
    ),
    "tokens of a normalization mixed": (
        "layer_norm",
        propagated_by(rules.Linearized, lambda found: (found[0].roll(1, 1),)),
    ),
    "a layer's samples mixed": (
        "linear",
        propagated_by(BasicRule, lambda found: [found[0].roll(1, 0)], only=aten.linear.default),
    ),
    "the input's relevance mirrored": ("input", mirrored_at_the_input),
}
MOVED = {op for op, _ in MUTATIONS.values()}
SUMS_SEE_IT = {
    "a kernel flipped",
    "winners of another pooling",
    "a pooling's share shifted",
    "a mean along another dimension",
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_moves_relevance_about_is_a_leak_at_its_node(monkeypatch, movers, name):
    op, mutate = MUTATIONS[name]
    mutate(monkeypatch)
    ledger = audited(movers)
    worst = ledger.worst[0]
    assert worst.op == op
    assert ledger.leak == worst.misplaced > 1e-3
    assert leaking(ledger) == {op}
    assert f"{worst.misplaced:.1e}" in str(ledger)
    if name not in SUMS_SEE_IT:
        assert max(relative(row.rest, row.scale) for row in ledger.rows) < 1e-9
    with pytest.raises(AssertionError, match=rf"leak is .* at '{worst.node}' .*is misplaced"):
        assert_conserves(fxlrp.convert(movers, COMPOSITE, trainable=True), X, 1)


def test_readers_that_are_mixed_up_are_a_leak_where_their_shares_meet(monkeypatch, movers):
    """The normalization's value has three."""
    mixed_readers(monkeypatch)
    assert leaking(audited(movers)) == {"layer_norm"}


def test_a_step_that_is_left_out_is_a_leak(monkeypatch, movers):
    plain = _Writer.take_on
    patched = lambda self, each: None if each.node.target is aten.roll.default else plain(self, each)
    monkeypatch.setattr(_Writer, "take_on", patched)
    ledger = audited(movers)
    (row,) = [row for row in ledger.rows if row.leak > 1e-9]
    assert (row.op, row.rule, row.to, row.misplaced) == ("roll", "-", {}, None)
    assert row.rest == row.received


BASIC = {
    "epsilon": zr.Epsilon(0.1),
    "epsilon, clipped": zr.Epsilon(Stabilizer(0.3, clip=True)),
    "epsilon, by the norm": zr.Epsilon(Stabilizer(0.2, norm_scale=True)),
    "epsilon without bias": zr.Epsilon(0.01, zero_params="bias"),
    "norm": zr.Norm(),
    "gamma": zr.Gamma(0.25),
    "z+": zr.ZPlus(),
    "alpha-beta": zr.AlphaBeta(2, 1),
    "w2": zr.WSquare(),
    "flat": zr.Flat(),
    "box": zr.ZBox(-4.0, 4.0),
    "of gradients and products": Mixed(),
}


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    model, x = trained(Residual()).eval(), rand(2, 3, 6, 6)
    return lambda rule: fxlrp.audit(fxlrp.convert(model, composite_of(rule), trainable=True), x, 1)


@pytest.mark.parametrize("name", BASIC)
def test_every_basic_rule_says_where_its_relevance_lies(monkeypatch, residual, name):
    ledger = residual(BASIC[name])
    assert ledger.leak < 1e-12
    assert all(row.misplaced is not None for row in ledger.rows)
    propagated_by(BasicRule, lambda found: [f.flip(0) for f in found], only=aten.conv2d.default)(monkeypatch)
    ledger = residual(BASIC[name])
    assert leaking(ledger) == {"conv2d"}
    assert ledger.leak > 1e-3


@pytest.mark.parametrize("rule", [Opaque(), Squared()], ids=["a hook of its own", "a reducer that is not linear"])
def test_where_there_is_no_formula_the_row_says_that_it_is_not_checked(residual, rule):
    ledger = residual(rule)
    assert ledger.leak < 1e-9
    unchecked = [row for row in ledger.rows if row.misplaced is None]
    assert {row.rule for row in unchecked} == {type(rule).__name__}
    assert ledger.table(None).count("not checked") == len(unchecked)


def test_relative():
    """Where there is no telling, it is a leak."""
    nan, inf = float("nan"), float("inf")
    assert relative(-1.0, 4.0) == 0.25
    assert relative(0.0, 0.0) == 0.0
    assert [relative(*pair) for pair in [(1.0, 0.0), (nan, 1.0), (1.0, nan), (1.0, inf), (inf, 1.0)]] == [inf] * 5


def test_relevance_that_is_tiny_is_not_misplaced(movers):
    seed = 1e-200 * torch.ones(SIZE, 3, dtype=torch.float64)
    assert fxlrp.audit(fxlrp.convert(movers, COMPOSITE, trainable=True), X, seed).leak < 1e-12


def test_float32(movers):
    twin = fxlrp.convert(trained(Movers()).eval().float(), COMPOSITE)
    ledger = fxlrp.audit(twin, X.float(), 1)
    assert ledger.leak < 1e-5
