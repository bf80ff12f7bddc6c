"""Relevance is zennit's, where zennit is right (float64, 1e-6 and better)."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torchvision
import zennit.rules as zr
from hypothesis import HealthCheck, Phase, given, reject, settings
from reference import composite_of, seed_of
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import (
    COMPOSITES,
    LayerMapComposite,
    MixedComposite,
    NameLayerMapComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.core import BasicHook, Hook, ParamMod, Stabilizer
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

import fxlrp
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative, zennit_relevance
from fxlrp.testing.models import for_zennit

MODELS = {
    "alexnet": (None, 64),
    "vgg11_bn": (VGGCanonizer, 32),
    "resnet18": (ResNetCanonizer, 32),
    "resnet50": (ResNetCanonizer, 32),
}


def model_of(name):
    torch.manual_seed(0)
    options = {"dropout": 0.5} if name.startswith(("alexnet", "vgg")) else {}
    return trained(torchvision.models.get_model(name, num_classes=5, **options)).eval()


def small(name):
    """The wide fully connected layers cut down: they prove nothing more, and take most of the time."""
    model = model_of(name)
    if name.startswith(("alexnet", "vgg")):
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        width = 256 if name == "alexnet" else 512
        model.classifier[1 if name == "alexnet" else 0] = nn.Linear(width, 64)
        model.classifier[4 if name == "alexnet" else 3] = nn.Linear(64, 32)
        model.classifier[6] = nn.Linear(32, 5)
    return trained(model)


def _is_wide(model, composite, zero_params):
    """The default run takes ResNet-18 under all, AlexNet under one form of each, and the larger under one composite."""
    if model in ("resnet50", "vgg11_bn"):
        return composite != "epsilon_plus_flat" or zero_params is not None
    return model == "alexnet" and zero_params is not None


CASES = [
    pytest.param(model, name, zero, marks=pytest.mark.slow if _is_wide(model, name, zero) else [])
    for model in MODELS
    for name in COMPOSITES
    for zero in (None, "bias")
    if zero is None or name not in ("deconvnet", "guided_backprop", "beta_smooth")
]


@pytest.fixture(scope="module")
def built():
    return {}


@pytest.mark.parametrize(("name", "composite", "zero_params"), CASES)
def test_torchvision(built, name, composite, zero_params):
    canonizer, size = MODELS[name]
    if name not in built:
        built[name] = small(name)
    model = built[name]
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = model(x)
    out = fxlrp.convert(model, composite_of(composite, zero_params))(x, 3)
    assert relative(out.output, expected) < 1e-9
    theirs = composite_of(composite, zero_params, canonizers=[canonizer()] if canonizer else None)
    assert relative(out.relevance, zennit_relevance(for_zennit(model, x), theirs, x, seed_of(expected, 3))) < 1e-6


def test_zennits_canonizers_may_be_there():
    """Canonizers whose work fxlrp does itself are skipped, and the model is left alone."""
    model = small("resnet18")
    x = torch.randn(1, 3, 32, 32).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = fxlrp.convert(model, composite_of("epsilon_plus"))(x, 3)
    canonized = fxlrp.convert(model, composite_of("epsilon_plus", canonizers=[ResNetCanonizer()]))(x, 3)
    assert torch.equal(plain.relevance, canonized.relevance)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Random networks of modules, under random rules.

STABILIZERS = st.sampled_from([1e-6, 0.1, Stabilizer(0.05, clip=True), Stabilizer(0.1, norm_scale=True)])
ZERO = st.sampled_from([None, "bias", ["bias"], ["weight"]])


class Halved(BasicHook):
    """A user's rule: every part of a `BasicHook` is its own, and one parameter is required by name."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: 0.5 * x, lambda x: x.clamp(-1, 1)],
            param_modifiers=[ParamMod(lambda p, name: 2 * p, param_keys=["weight"]), lambda p, name: p.abs()],
            output_modifiers=[lambda y: y, torch.tanh],
            gradient_mapper=lambda r, outputs: [r / (1 + output.abs()) for output in outputs],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] - 0.3 * gradients[1],
        )


class Reversed(Hook):
    """A user's rule that overrides `backward`, and uses all that it is given."""

    def forward(self, module, input, *output):
        self.stored_tensors["input"] = input

    def backward(self, module, grad_input, grad_output):
        (x, *_) = self.stored_tensors["input"]
        return (grad_input[0] * x.tanh() + module.weight.sum(),)


class Keeping(Hook):
    """A user's rule whose `backward` returns None, which leaves the gradient."""

    def backward(self, module, grad_input, grad_output):
        return None


def rules():
    e = STABILIZERS
    return st.one_of(
        st.builds(zr.Epsilon, e, zero_params=ZERO),
        st.builds(zr.Gamma, st.floats(0.05, 1), e, zero_params=ZERO),
        st.builds(zr.ZPlus, e, zero_params=ZERO),
        st.builds(zr.AlphaBeta, st.just(2.0), st.just(1.0), e, zero_params=ZERO),
        st.builds(zr.ZBox, st.just(-2.0), st.just(2.5), e, zero_params=ZERO),
        st.builds(zr.WSquare, e, zero_params=ZERO),
        st.builds(zr.Flat, e),
        st.builds(zr.Norm, e),
        st.builds(Halved),
        st.builds(Reversed),
        st.builds(Keeping),
    )


