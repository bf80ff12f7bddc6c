"""What check says will happen is what happens."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import fxlrp
from fxlrp import errors
from fxlrp.preview import COMPOSITE, CONSTANT, CONVENTION, EXACT, GRADIENT, UNSUPPORTED
from fxlrp.testing import trained

X = torch.randn(2, 3, 32, 32)


class Gated(nn.Module):
    """A squeeze-and-excitation block, a batch norm that is folded, an op that is unknown and one with no rule here."""

    def __init__(self, strange):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.squeeze, self.norm, self.head = nn.Conv2d(4, 4, 1), nn.LayerNorm(4), nn.Linear(4, 5)
        self.strange = strange

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        x = x.amax((2, 3))
        return self.head(self.strange(self.norm(x)))


def by_op(preview):
    return {(plan.op.split(".")[0], plan.path): (plan.rule, plan.how) for plan in preview.plans}


def test_each_op_is_told_once_with_its_rule():
    preview = fxlrp.check(trained(Gated(lambda x: x)).float().eval(), "epsilon_plus", X)
    assert by_op(preview) == {
        ("conv2d", "conv"): ("ZPlus", COMPOSITE),
        ("relu", ""): ("Pass", COMPOSITE),
        ("mean", ""): ("", CONSTANT),
        ("conv2d", "squeeze"): ("", CONSTANT),
        ("sigmoid", ""): ("", CONSTANT),
        ("mul", ""): ("Gate", CONVENTION),
        ("amax", ""): ("Gradient", GRADIENT),
        ("layer_norm", "norm"): ("Linearized", CONVENTION),
        ("linear", "head"): ("Epsilon(1e-06)", COMPOSITE),
    }
    assert not preview.unsupported
    (fold,) = preview.canonized.folded
    assert (fold.batch_norm, fold.into) == ("bn", "conv")
    text = str(preview)
    assert "by convention" in text
    assert "linear -> BN (A.5)" in text


def test_every_op_without_a_rule_is_told():
    model = Gated(lambda x: torch.erfc(x) + torch.expm1(x.erfc())).eval()
    preview = fxlrp.check(model, "epsilon_plus", X)
    assert [plan.op for plan in preview.unsupported] == ["erfc.default", "erfc.default", "expm1.default"]
    for plan in preview.unsupported:
        assert plan.how == UNSUPPORTED
        assert f"register(torch.ops.aten.{plan.op}, default=...)" in plan.why
        assert "test_preview.py" in plan.why
    with pytest.raises(errors.UnsupportedOpError) as caught:
        fxlrp.convert(model, "epsilon_plus")(X)
    assert str(caught.value) in str(preview)


def test_it_says_what_convert_does():
    """The nodes with a rule are those that the twin has a step for, with the same rules."""
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval()
    preview = fxlrp.check(model, "epsilon_plus", X)
    ledger = fxlrp.audit(fxlrp.convert(model, "epsilon_plus"), X)
    told = {plan.node: plan.rule for plan in preview.plans if plan.how != CONSTANT}
    assert {row.node: row.rule for row in ledger.rows if row.node != "x"} == told
    assert {plan.how for plan in preview.plans} >= {COMPOSITE, EXACT}


@pytest.mark.parametrize("training", [False, True])
def test_an_op_that_is_explained_in_another_reading_is_not_constant_too(training):
    """A value that is computed one way and explained another: max pooling, dropout, a folded batch norm."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(900, 5)
    ).train(training)
    plans = fxlrp.check(model, "epsilon_plus", X).plans
    told = {path: [plan.rule for plan in plans if plan.path == path and plan.rule] for path in "0234"}
    assert told == {"0": ["ZPlus"], "2": ["Pass"], "3": ["Gradient"], "4": ["Pass"] if training else []}
    # The statistics of a batch are held constant, and nothing else.
    constant = {(plan.path, plan.op) for plan in plans if plan.how == CONSTANT}
    assert not {path for path, _ in constant} - ({"0", "1"} if training else set())
    assert not {op for _, op in constant if op.startswith(("conv", "max_pool", "native_"))}


def test_a_gate_is_constant_though_what_it_reads_is_explained_in_another_reading():
    class PooledGate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)

        def forward(self, x):
            x = self.pool(self.bn(self.conv(x)))
            return (x * x.mean((2, 3), keepdim=True).sigmoid()).flatten(1)

    plans = fxlrp.check(PooledGate().eval(), "epsilon_plus", X).plans
    assert [(plan.op.split(".")[0], plan.how) for plan in plans] == [
        ("conv2d", COMPOSITE),
        ("max_pooled", GRADIENT),
        ("mean", CONSTANT),
        ("sigmoid", CONSTANT),
        ("mul", CONVENTION),
        ("reshape", EXACT),
    ]
