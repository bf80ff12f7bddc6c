"""Whatever else than a model, an input, an option, a target or an entry is given, the error says what to give instead.

The kind of fault: a mistake of the user's that comes to light far inside, as an error of torch's or Python's, or never.
"""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import pytest
import torch
import torch.ao.quantization
import torchvision
import zennit.rules as zr
from PIL import Image
from torch import nn

import fxlrp
from fxlrp import errors, ops, rules, vocabulary
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return trained(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    ).eval()


TAKE_MODELS = {
    "convert": lambda model: fxlrp.convert(model, "epsilon_plus"),
    "explain": lambda model: fxlrp.explain(model, X),
    "check": lambda model: fxlrp.check(model, "epsilon_plus", X),
    "canonize": lambda model: fxlrp.canonize(model, X),
    "ISNet": fxlrp.ISNet,
}


@pytest.mark.parametrize("take", TAKE_MODELS.values(), ids=TAKE_MODELS)
def test_what_is_no_model(take):
    cases = [
        (nn.ReLU, "ReLU is a class, and a model is an instance of one"),
        (torchvision.models.resnet18, r"a function: call it, if it makes a model: resnet18\(\.\.\.\)"),
        (net().state_dict(), "an OrderedDict: build the model first"),
        ({"model": net()}, "a dict: build the model first"),
        ("resnet18", "not a str"),
        (None, "not None"),
    ]
    for model, message in cases:
        with pytest.raises(errors.InputError, match=message):
            take(model)


@pytest.mark.parametrize("take", TAKE_MODELS.values(), ids=TAKE_MODELS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript(take):
    for model in (torch.jit.script(net()), torch.jit.trace(net(), X)):
        with pytest.raises(errors.CaptureError, match=r"TorchScript.* Give the nn.Module that it was made from"):
            take(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*torch.ao.quantization")
def test_modules_that_cannot_be_captured_are_named():
    model = net()
    model[1] = torch.jit.script(nn.ReLU())
    with pytest.raises(errors.CaptureError, match=r"module '1' .*It is TorchScript: put the nn.Module"):
        fxlrp.ISNet(model)(X)
    quantized = torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear})
    with pytest.raises(errors.CaptureError, match="'4' is quantized: explain the floating-point model"):
        fxlrp.convert(quantized, "epsilon_plus")(X.float())


TAKE_INPUTS = {
    "twin": fxlrp.convert(net(), "epsilon_plus"),
    "example_inputs": lambda x: fxlrp.convert(net(), "epsilon_plus", example_inputs=x),
    "explain": lambda x: fxlrp.explain(net(), x),
    "check": lambda x: fxlrp.check(net(), "epsilon_plus", x),
    "canonize": lambda x: fxlrp.canonize(net(), x),
    "audit": lambda x: fxlrp.audit(fxlrp.convert(net(), "epsilon_plus"), x),
}


@pytest.mark.parametrize("take", TAKE_INPUTS.values(), ids=TAKE_INPUTS)
def test_what_is_no_input(take):
    image = Image.new("RGB", (6, 6))
    cases = [
        (image, r"an Image: make a tensor \(B, C, H, W\) of the image.*to_tensor\(image\)\[None\]"),
        ([image], "input 0 is an Image: make a tensor"),
        (X.numpy(), "an ndarray: make it a tensor.* torch.from_numpy"),
        ((X, X.numpy()), "input 1 is an ndarray"),
        ([[1.0]], "input 0 is a list: inputs are tensors, several of them in a tuple"),
        ("cat.png", "a str: read the file"),
        ({"x": X}, "a dict: give its tensors in a tuple, in the order of the arguments"),
        (collections.UserDict(x=X), "a UserDict: give its tensors in a tuple"),
        (3, "an int: inputs are tensors"),
        ((each for each in [X]), "a generator: inputs are tensors"),
        ((), "there is no input"),
        (X.to_sparse(), r"torch.sparse_coo.* Give x.to_dense\(\)"),
        (torch.quantize_per_tensor(X.float(), 0.1, 0, torch.quint8), r"torch.quint8.* Give x.dequantize\(\)"),
        ((255 * X).byte(), r"torch.uint8: relevance goes to floating-point inputs only"),
    ]
    for x, message in cases:
        with pytest.raises(errors.InputError, match=message):
            take(x)


def test_an_isnet_takes_one_tensor():
    for x in ([X], Image.new("RGB", (6, 6)), X.numpy()):
        with pytest.raises(errors.InputError, match="takes one tensor of images"):
            fxlrp.ISNet(net())(x)
    with pytest.raises(errors.InputError, match="to_dense"):
        fxlrp.ISNet(net())(X.to_sparse())


