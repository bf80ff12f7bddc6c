"""A composite is asked as zennit asks it, and one that is right is not refused.

The kind of fault: a composite judged by something else than what zennit would show it (a bare module in a container's
place, no containers at all), and an error where only a warning is due.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import zennit.rules as zr
from torch import nn
from torch.nn.utils import parametrizations
from zennit.composites import LayerMapComposite, NameMapComposite
from zennit.core import Composite
from zennit.types import Linear

import fxlrp
from fxlrp import errors
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class NormAct(nn.BatchNorm2d):
    """A batch norm that contains its activation, as timm's."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Block(nn.Module):
    def __init__(self, into, out):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3), NormAct(out)

    def forward(self, x):
        return self.norm(self.conv(x))


def net():
    torch.manual_seed(0)
    stem = nn.Sequential(Block(3, 4), Block(4, 5))
    return trained(nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))).eval()


def by_types(of_linear, of_pool=None):
    return LayerMapComposite([(Linear, of_linear), (nn.AdaptiveAvgPool2d, of_pool or of_linear), (nn.ReLU, zr.Pass())])


def relevance(composite, model=None):
    return fxlrp.convert(net() if model is None else model, composite)(X, 1).relevance


def silent(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function()


LEAVES = {
    "no children": lambda m: not list(m.children()),
    "no next child": lambda m: next(m.children(), None) is None,
    "one module": lambda m: len(list(m.modules())) == 1,
    "no _modules": lambda m: not m._modules,
}


@pytest.mark.parametrize("is_leaf", LEAVES.values(), ids=LEAVES)
def test_a_map_that_tells_leaves_from_containers(is_leaf):
    def rule(context, name, module):
        if not is_leaf(module):
            return None
        return zr.Pass() if isinstance(module, nn.ReLU) else zr.Epsilon(0.1)

    found = silent(lambda: relevance(Composite(module_map=rule)))
    assert torch.equal(found, relevance(by_types(zr.Epsilon(0.1))))


def test_types_that_contain_modules_are_layers_if_they_are_one_op():
    """A batch norm with an activation in it, whether folded or not; a convolution with a parametrized weight."""
    composite = LayerMapComposite([(nn.BatchNorm2d, zr.Pass()), *by_types(zr.ZPlus()).layer_map])
    assert torch.equal(silent(lambda: relevance(composite)), relevance(by_types(zr.ZPlus())))
    model = net()
    expected = relevance(by_types(zr.Gamma(0.5)), model)
    parametrizations.weight_norm(model[0][0].conv)
    found = silent(lambda: relevance(by_types(zr.Gamma(0.5)), model))
    assert relative(found, expected) < 1e-9


def test_the_context_sees_containers_in_front_of_their_parts():
    """A composite that counts blocks in its context gives each block a rule of its own, as by names."""
    gammas = [0.1, 2.0]

    def rule(context, name, module):
        if name == "":
            context["block"] = -1
        if isinstance(module, Block):
            context["block"] += 1
        if isinstance(module, nn.Conv2d):
            return zr.Gamma(gammas[context["block"]])
        return zr.Epsilon() if isinstance(module, nn.Linear) else None

    named = [([f"0.{i}.conv"], zr.Gamma(gamma)) for i, gamma in enumerate(gammas)]
    expected = relevance(NameMapComposite([*named, (["3"], zr.Epsilon())]))
    assert torch.equal(silent(lambda: relevance(Composite(module_map=rule))), expected)
    same = relevance(NameMapComposite([(["0.0.conv", "0.1.conv"], zr.Gamma(0.1)), (["3"], zr.Epsilon())]))
    assert relative(same, expected) > 1e-3


def test_the_context_sees_modules_that_only_move_values():
    def rule(context, name, module):
        context["head"] = context.get("head", False) or isinstance(module, nn.Flatten)
        return (zr.Epsilon(0.5) if context["head"] else zr.ZPlus()) if isinstance(module, Linear) else None

    expected = relevance(LayerMapComposite([(nn.Linear, zr.Epsilon(0.5)), (nn.Conv2d, zr.ZPlus())]))
    assert torch.equal(silent(lambda: relevance(Composite(module_map=rule))), expected)


def test_the_first_layer_is_asked_once():
    """One that contains its parametrization is offered as a container, and as a layer: by one question."""
    asked = []

    def rule(context, name, module):
        asked.append(name)
        return zr.Epsilon() if isinstance(module, Linear) else None

    model = net()
    parametrizations.weight_norm(model[0][0].conv)
    relevance(Composite(module_map=rule), model)
    assert asked.count("0.0.conv") == 1
    assert asked.index("") < asked.index("0") < asked.index("0.0") < asked.index("0.0.conv") < asked.index("0.1")


def test_a_map_of_everything_is_one_of_all_parts():
    everything = Composite(module_map=lambda context, name, module: zr.Epsilon(0.1))
    with pytest.warns(UserWarning, match=r"rules to the model itself .*, '0' .* those of the parts hold") as caught:
        found = relevance(everything)
    assert {warning.filename for warning in caught} == {__file__}
    parts = Composite(module_map=lambda context, name, module: None if list(module.children()) else zr.Epsilon(0.1))
    assert torch.equal(found, relevance(parts))


def test_a_map_by_the_end_of_a_name():
    def ends_with(end):
        return Composite(module_map=lambda context, name, module: zr.ZPlus() if name.endswith(end) else None)

    expected = relevance(LayerMapComposite([(nn.Conv2d, zr.ZPlus())]))
    assert torch.equal(silent(lambda: relevance(ends_with("conv"))), expected)
    with pytest.raises(errors.CompositeError, match=r"to '0' \(Sequential\), which contains other modules"):
        relevance(ends_with("0"))


def test_a_rule_for_a_container_by_its_type():
    with pytest.raises(errors.CompositeError, match=r"to '0.0' \(Block\), which contains other modules"):
        relevance(LayerMapComposite([(Block, zr.Epsilon())]))
    with pytest.raises(errors.CompositeError, match=r"the model itself \(Sequential\), which contains other"):
        relevance(LayerMapComposite([(nn.Sequential, zr.Epsilon())]))


def test_a_rule_for_a_container_by_its_name_though_its_parts_have_some():
    with pytest.raises(errors.CompositeError, match=r"to '0.1' \(Block\), which contains other modules"):
        relevance(NameMapComposite([(["0.1", "0.1.conv"], zr.Epsilon())]))


ONLY_DEFAULTS = {
    "max pooling": nn.MaxPool2d(2),
    "softmax": nn.Softmax(1),
    "flatten": nn.Flatten(),
    "nothing": nn.Identity(),
    "a layer norm": nn.LayerNorm(8),
    "several": nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Softmax(1)),
}


