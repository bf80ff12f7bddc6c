"""Every classifier of torchvision keeps f and leaks nothing: one small model of each family, and all of them (slow)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchvision import models as tv
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

import fxlrp
from fxlrp.testing import assert_conserves, trained
from fxlrp.testing.assertions import relative

CLASSES = 5
LARGE = 150e6
"""Parameters, from which on a snapshot and its modified weights do not fit beside the model."""


def efficientnet():
    settings = [MBConvConfig(expand, 3, stride, 8, 8, 1, 1.0, 1.0) for expand, stride in ((1, 1), (4, 2))]
    return tv.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=16)


def mobilenet_v3():
    settings = [
        InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0),
    ]
    return tv.MobileNetV3(settings, 16, num_classes=CLASSES)


def regnet():
    return tv.RegNet(BlockParams.from_init_params(3, 8, 8.0, 2.0, 4, se_ratio=0.25), num_classes=CLASSES)


def vgg():
    layers = tv.vgg.make_layers([4, "M", 8, "M", 8], batch_norm=True)
    model = tv.VGG(layers, num_classes=CLASSES)
    model.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    model.classifier = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, CLASSES))
    return model


def alexnet():
    model = tv.alexnet(num_classes=CLASSES)
    model.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    model.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(256, CLASSES))
    return model


FAMILIES = {
    "AlexNet": (alexnet, 64),
    "ConvNeXt": (lambda: tv.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=CLASSES), 32),
    "DenseNet": (lambda: tv.DenseNet(4, (2, 2), 8, num_classes=CLASSES), 32),
    "EfficientNet": (efficientnet, 32),
    "GoogLeNet": (partial(tv.googlenet, num_classes=CLASSES, init_weights=False, aux_logits=False), 32),
    "Inception3": (partial(tv.inception_v3, num_classes=CLASSES, init_weights=False, aux_logits=False), 75),
    "MaxVit": (
        lambda: tv.MaxVit((56, 56), 8, 7, [8, 16], [1, 1], 8, 0.0, num_classes=CLASSES),
        56,
    ),
    "MNASNet": (lambda: tv.MNASNet(0.1, num_classes=CLASSES), 32),
    "MobileNetV2": (lambda: tv.MobileNetV2(CLASSES, 0.1, [[1, 8, 1, 1], [6, 8, 2, 2]]), 32),
    "MobileNetV3": (mobilenet_v3, 32),
    "RegNet": (regnet, 32),
    "ResNet": (lambda: tv.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES), 32),
    "ResNeXt": (lambda: tv.ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, groups=4, width_per_group=4), 32),
    "ShuffleNetV2": (lambda: tv.ShuffleNetV2([2, 2, 2], [4, 8, 16, 32, 64], num_classes=CLASSES), 32),
    "SqueezeNet": (partial(tv.squeezenet1_1, num_classes=CLASSES), 32),
    "SwinTransformer": (
        lambda: tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=CLASSES),
        32,
    ),
    "SwinTransformerV2": (
        lambda: tv.SwinTransformer(
            [4, 4],
            8,
            [1, 2],
            [2, 2],
            [2, 2],
            num_classes=CLASSES,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        32,
    ),
    "VGG": (vgg, 32),
    "VisionTransformer": (lambda: tv.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=CLASSES), 16),
}


def check(model, size, *, trainable=False):
    """f is kept and every unit of relevance accounted for, in float64."""
    model = trained(model).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    transformer = any(isinstance(m, torch.nn.MultiheadAttention) for m in model.modules()) or "win" in str(type(model))
    assert_conserves(twin, x, unconserved=None if transformer or isinstance(model, tv.MaxVit) else 1e-9)
    with torch.no_grad():
        assert relative(twin(x).output, expected) < 1e-9


LONG = ("GoogLeNet", "Inception3", "MaxVit", "SwinTransformer", "SwinTransformerV2")
"""Families whose smallest members take ten seconds and more."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in FAMILIES]
)
def test_of_each_family(name):
    factory, size = FAMILIES[name]
    torch.manual_seed(0)
    check(factory(), size)


SIZES = {"inception_v3": 75, "maxvit_t": 224}


@pytest.mark.slow
@pytest.mark.parametrize("name", tv.list_models(module=tv))
def test_of_torchvision(name):
    torch.manual_seed(0)
    size, options = SIZES.get(name, 64), {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    elif name.startswith("vit"):
        size = 2 * int(name.split("_")[-1])
        options = {"image_size": size}
    weights: Any = tv.get_model_weights(name)
    large = weights.DEFAULT.meta["num_params"] > LARGE
    check(tv.get_model(name, num_classes=CLASSES, **options), size, trainable=large)