def test_several_inputs_where_the_model_takes_one():
    with pytest.raises(errors.CaptureError, match=r"forward takes \(input\).* a batch is one tensor.*torch.stack"):
        fxlrp.convert(net(), "epsilon_plus")([X[0], X[1]])


def test_several_inputs_in_a_list():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, a, b):
            return self.net(a + b)

    model = Two()
    expected = fxlrp.convert(model, "epsilon_plus")((X, X)).relevance
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=[X, X])
    assert all(torch.equal(*pair) for pair in zip(twin([X, X]).relevance, expected, strict=True))


def test_an_audit_is_of_a_twin():
    with pytest.raises(errors.InputError, match=r"a twin, as fxlrp.convert\(model\) makes it, not a Sequential"):
        fxlrp.audit(net(), X)


def test_flags_are_true_or_false():
    for value in (1, 0, None, "yes", torch.tensor(True)):
        for options in ({"trainable": value}, {"threshold_relu": value}):
            with pytest.raises(errors.InputError, match=rf"{next(iter(options))} is True or False, not .*"):
                fxlrp.convert(net(), **options)
            with pytest.raises(errors.InputError, match="is True or False"):
                fxlrp.canonize(net(), X, **options)
        with pytest.raises(errors.InputError, match="threshold_relu is True or False"):
            fxlrp.check(net(), None, X, threshold_relu=value)
        with pytest.raises(errors.InputError, match="flex is True or False"):
            fxlrp.ISNet(net(), flex=value)


def test_options_that_are_none():
    with pytest.raises(errors.InputError, match=r"explain has no option 'trainabel'; did you mean 'trainable'\?"):
        fxlrp.explain(net(), X, trainabel=True)
    with pytest.raises(errors.InputError, match=r"explain has no option 'xyz'\. It has: example_inputs, trainable"):
        fxlrp.explain(net(), X, xyz=True)
    for make in (fxlrp.convert, fxlrp.ISNet):
        with pytest.raises(errors.InputError, match="'error' or 'gradient', not 'gradiant'; did you mean 'gradient'"):
            make(net(), unmatched="gradiant")
        with pytest.raises(errors.InputError, match="'error' or 'gradient', not None"):
            make(net(), unmatched=None)


def test_module_paths():
    model = net()
    for make in (
        lambda paths: fxlrp.convert(model, record=paths),
        lambda paths: fxlrp.ISNet(model, deep_supervision=paths),
    ):
        for paths, message in [
            ("0", r"write \('0',\)"),
            (3, "not an int"),
            (None, "not None"),
            (model[0], "not a Conv2d"),
            (["0", model[0]], "there is a Conv2d in it: give the name that the module has"),
            ([0], "there is an int in it"),
        ]:
            with pytest.raises(errors.ModulePathError, match=message):
                make(paths)
    assert set(fxlrp.convert(model, "epsilon_plus", record={"4": 1}.keys())(X).recorded) == {"4"}


CLASSES = {
    "a list": [1, 4],
    "a tuple": (1, 4),
    "a range": range(1, 5, 3),
    "of numpy's": [np.int64(1), np.uint8(4)],
    "of tensors": [torch.tensor(1), 4],
    "an array": np.array([1, 4]),
    "of bytes": np.array([1, 4], dtype=np.uint8),
}


@pytest.mark.parametrize("target", CLASSES.values(), ids=CLASSES)
def test_classes_in_another_form_are_those_of_a_tensor(target):
    twin = fxlrp.convert(net(), "epsilon_plus")
    assert torch.equal(twin(X, target).relevance, twin(X, torch.tensor([1, 4])).relevance)
    assert fxlrp.audit(twin, X, target).seed == fxlrp.audit(twin, X, torch.tensor([1, 4])).seed
    assert torch.equal(fxlrp.explain(net(), X, target, "epsilon_plus").relevance, twin(X, target).relevance)