@st.composite
def networks(draw):
    """Convolutions, batch norms, activations and pools in a row, with a stride, groups, odd paddings and dilations."""
    layers, channels = [], 2
    for index in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 2]))
        out = draw(st.sampled_from([2, 4]))
        padding = draw(st.integers(0, 2))
        dilation = draw(st.sampled_from([1, 2])) if padding else 1
        kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d]))
        if kind is nn.ConvTranspose2d:
            layers.append(nn.ConvTranspose2d(channels, out, 3, stride=draw(st.integers(1, 2)), padding=1))
        else:
            layers.append(
                nn.Conv2d(
                    channels,
                    out,
                    draw(st.sampled_from([1, 3, (3, 1)])),
                    stride=draw(st.integers(1, 2)) if index else 1,
                    padding=padding,
                    dilation=dilation,
                    groups=groups,
                    bias=draw(st.booleans()),
                )
            )
        channels = out
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels))
        layers.append(
            draw(st.sampled_from([nn.ReLU(), nn.ReLU(), nn.SiLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.Sigmoid()]))
        )
        layers.append(draw(st.sampled_from([nn.Identity(), nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1, padding=1)])))
    layers.append(
        draw(st.sampled_from([nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d((1, 1)), nn.AdaptiveAvgPool2d((2, 1))]))
    )
    features = channels * (2 if layers[-1].output_size == (2, 1) else 1)
    layers += [nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


@st.composite
def composites(draw):
    layer_map = [
        (
            Activation,
            draw(st.sampled_from([zr.Pass(), zr.ReLUBetaSmooth(5.0), zr.ReLUGuidedBackprop(), zr.ReLUDeconvNet()])),
        ),
        (AvgPool, draw(st.sampled_from([zr.Norm(), zr.Epsilon(0.1)]))),
        (BatchNorm, zr.Pass()),
        (Convolution, draw(rules())),
        (nn.Linear, draw(rules())),
    ]
    chosen = [entry for entry in layer_map if entry[0] is Convolution or draw(st.integers(0, 4))]
    return draw(
        st.sampled_from(
            [
                lambda **o: LayerMapComposite(chosen, **o),
                lambda **o: SpecialFirstLayerMapComposite(chosen, [(Linear, draw_first)], **o),
                lambda **o: NameLayerMapComposite([(["0"], draw_first)], chosen, **o),
                lambda **o: MixedComposite([NameMapComposite([(("0",), draw_first)]), LayerMapComposite(chosen)], **o),
            ]
        )
    )


draw_first = zr.ZPlus(0.01)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)
@given(networks(), composites(), st.integers(0, 1000))
def test_random_networks_of_modules(model, composite, seed):
    torch.manual_seed(seed)
    model = trained(model, seed).eval()
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64)
    try:
        expected = model(x)
    except RuntimeError:  # What is drawn may make its input smaller than a kernel.
        reject()
    out = fxlrp.convert(model, composite())(x, 1)
    assert relative(out.output, expected) < 1e-9
    # zennit 0.5.1 replaces a merged layer's bias of None by one of a single value, zeroed or not by `zero_params`.
    theirs = composite(canonizers=[SequentialMergeBatchNorm()])
    reference = zennit_relevance(for_zennit(model, x), theirs, x, seed_of(expected, 1))
    if reference.abs().max() > 1e-12:
        assert relative(out.relevance, reference) < 1e-6


class Same(nn.Conv2d):
    """A layer that pads its own input, as timm's `Conv2dSame` does."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 2)), self.weight, self.bias, self.stride)


@pytest.mark.parametrize(
    "rule",
    [zr.Flat(), zr.WSquare(), zr.ZBox(-3.0, 3.0), zr.ZPlus(), zr.Gamma(0.3)],
    ids=lambda rule: type(rule).__name__,
)
def test_a_layer_that_pads_its_input(rule):
    """A rule that does not look at the input gives nothing to the padding: relevance is zennit's, and all of it."""
    torch.manual_seed(0)
    layers = [
        Same(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ]
    model = trained(nn.Sequential(*layers)).eval()
    layer_map = [(Activation, zr.Pass()), (BatchNorm, zr.Pass()), (AvgPool, zr.Norm()), (Linear, zr.Epsilon())]
    options = {"layer_map": layer_map, "first_map": [(Convolution, rule)]}
    x = torch.randn(2, 3, 6, 6).double()
    expected = model(x)
    theirs = SpecialFirstLayerMapComposite(**options, canonizers=[SequentialMergeBatchNorm()])
    out = fxlrp.convert(model, SpecialFirstLayerMapComposite(**options), record=("3",))(x, 1)
    assert relative(out.output, expected) < 1e-9
    reference = zennit_relevance(for_zennit(model, x), theirs, x, seed_of(expected, 1))
    assert relative(out.relevance, reference) < 1e-6
    if isinstance(rule, zr.Flat):
        assert relative(out.relevance.sum(), out.recorded["3"].sum()) < 1e-4


def test_sum_module():
    """A model that uses zennit's own `Sum` is explained as zennit explains it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.sum = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), Sum()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(self.sum(torch.stack([self.a(x), self.b(x)], -1)).mean((2, 3)))

    model = trained(Block())
    composite = LayerMapComposite([(Sum, zr.Norm()), (Linear, zr.ZPlus())])
    x = torch.randn(2, 2, 5, 5).double()
    reference = zennit_relevance(for_zennit(model, x), composite, x, seed_of(model(x), 1))
    assert relative(fxlrp.convert(model, composite)(x, 1).relevance, reference) < 1e-9
