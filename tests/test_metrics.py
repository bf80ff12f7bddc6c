"""Metrics of a heatmap and a mask: guards against a plausible number where the definition gives another, or none.

Each is held against a loop over single numbers, written from the papers; ranks with ties against all their orders.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxlrp import metrics
from fxlrp.errors import InputError, MaskError

CHANNELS, H, W = 2, 2, 3

ORDERS = list(itertools.permutations(range(H * W)))

POOLED = {
    "sum": sum,
    "positive": lambda values: sum(v for v in values if v > 0),
    "abs": lambda values: sum(abs(v) for v in values),
    "l2": lambda values: math.sqrt(sum(v * v for v in values)),
    "l2_squared": lambda values: sum(v * v for v in values),
    "max": max,
}


def by_hand(relevance, pool):
    """One image's pooled map, as a list of numbers."""
    return [POOLED[pool]([float(relevance[c, i, j]) for c in range(CHANNELS)]) for i in range(H) for j in range(W)]


def mu(heat, inside):
    within = sum(v for v, m in zip(heat, inside, strict=True) if m and v > 0)
    total = sum(v for v in heat if v > 0)
    return within / total if total and any(inside) else math.nan


def mass(heat, inside):
    total = sum(heat)
    return sum(v for v, m in zip(heat, inside, strict=True) if m) / total if total and any(inside) else math.nan


def rank(heat, inside):
    """The mean over all orders in which equal pixels could come."""
    number = sum(inside)
    if not number:
        return math.nan
    best = (sorted(order, key=lambda i: -heat[i])[:number] for order in ORDERS)
    return sum(sum(inside[i] for i in some) / number for some in best) / len(ORDERS)


def gini(heat):
    """Half of the mean difference of two pixels, over the mean."""
    values = [abs(v) for v in heat]
    if not sum(values):
        return math.nan
    differences = sum(abs(a - b) for a in values for b in values)
    return differences / (2 * len(values) * sum(values))


NUMBERS = st.one_of(st.integers(-2, 2).map(float), st.floats(-10, 10, allow_subnormal=False, width=16))
MAPS = st.lists(NUMBERS, min_size=2 * CHANNELS * H * W, max_size=2 * CHANNELS * H * W)
MASKS = st.lists(st.booleans(), min_size=2 * H * W, max_size=2 * H * W)


@pytest.mark.parametrize("pool", POOLED)
@settings(deadline=None, max_examples=25)
@given(numbers=MAPS, masks=MASKS)
def test_each_is_what_a_loop_gives(pool, numbers, masks):
    """In batches and one by one; equal numbers, empty masks and maps that sum to zero included."""
    relevance = torch.tensor(numbers, dtype=torch.float64).reshape(2, CHANNELS, H, W)
    mask = torch.tensor(masks).reshape(2, H, W)
    heats, insides = [by_hand(r, pool) for r in relevance], [m.flatten().tolist() for m in mask]
    share = [mu(*each) for each in zip(heats, insides, strict=True)]
    expected = {
        metrics.inside_total_ratio: share,
        metrics.relevance_mass_accuracy: [mass(*each) for each in zip(heats, insides, strict=True)],
        metrics.relevance_rank_accuracy: [rank(*each) for each in zip(heats, insides, strict=True)],
    }
    for metric, values in expected.items():
        same(metric(relevance, mask, pool=pool), values)
        same(torch.cat([metric(relevance[i : i + 1], mask[i : i + 1], pool=pool) for i in (0, 1)]), values)
    by_size = [value * H * W / max(sum(inside), 1) for value, inside in zip(share, insides, strict=True)]
    same(metrics.inside_total_ratio(relevance, mask, weighted=True, pool=pool), by_size)
    same(metrics.sparseness(relevance, pool=pool), [gini(heat) for heat in heats])


def same(found, expected):
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10, equal_nan=True
    )


def test_defaults():
    """mu and the Gini index look at the sum of the channels, mass and rank at their positive parts."""
    relevance = torch.tensor([[[3.0, 1.0]], [[-3.0, 0.5]]]).unsqueeze(0)
    mask = torch.tensor([[[True, False]]])
    assert metrics.inside_total_ratio(relevance, mask).tolist() == [0]
    assert metrics.relevance_mass_accuracy(relevance, mask).tolist() == pytest.approx([3 / 4.5])
    assert metrics.relevance_rank_accuracy(relevance, mask).tolist() == [1]
    assert metrics.sparseness(relevance).tolist() == [0.5]


@pytest.mark.parametrize("with_channel", [True, False])
def test_a_heatmap_that_is_the_mask(with_channel):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:4, 1:5] = True
    given_mask = mask[:, None] if with_channel else mask.float()
    heat = mask.double()
    for metric in (
        metrics.inside_total_ratio,
        metrics.relevance_mass_accuracy,
        metrics.relevance_rank_accuracy,
    ):
        assert metric(heat, given_mask).tolist() == [1]
        assert metric(1 - heat, given_mask).tolist() == [0]
    assert metrics.inside_total_ratio(heat, given_mask, weighted=True).tolist() == [64 / 8]
    assert metrics.sparseness(heat).item() == pytest.approx(1 - 8 / 64)