def test_one_class_and_seeds_of_numpys():
    twin = fxlrp.convert(net(), "epsilon_plus")
    assert torch.equal(twin(X, np.int64(3)).relevance, twin(X, 3).relevance)
    for seed in (np.eye(5)[:2], np.ones((3, 2, 5), dtype=np.float32)):
        assert torch.equal(twin(X, seed).relevance, twin(X, torch.from_numpy(seed).double()).relevance)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([1], r"each of the 2 samples, shape \(2,\), not \(1,\)"),
        ([1, 2, 3], r"shape \(2,\), not \(3,\)"),
        ([], r"shape \(2,\), not \(0,\)"),
        ([1, 5], "target 5 is out of range"),
        ([1, -1], "target -1 is out of range"),
        ([1.0, 2.0], r"an int for each sample, and not 1.0 \(float\) \(at 0\)"),
        ([1, np.float32(2)], r"float32\) \(at 1\)"),
        ([[1], [2]], r"not \[1\] \(list\)"),
        ([True, 1], r"not True \(bool\)"),
        ([np.bool_(True), 1], r"\(at 0\)"),
        ([torch.tensor(True), 1], "a torch.bool tensor"),
        ([torch.tensor(1.0), 1], "a torch.float32 tensor"),
        (["cat", "dog"], r"not 'cat' \(str\)"),
        ([None, 1], r"not None"),
        (np.array([1, 2, 3]), r"shape \(2,\), not \(3,\)"),
        (np.array([True, False]), r"cannot be array.*ndarray"),
        (np.zeros((2, 4)), r"\(2, 4\) does not fit"),
        ({1, 2}, r"cannot be \{1, 2\} \(set\)"),
    ],
)
def test_targets_of_other_forms(target, message):
    twin = fxlrp.convert(net(), "epsilon_plus")
    with pytest.raises(errors.TargetError, match=message) as caught:
        twin(X, target)
    with pytest.raises(errors.TargetError) as audited:
        fxlrp.audit(twin, X, target)
    assert str(audited.value) == str(caught.value)


class OneNumber(nn.Module):
    """A network with one number for each sample."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x)[:, 2]


def test_one_number_for_each_sample():
    of_class = fxlrp.convert(net(), "epsilon_plus")
    twin = fxlrp.convert(OneNumber(), "epsilon_plus")
    expected = of_class(X, 2).relevance
    output = net()(X)[:, 2].detach()
    assert relative(twin(X).relevance, expected) < 1e-12
    assert relative(twin(X, output).relevance, expected) < 1e-12
    assert relative(twin(X, lambda output: output).relevance, expected) < 1e-12
    seeds = torch.stack([output, 2 * output, torch.zeros_like(output)])
    found = twin(X, seeds).relevance
    assert relative(found, torch.stack([expected, 2 * expected, 0 * expected])) < 1e-12
    for target in (0, [0, 0], torch.tensor([0, 0])):
        with pytest.raises(errors.TargetError, match=r"one number per sample, which target=None explains"):
            twin(X, target)
    with pytest.raises(errors.TargetError, match=r"\(3,\) does not fit the output's shape \(2,\)"):
        twin(X, torch.ones(3))
    with pytest.raises(errors.VariantError, match=r"shape \(2,\): an ISNet needs logits"):
        fxlrp.ISNet(OneNumber())(X)


Named = collections.namedtuple("Named", ["main_output", "aux"])


@dataclasses.dataclass
class Fields:
    main_output: torch.Tensor
    aux: torch.Tensor | None = None


torch.export.register_dataclass(Fields, serialized_type_name="test_given.Fields")


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = net(), form

    def forward(self, x):
        main = self.net(x)
        return self.form(main, 2 * main)


FORMS = {
    "a named tuple": Named,
    "a dataclass": Fields,
    "a dict": lambda main, aux: {"main_output": main, "aux": aux},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_outputs_by_name(form):
    expected = fxlrp.convert(net(), "epsilon_plus")(X, 1)
    model = Several(form)
    found = fxlrp.convert(model, "epsilon_plus", output="main_output")(X, 1)
    assert relative(found.relevance, expected.relevance) < 1e-12
    assert relative(fxlrp.convert(model, "epsilon_plus", output="aux")(X, 1).output, 2 * expected.output) < 1e-12
    assert torch.equal(fxlrp.canonize(model, X, output="main_output")(X), found.output)
    for name in ("main", "keys", "_fields", "count"):
        with pytest.raises(errors.CaptureError, match=rf"has no '{name}'.* \['main_output', 'aux'\]"):
            fxlrp.convert(model, "epsilon_plus", output=name)(X)


def test_one_tensor_among_fields():
    expected = fxlrp.convert(net(), "epsilon_plus")(X, 1).output
    for form in (Named, Fields, lambda main, aux: {"x": main, "none": None}):
        model = Several(form if not isinstance(form, type) else lambda main, aux, form=form: form(main, None))
        assert torch.equal(fxlrp.convert(model, "epsilon_plus")(X, 1).output, expected)
    with pytest.raises(errors.CaptureError, match="output='aux' gives None, and not a tensor"):
        fxlrp.convert(Several(lambda main, aux: Named(main, None)), output="aux")(X)
    with pytest.raises(errors.CaptureError, match=r"fields \['main_output', 'aux'\], and none is named 'logits'"):
        fxlrp.convert(Several(Fields))(X)


def test_outputs_that_are_none():
    nested = Several(lambda main, aux: {"a": (main, aux)})
    with pytest.raises(errors.CaptureError, match=r"output='a' gives a tuple of 2.*lambda found: found\['a'\]\[0\]"):
        fxlrp.convert(nested, output="a")(X)
    assert fxlrp.convert(nested, "epsilon_plus", output=lambda found: found["a"][0])(X, 1).output.shape == (2, 5)
    with pytest.raises(errors.CaptureError, match=r"fails with KeyError: 'b'.* keys \['a'\]"):
        fxlrp.convert(nested, output=lambda found: found["b"])(X)
    with pytest.raises(errors.CaptureError, match=r"output=a function gives a dict"):
        fxlrp.convert(nested, output=lambda found: found)(X)
    with pytest.raises(errors.CaptureError, match=r"a key, an index, a function or None, not 1.5 \(float\)"):
        fxlrp.convert(nested, output=1.5)(X)
    with pytest.raises(errors.CaptureError, match="returns a tuple of 2, in which there is no tensor to explain"):
        fxlrp.convert(Several(lambda main, aux: (3, None)))(X)
    with pytest.raises(errors.CaptureError, match="has no 'logits': it is a tensor"):
        fxlrp.convert(net(), output="logits")(X)


class Share(rules.Rule):
    """A rule of one's own."""


