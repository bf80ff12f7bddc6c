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
        ("linear", "head"): ("Epsilon", COMPOSITE),
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
