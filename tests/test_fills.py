"""What stands where an image is flipped: guards against fills out of range, rounded, or that show what they replace."""

from __future__ import annotations

import math
import sys

import cv2
import numpy as np
import pytest
import torch

from fxlrp import metrics
from fxlrp.errors import MissingExtraError

H, W = 10, 7


@pytest.fixture
def x():
    return torch.rand(1, 2, H, W, dtype=torch.float64)


def shown(fill, x, relevance, steps, **options):
    """The images that a model is shown, (S + 1, C, H, W), of one image; pixels, highest first."""
    seen = []
    model = lambda images: seen.append(images.clone()) or torch.ones(len(images), 2)
    metrics.pixel_flipping(model, x, relevance, 0, fill=fill, patch=1, steps=steps, **options)
    return torch.cat(seen)


def test_random_is_within_bounds_and_anew_at_each_step(x):
    relevance = torch.arange(H * W, dtype=torch.float64).reshape(1, H, W)
    seen = shown("random", x, relevance, [H * W - 5], bounds=(2.0, 3.0))
    assert torch.equal(seen[1, :, 0, :5], x[0, :, 0, :5])
    flipped = seen[1:].flatten(2)[..., 5:]
    assert ((flipped >= 2) & (flipped <= 3)).all()
    assert flipped.unique().numel() == flipped.numel()


def test_bounds_of_each_channel(x):
    seen = shown("grey", x, x, 1, bounds=([0.0, -1.0], torch.tensor([1.0, 5.0])))
    assert seen[-1, 0].unique().tolist() == [0.5]
    assert seen[-1, 1].unique().tolist() == [2.0]


def test_blur_is_what_a_loop_gives(x):
    seen = shown("blur", x, x, 1)[-1]
    deviation = 10 / 224 * H
    for c, i, j in [(0, 0, 0), (1, 4, 6), (1, 9, 3)]:
        weights = {
            (k, m): math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * deviation**2)) for k in range(H) for m in range(W)
        }
        expected = sum(w * float(x[0, c, k, m]) for (k, m), w in weights.items()) / sum(weights.values())
        assert seen[c, i, j].item() == pytest.approx(expected, rel=1e-10)


def smooth(size=48):
    rows, columns = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 2, size), indexing="ij")
    return torch.stack([rows.sin(), (rows * columns).cos(), columns / 2 - 1]).unsqueeze(0)


def test_inpainting_is_opencv_s_up_to_its_rounding():
    """Beside OpenCV on 8 bits, which rounds up at each pixel; on numbers as they are, it would be off by hundreds."""
    x = smooth()
    heat = torch.zeros(1, 48, 48)
    heat[0, 5:20, 10:30] = 1
    seen = shown("inpaint", x, heat, [300], bounds=(-1.0, 1.0))
    bits = ((x[0] + 1) / 2 * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    by_opencv = cv2.inpaint(bits, (heat[0] > 0).byte().numpy(), 3, cv2.INPAINT_TELEA)
    expected = torch.from_numpy(by_opencv.astype(np.float32)).permute(2, 0, 1) / 255 * 2 - 1
    levels = (seen[1] - expected).abs() * 255 / 2
    assert levels.mean() < 1
    assert levels.max() < 8
    assert torch.equal(seen[1][:, heat[0] == 0], x[0][:, heat[0] == 0])
    assert seen[1][:, heat[0] > 0].unique().numel() > 600  # Not rounded to 8 bits.


def test_inpainting_ends_in_grey_and_does_not_see_what_it_replaces():
    x = smooth()
    heat = torch.rand(1, 48, 48)
    first = shown("inpaint", x, heat, [1000, 2000], bounds=(-1.0, 1.0))
    assert first[-1].unique().tolist() == [0]
    hidden = heat[0] >= heat.flatten().sort(descending=True).values[999]
    other = x.clone()
    other[0][:, hidden] = torch.rand(3, 1000)
    again = shown("inpaint", other, heat, [1000, 2000], bounds=(-1.0, 1.0))
    assert torch.equal(first[1:], again[1:])
    flat = shown("inpaint", torch.full((1, 1, 48, 48), 2.5), heat, [1000])
    assert flat.unique().tolist() == [2.5]


def test_inpainting_scales_with_the_image():
    x, heat = smooth().double(), torch.rand(1, 48, 48)
    one, two = (shown("inpaint", x * factor, heat, [1500]) / factor for factor in (1, 1000))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_without_opencv(monkeypatch, x):
    model = lambda images: images.flatten(1)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"opencv-python-headless.*fxlrp\[evaluate\]"):
        metrics.pixel_flipping(model, x, x)
    metrics.pixel_flipping(model, x, x, fill="mean")