def share(node, slots):
    return Share()


@torch.library.custom_op("fxlrp_test_given::clean", mutates_args=())
def clean(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.ops.aten.relu, "Name it: torch.ops.aten.relu.default, torch.ops.aten.relu.out"),
        (torch.ops.aten.add, "torch.ops.aten.add.Tensor, torch.ops.aten.add.Scalar"),
        ("aten.relu.default", "such as torch.ops.aten.relu.default"),
        (nn.ReLU, "is a module, and an entry speaks of an op.* LayerMapComposite"),
        (nn.ReLU(), "is a module, and an entry speaks of an op"),
        (clean, "torch.ops.fxlrp_test_given.clean.default"),
        (torch.relu, "is nothing that a captured graph calls"),
        (nn.functional.relu, "is nothing that a captured graph calls"),
        (torch.Tensor.relu, "is nothing that a captured graph calls"),
        (int, "is nothing that a captured graph calls"),
        (None, "is nothing that a captured graph calls"),
    ],
)
def test_what_is_no_target_of_an_entry(target, message):
    before = dict(ops._OPS)
    with pytest.raises(errors.RuleError, match=message):
        vocabulary.register(torch.ops.aten.erfc.default, target, default=share)
    assert before == ops._OPS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"returns a rule, not None: write it as default=lambda node, slots: fxlrp.rules.Pass\(\)"),
        ({"default": Share()}, r"not a rule itself: write it as default=lambda node, slots: Share\(\)"),
        ({"default": Share}, r"not a rule itself: write it as default=lambda node, slots: Share\(\)"),
        ({"default": zr.Epsilon()}, r"not a zennit rule: .* fxlrp.rules.BasicRule\(Epsilon\(\.\.\.\)\)"),
        ({"default": zr.Epsilon}, r"not a zennit rule: .* fxlrp.rules.BasicRule\(Epsilon\(\.\.\.\)\)"),
        ({"default": "pass"}, "not 'pass'"),
        ({"default": lambda node: Share()}, "cannot be called so"),
        ({"default": share, "input": (0, 1)}, r"no field 'input'; did you mean 'inputs'\?"),
        ({"default": share, "xyz": 1}, "no field 'xyz'. It has: default, inputs"),
        ({"default": share, "inputs": 0}, r"such as \(0, 1\), not 0"),
    ],
)
def test_what_is_no_entry(fields, message):
    with pytest.raises(errors.RuleError, match=message):
        vocabulary.register(torch.ops.aten.erfc.default, **fields)
    assert vocabulary.lookup(torch.ops.aten.erfc.default) is None


def test_no_error_is_anothers():
    """What the errors say to write can be written."""
    with pytest.raises(errors.RuleError) as caught:
        vocabulary.register(torch.ops.aten.relu, default=share)
    for name in re.findall(r"torch\.ops\.(\w+\.\w+\.\w+)", str(caught.value)):
        packet, overload = name.split(".")[1:]
        assert isinstance(getattr(getattr(torch.ops.aten, packet), overload), torch._ops.OpOverload)
