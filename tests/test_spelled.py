"""Rules are printed with their parameters, whoever made them, and printing never fails.

The kind of fault: a table that says `Gamma` of every gamma, and so does not tell which was asked for.
"""

from __future__ import annotations

import functools
import inspect
from fractions import Fraction

import pytest
import torch
import zennit.rules as zr
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, Hook, ParamMod, Stabilizer
from zennit.types import Linear

import fxlrp
from fxlrp.rules import BasicRule, HookRule
from fxlrp.testing import trained

LOW = torch.zeros(1, 3, 1, 1)


class Power(BasicHook):
    """A user's rule: its arguments are in the closures of its functions alone."""

    def __init__(self, power, *, scale=2.0, stabilizer=1e-6):
        stable = Stabilizer.ensure(stabilizer)
        super().__init__(
            param_modifiers=[ParamMod(lambda param, name: param.abs() ** power * scale)],
            gradient_mapper=lambda gradient, outputs: gradient / stable(outputs[0]),
        )


class Scaled(Hook):
    """A user's rule: its arguments are attributes."""

    def __init__(self, factor, net=0):
        super().__init__()
        self.factor, self.net = factor, net

    def copy(self):
        return Scaled(self.factor, self.net)


class HalfLost(BasicHook):
    """A user's rule that keeps one of its arguments."""

    def __init__(self, lost, kept):
        super().__init__(input_modifiers=[functools.partial(lambda x, kept: x * kept, kept=kept)])


class Fixed(zr.Gamma):
    def __init__(self, *args, **kwargs):
        super().__init__(gamma=3)


class NotYet(BasicHook):
    """A function of its speaks of something that is never put in."""

    def __init__(self, gamma):
        super().__init__(input_modifiers=[lambda x: later])
        if gamma is None:
            later = 1


class Unreadable(Hook):
    __signature__ = 3

    def copy(self):
        return Unreadable()


RULES = [
    (zr.Epsilon(), "Epsilon(1e-06)"),
    (zr.Epsilon(0.25), "Epsilon(0.25)"),
    (zr.Epsilon(1e-3, zero_params="bias"), "Epsilon(0.001, zero_params='bias')"),
    (zr.Epsilon(Stabilizer(1e-3, clip=True)), "Epsilon(Stabilizer(0.001, clip=True))"),
    (zr.Epsilon(torch.exp), "Epsilon()"),
    (zr.Gamma(), "Gamma(0.25)"),
    (zr.Gamma(0.1, stabilizer=0.01, zero_params=["bias"]), "Gamma(0.1, stabilizer=0.01, zero_params=['bias'])"),
    (zr.Gamma(torch.tensor(0.5)), "Gamma(0.5)"),
    (zr.Gamma(0.1 + 0.2), "Gamma(0.30000000000000004)"),
    (zr.ZPlus(), "ZPlus()"),
    (zr.ZPlus(0.1), "ZPlus(stabilizer=0.1)"),
    (zr.ZPlus(zero_params="bias"), "ZPlus(zero_params='bias')"),
    (zr.AlphaBeta(), "AlphaBeta(2, 1)"),
    (zr.AlphaBeta(1, 0), "AlphaBeta(1, 0)"),
    (zr.ZBox(-3.0, 3.0), "ZBox(-3, 3)"),
    (zr.ZBox(LOW - 1, LOW + 1), "ZBox(tensor[1, 3, 1, 1], tensor[1, 3, 1, 1])"),
    (zr.Norm(), "Norm()"),
    (zr.Norm(1e-3), "Norm(stabilizer=0.001)"),
    (zr.WSquare(), "WSquare()"),
    (zr.Flat(), "Flat()"),
    (zr.Flat(0.1), "Flat(stabilizer=0.1)"),
    (zr.ReLUGuidedBackprop(), "ReLUGuidedBackprop()"),
    (zr.ReLUBetaSmooth(), "ReLUBetaSmooth(10)"),
    (zr.ReLUBetaSmooth(5.5), "ReLUBetaSmooth(5.5)"),
    (BasicHook(), "BasicHook()"),
    (Power(2), "Power(2, scale=2)"),
    (Power(3, scale=0.5, stabilizer=0.1), "Power(3, scale=0.5, stabilizer=0.1)"),
    (Scaled(3), "Scaled(3, 0)"),
    (Scaled("a", [1, (2, None)]), "Scaled('a', [1, [2, None]])"),
    (Scaled(1, nn.ReLU()), "Scaled(factor=1)"),
    (Scaled(1, [nn.ReLU()]), "Scaled(factor=1)"),
    (Scaled(10**400, float("nan")), f"Scaled({10**400}, nan)"),
    (Scaled(Fraction(1, 3), torch.zeros(2, device="meta")), "Scaled(1/3, tensor[2])"),
    (HalfLost(1, 2), "HalfLost(kept=2)"),
    (Fixed(1, b=2), "Fixed()"),
    (NotYet(1), "NotYet()"),
    (Unreadable(), "Unreadable()"),
]


@pytest.mark.parametrize(("hook", "text"), RULES, ids=[text[:50] for _, text in RULES])
def test_a_rule_is_printed_as_it_was_written(hook, text):
    rule = BasicRule if isinstance(hook, BasicHook) else functools.partial(HookRule, module=nn.ReLU())
    assert repr(rule(hook)) == text
    assert repr(rule(hook.copy())) == text


def test_every_rule_of_zennits_shows_what_it_was_given():
    """Of each constructor's every number, a number that it does not have by default."""
    kinds = [kind for _, kind in inspect.getmembers(zr, inspect.isclass) if issubclass(kind, Hook)]
    kinds = [kind for kind in kinds if kind.__module__ == zr.__name__ and kind is not zr.Pass]
    assert len(kinds) >= 9
    for kind in kinds:
        names = [name for name in inspect.signature(kind).parameters if name != "zero_params"]
        given = {name: (3.5, 2.5, 0.125)[i] for i, name in enumerate(names)}
        text = repr(HookRule(kind(**given), nn.ReLU()))
        assert all(f"{value:g}" in text for value in given.values()), text


def test_check_and_the_ledger_print_them_and_the_code_does_not():
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))).eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    composite = LayerMapComposite([(nn.Conv2d, zr.Gamma(0.125)), (Linear, zr.Epsilon(0.5)), (nn.ReLU, zr.Pass())])
    rules = {"Gamma(0.125)", "Pass", "Transpose", "Epsilon(0.5)"}
    assert {plan.rule for plan in fxlrp.check(model, composite, x).plans} == rules
    twin = fxlrp.convert(model, composite)
    assert {row.rule for row in fxlrp.audit(twin, x).rows} == {*rules, "-"}
    assert "gamma" in twin.code
    assert "0.125" not in twin.code
    assert "Gamma(0.125)" in str(twin.graph_module)


def test_a_twin_and_an_isnet_show_their_settings():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    twin, isnet = fxlrp.convert(model, "epsilon_plus", trainable=True), fxlrp.ISNet(model, "dual")
    twin(torch.randn(2, 3))
    assert str(twin).startswith("Twin(\n  composite=EpsilonPlus, trainable=True, captures=1\n")
    assert str(isnet).startswith("ISNet(\n  variant=dual, deep_supervision=False\n")
    assert "(0): Linear(in_features=3, out_features=4" in str(twin)
