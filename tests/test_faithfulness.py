"""The correlation of faithfulness: guards against sums over other pixels than those that are gone.

Held against a loop over what a model is shown, and against a linear model, of which it is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fxlrp import metrics
from fxlrp.errors import InputError

B, H, W, PATCH = 3, 10, 7, 3

exactly = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def model():
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (H - 2) * (W - 2), 5)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def x():
    return torch.rand(B, 2, H, W, dtype=torch.float64)


@pytest.fixture
def relevance():
    return torch.randn(B, 2, H, W, dtype=torch.float64)


def test_faithfulness_of_a_linear_model(x):
    """What pixels are worth is just what the score loses without them; with the sign turned, the opposite."""
    weight = torch.randn(2, H, W, dtype=torch.float64)
    model = lambda images: (images * weight).flatten(1).sum(1, keepdim=True)
    options = {"subset": 9, "runs": 30, "bounds": (0.0, 1.0)}
    for sign in (1, -1):
        found = metrics.faithfulness_correlation(model, x, sign * x * weight, 0, **options)
        torch.testing.assert_close(found, torch.full((B,), float(sign), dtype=torch.float64), **exactly)
    constant = metrics.faithfulness_correlation(model, x, torch.full((B, H, W), 0.1), 0, **options)
    assert constant.isnan().all()
    deaf = lambda images: images.new_ones(len(images), 2)
    assert metrics.faithfulness_correlation(deaf, x, x, 0, **options).isnan().all()


@pytest.mark.parametrize("patch", [1, PATCH])
def test_faithfulness_is_what_a_loop_gives(model, x, relevance, patch):
    """The subsets are read off from what the model is shown, and are the same for every image."""
    subset, runs = (17, 12) if patch == 1 else (5, 12)
    seen = []
    watching = lambda images: seen.append(images.clone()) or model(images)
    x += 1
    options = {"patch": patch, "subset": subset, "runs": runs, "bounds": (0.0, 1.0)}
    found = metrics.faithfulness_correlation(watching, x, relevance, 2, batch_size=5, **options)
    shown = torch.cat(seen[1:]).reshape(B, runs, 2, H, W)
    gone = (shown == 0).any(2)
    assert torch.equal(gone[0], gone[1])
    if patch == 1:
        assert (gone.flatten(2).sum(2) == subset).all()
    assert len({tuple(mask.flatten().tolist()) for mask in gone[0]}) > runs - 3
    for number in range(B):
        worth = [float((relevance[number].sum(0) * mask).sum()) for mask in gone[number]]
        with torch.no_grad():
            loss = [float(model(x[number, None])[0, 2] - model(each[None])[0, 2]) for each in shown[number]]
        assert found[number].item() == pytest.approx(float(np.corrcoef(worth, loss)[0, 1]), rel=1e-10)
    turned = metrics.faithfulness_correlation(model, x.flip(0), relevance.flip(0), 2, **options)
    torch.testing.assert_close(turned.flip(0), found, **exactly)
    other = metrics.faithfulness_correlation(model, x, relevance, 2, seed=1, **options)
    assert not torch.allclose(other, found)


def test_a_subset_of_more_than_there_is(model, x, relevance):
    with pytest.raises(InputError, match=r"subset is 224, and images of 10 x 7 have 70 patches of 1 x 1.*subset=17"):
        metrics.faithfulness_correlation(model, x, relevance)


def test_nan_in_a_heatmap(model, x, relevance):
    relevance[1, 0, 3, 3] = torch.nan
    assert metrics.faithfulness_correlation(model, x, relevance, subset=9).isnan().tolist() == [False, True, False]
