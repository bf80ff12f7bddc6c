"""What is no classifier of images: signals, volumes, tables, and heads that give a map."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import fxlrp
from fxlrp.testing import assert_conserves, trained
from fxlrp.testing.assertions import relative


def signals():
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.BatchNorm1d(6),
        nn.Conv1d(6, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ), (2, 2, 24)


def volumes():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ), (2, 1, 8, 6, 8)


def tables():
    layers = [nn.BatchNorm1d(7), nn.Linear(7, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)]
    return nn.Sequential(*layers), (5, 7)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("make", [signals, volumes, tables])
def test_other_inputs(make, trainable):
    torch.manual_seed(0)
    model, shape = make()
    trained(model).eval()
    x = torch.randn(shape, dtype=torch.float64)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    out = twin(x, 1)
    assert relative(out.output, model(x)) < 1e-9
    assert out.relevance.shape == x.shape
    assert not any(kept.batch_norm for kept in fxlrp.canonize(model, x).report.kept)
    assert_conserves(twin, x, 1)


def test_a_region_of_a_map():
    """A convolution explained at one place is the same layer explained on the patch that this place sees."""
    torch.manual_seed(0)
    head = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))).eval()
    x = torch.randn(2, 3, 10, 9, dtype=torch.float64)
    region = torch.zeros(10 - 2, 9 - 2, dtype=torch.float64)
    region[4, 2] = 1
    seed = lambda z: z * region * nn.functional.one_hot(torch.tensor(3), 4)[:, None, None]
    found = fxlrp.convert(head, "epsilon_plus")(x, seed).relevance
    patch = fxlrp.convert(head, "epsilon_plus")(x[:, :, 4:7, 2:5], 3).relevance
    assert relative(found[:, :, 4:7, 2:5], patch) < 1e-9
    found[:, :, 4:7, 2:5] = 0
    assert not found.any()


def test_a_segmentation_network():
    torch.manual_seed(0)
    model = trained(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)).eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    region = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    region[:, 2, 16:32, 16:32] = 1
    twin = fxlrp.convert(model, "epsilon_plus", output="out")
    seed = model(x)["out"].detach() * region
    assert relative(twin(x, seed).output, model(x)["out"]) < 1e-9
    assert_conserves(twin, x, seed)