def test_a_heatmap_that_is_the_same_everywhere():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :2] = True
    heat = torch.full((1, 8, 8), 0.3, dtype=torch.float64)
    assert metrics.inside_total_ratio(heat, mask).item() == pytest.approx(0.25)
    assert metrics.inside_total_ratio(heat, mask, weighted=True).item() == pytest.approx(1)
    assert metrics.relevance_mass_accuracy(heat, mask).item() == pytest.approx(0.25)
    assert metrics.relevance_rank_accuracy(heat, mask).item() == pytest.approx(0.25)
    assert metrics.sparseness(heat).item() == pytest.approx(0, abs=1e-15)


def test_what_has_no_meaning_is_nan_for_its_image_alone():
    """An empty mask; a map of zeros; one of what counts for nothing; NaN, outside of the mask too."""
    heat = torch.ones(5, 4, 4)
    mask = torch.zeros(5, 4, 4, dtype=torch.bool)
    mask[:, 0] = True
    mask[1] = False
    heat[2] = 0
    heat[3] = -1
    heat[4, 3, 3] = torch.nan
    empty, zero, negative, nan = range(1, 5)
    for metric, without in {
        metrics.inside_total_ratio: {empty, zero, negative, nan},
        metrics.relevance_mass_accuracy: {empty, zero, negative, nan},
        metrics.relevance_rank_accuracy: {empty, nan},
        lambda heat, _: metrics.sparseness(heat): {zero, nan},
    }.items():
        found = metric(heat, mask)
        assert set(found.isnan().nonzero().flatten().tolist()) == without


def test_half_precision_is_summed_in_single():
    heat = torch.full((1, 64, 64), 0.1, dtype=torch.bfloat16)
    mask = torch.zeros(1, 64, 64)
    mask[0, :16] = 1
    found = metrics.relevance_mass_accuracy(heat, mask)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(2, 4, 5), r"\(2, 4, 5\) do not fit 2 heatmaps of 4 x 4"),
        (torch.ones(1, 4, 4), r"give one for each image, \(2, 4, 4\)"),
        (torch.ones(2, 3, 4, 4), "with a 1 in second place"),
        (torch.ones(4, 4), "do not fit"),
        ([[1]], "a mask is a tensor"),
    ],
)
def test_masks_of_another_size(mask, says):
    for metric in (metrics.inside_total_ratio, metrics.relevance_mass_accuracy, metrics.relevance_rank_accuracy):
        with pytest.raises(MaskError, match=says):
            metric(torch.ones(2, 3, 4, 4), mask)


@pytest.mark.parametrize(
    ("relevance", "pool", "says"),
    [
        (torch.ones(4, 4), "sum", r"not a Tensor of shape \(4, 4\)"),
        ([1.0], "sum", "not a list"),
        (torch.ones(1, 4, 4), "positiv", "did you mean 'positive'"),
        (torch.ones(1, 3, 4, 4), lambda r: r.sum((1, 2)), r"returns a tensor of shape \(1, 4, 4\) .*not \(1, 4\)"),
    ],
)
def test_heatmaps_and_poolings_that_are_none(relevance, pool, says):
    with pytest.raises(InputError, match=says):
        metrics.sparseness(relevance, pool=pool)


def test_a_pooling_of_ones_own():
    relevance = torch.tensor([[[-4.0, 1.0]], [[2.0, -3.0]]]).unsqueeze(0)
    found = metrics.relevance_mass_accuracy(relevance, torch.tensor([[[1, 0]]]), pool=lambda r: r.abs().amax(1))
    assert found.tolist() == pytest.approx([4 / 7])


@pytest.fixture
def scope():
    """What the calls in `ABOUT` are of: images of which the model, and the heatmaps, see the upper half."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 14 * 14, 4)).double().eval()
    x = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[:, :8] = True
    explain_of = lambda model: lambda x, target: x * model[0].weight.mean((0, 2, 3)).reshape(1, -1, 1, 1) * mask[:1]
    return {
        "metrics": metrics,
        "model": model,
        "x": x,
        "relevance": torch.randn(3, 1, 16, 16, dtype=torch.float64),
        "target": torch.tensor([0, 1, 2]),
        "mask": mask,
        "explain": lambda x, target: x * torch.as_tensor(target).reshape(-1, 1, 1, 1).cos(),
        "explain_of": explain_of,
    }


def test_what_is_said_of_each_metric(scope):
    """Each can be called as it is said, gives a number for each image within its range, and changes nothing."""
    told = {each.call.split(".")[1].split("(")[0] for each in metrics.ABOUT.values()}
    assert told == {name for name in metrics.__all__ if name[0].islower()}
    before = {name: value.clone() for name, value in scope.items() if isinstance(value, torch.Tensor)}
    weights = [each.clone() for each in scope["model"].parameters()]
    for name, about in metrics.ABOUT.items():
        found = eval(about.call, scope)
        assert found.shape == (3,), name
        assert ((about.low <= found) & (found <= about.high)).all(), name
        assert about.better in ("higher", "lower")
        assert name in str(metrics.ABOUT)
    for name, value in before.items():
        torch.testing.assert_close(scope[name], value, rtol=0, atol=0)
    assert all(map(torch.equal, weights, scope["model"].parameters()))