@pytest.mark.parametrize("model", ONLY_DEFAULTS.values(), ids=ONLY_DEFAULTS)
def test_a_network_of_defaults_alone_gets_a_warning_at_the_users_line(model):
    model = model.double().eval()
    message = "EpsilonPlus.* has a rule for none of the model's ops: each gets its default"
    for call in (
        lambda: fxlrp.convert(model, "epsilon_plus")(X),
        lambda: fxlrp.explain(model, X),
        lambda: fxlrp.check(model, "epsilon_plus", X),
        lambda: fxlrp.convert(model, "epsilon_plus", example_inputs=X),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_what_a_network_of_defaults_alone_explains():
    """Max pooling: relevance goes to the winners."""
    pool = nn.MaxPool2d(2)
    with pytest.warns(UserWarning, match="none of the model's ops"):
        out = fxlrp.convert(pool, "epsilon_plus")(X, lambda output: output)
    value, winners = nn.functional.max_pool2d(X, 2, return_indices=True)
    expected = torch.zeros_like(X).flatten(2).scatter(2, winners.flatten(2), value.flatten(2)).reshape(X.shape)
    assert torch.equal(out.relevance, expected)


@pytest.mark.parametrize(
    "composite",
    [
        LayerMapComposite([(nn.Linear, zr.Epsilon())]),
        NameMapComposite([]),
        Composite(),
        "guided_backprop",
        Composite(module_map=lambda context, name, module: None),
    ],
)
def test_a_composite_that_leaves_layers_and_matches_nothing_is_an_error(composite):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.MaxPool2d(2)).double().eval()
    with pytest.raises(errors.CompositeError, match=r"matches none of the model's ops, such as aten.conv2d.* '0'"):
        relevance(composite, model)
