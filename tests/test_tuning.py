"""Numbers tuned by gradient: a derivative that is not one, tuning that changes nothing, or more than it may."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxlrp
from fxlrp import metrics
from fxlrp.errors import InputError, MaskError
from fxlrp.evaluation import Range, Space, each_layer, tuning
from fxlrp.evaluation.objective import Data, Objective
from fxlrp.testing import trained


class Net(nn.Module):
    """Two convolutions, one of which is a functional call, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

    def forward(self, x):
        x = F.conv2d(self.first(x).relu(), self.weight).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    return trained(Net()).eval()


@pytest.fixture
def data():
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 16, 16)
    mask[:, 4:12, 4:12] = 1
    return [(x[:2], torch.tensor([1, 2]), mask[:2]), (x[2:], torch.tensor([3]), mask[2:])]


def objective(model, data, metric="inside_total_ratio"):
    return Objective(model, data, [metric], {}, batch_size=4, bounds=(-3.0, 3.0))


@pytest.mark.parametrize("loss_of", tuning.SMOOTH.values(), ids=list(tuning.SMOOTH))
def test_the_gradient_is_that_of_finite_differences(loss_of, model, data):
    asked, space = objective(model, data), each_layer(model, data[0][0])
    knobs = space.knobs()
    with torch.no_grad():
        for i, knob in enumerate(knobs.values()):
            knob.fill_(0.1 + 0.05 * i)
    values = {name: knob.item() for name, knob in knobs.items()}
    tuning._loss(asked, asked.explainer(space.composite(knobs), canonized=True), loss_of, knobs)

    def loss(values):
        """Of numbers: what fxlrp explains with, without any tensor."""
        twin, images = fxlrp.convert(model, space.composite(values)), 0
        total = 0.0
        for each in asked.data:
            found = loss_of(model, each, twin(each.x, each.target).relevance)
            total, images = total + found.item() * len(each.x), images + len(each.x)
        return total / images

    assert len(values) == 6
    for name in ("gamma_0", "gamma_1", "epsilon_1", "epsilon_2"):
        step = 1e-4 * values[name]
        up, down = (loss({**values, name: values[name] + sign * step}) for sign in (1, -1))
        assert knobs[name].grad.item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-9)


def test_the_loss_falls_and_the_weights_stay(model, data):
    before = copy.deepcopy(model.state_dict())
    study = fxlrp.search(
        model,
        data,
        each_layer(model, data[0][0]),
        "inside_total_ratio",
        sampler="gradient",
        trials=15,
        alike=0.0,
        progress=False,
    )
    first, best = study.trials[0], study.best
    assert first.number == 0
    assert first.values == pytest.approx({n: (r.low * r.high) ** 0.5 for n, r in study.space.ranges.items()}, rel=1e-5)
    assert best.scores[0] > first.scores[0] + 1e-3
    assert all(each.low <= best.values[name] <= each.high for name, each in study.space.ranges.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    table = fxlrp.compare(model, data, {"best": study.composite}, ("inside_total_ratio",), progress=False)
    assert table.summary("inside_total_ratio", "best").mean == pytest.approx(best.scores[0], rel=1e-9)


def test_drawn_together_neighbours_have_one_value(model, data):
    values = {}
    for alike in (0.0, 10.0):
        study = fxlrp.search(
            model,
            data,
            each_layer(model, data[0][0], epsilon=None),
            "inside_total_ratio",
            sampler="gradient",
            trials=12,
            alike=alike,
            progress=False,
        )
        values[alike] = set(study.trials[-1].values.values())
    assert len(values[0.0]) == 3
    assert len(values[10.0]) < 3


@pytest.mark.parametrize(
    "share", [metrics.inside_total_ratio, functools.partial(metrics.relevance_mass_accuracy, pool="sum")]
)
def test_an_image_without_a_number_leaves_the_derivative_of_the_others(share):
    """One has no mask, one no relevance: their share is NaN, and must not become the gradient."""
    relevance = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    relevance[1] = 0
    masks = torch.zeros(3, 4, 4)
    masks[:2, 1:3] = 1
    alone = relevance[:1].clone().requires_grad_()
    relevance.requires_grad_()
    for each, mask in ((relevance, masks), (alone, masks[:1])):
        share(each, mask).nanmean().backward()
    assert torch.equal(relevance.grad[:1], alone.grad)
    assert alone.grad.abs().sum() > 0
    assert not relevance.grad[1:].any()


def test_nearly_alike_neighbours_are_joined():
    values = {"gamma_0": 1.0, "gamma_1": 1.02, "gamma_2": 2.0, "epsilon_0": 2.0, "other": 2.0}
    found = tuning.joined(values)
    assert found["gamma_0"] == found["gamma_1"] == pytest.approx(1.02**0.5)
    assert {name: found[name] for name in ("gamma_2", "epsilon_0", "other")} == pytest.approx(
        {"gamma_2": 2.0, "epsilon_0": 2.0, "other": 2.0}
    )


def test_smooth_flipping_tells_a_right_heatmap_from_its_opposite():
    """A model whose logit is the brightness of one patch; the heatmap is that patch."""
    weight = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    weight[..., 8:16, 8:16] = 1
    model = lambda x: torch.stack([(x * weight).sum((1, 2, 3)) / 30, torch.zeros(len(x), dtype=x.dtype)], 1)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 0.1 + weight
    data = Data(x, torch.tensor([0, 0]), None)
    right, wrong = x * weight, -x * weight
    losses = [tuning.smooth_flipping(model, data, heat).item() for heat in (right, torch.randn_like(x), wrong)]
    assert losses[0] < losses[1] < losses[2]
    assert -0.5 < losses[0] < -0.25
    assert losses[2] == pytest.approx(-losses[0], rel=1e-12)


@pytest.mark.parametrize(
    ("space", "metric", "error", "says"),
    [
        (
            Space(lambda gamma, kind: None, gamma=(0.1, 1.0), kind=["a", "b"]),
            "flipping_auc_morf",
            InputError,
            "choices",
        ),
        (Space(lambda gamma: None, gamma=Range(0.0, 1.0, log=False)), "flipping_auc_morf", InputError, "logarithmic"),
        ("strong_epsilon", "sparseness", InputError, "no smooth form"),
        ("strong_epsilon", "inside_total_ratio", MaskError, "masks"),
    ],
)
def test_errors(space, metric, error, says, model, data):
    with pytest.raises(error, match=says):
        fxlrp.search(model, [data[0][0]], space, metric, sampler="gradient", trials=1, progress=False)


def test_an_explainer_follows_weights_that_are_overwritten(model, data):
    x, target, _ = data[0]
    explain = fxlrp.explainer(model, "epsilon_plus", pool=None)
    arrays = x.numpy(), target.numpy()
    for changed in (model, copy.deepcopy(model)):
        for write in (
            lambda: None,
            lambda of=changed: of.first.reset_parameters(),
            lambda of=changed: of.weight.data.mul_(-1),
            lambda of=changed: of.load_state_dict({k: v + 0.1 for k, v in of.state_dict().items()}),
        ):
            write()
            expected = fxlrp.convert(changed, "epsilon_plus")(x, target).relevance
            np.testing.assert_allclose(explain(changed, *arrays), expected.numpy(), rtol=1e-10, atol=1e-14)
    pooled = fxlrp.explainer(model, "epsilon_plus")(model=model, inputs=x.numpy(), targets=target.numpy(), device="cpu")
    expected = fxlrp.convert(model, "epsilon_plus")(x, target).relevance.sum(1, keepdim=True)
    np.testing.assert_allclose(pooled, expected.numpy(), rtol=1e-10, atol=1e-14)


def test_quantus_calls_it(model, data):
    quantus = pytest.importorskip("quantus", reason="Quantus is not among fxlrp's extras: pip install quantus==0.6.0")
    model, (x, target, mask) = model.float(), data[0]
    arrays = {"x_batch": x.float().numpy(), "y_batch": target.numpy(), "a_batch": None}
    quiet = {"disable_warnings": True, "display_progressbar": False}
    metrics = [
        quantus.Sparseness(**quiet),
        quantus.RelevanceRankAccuracy(abs=False, **quiet),
        quantus.MaxSensitivity(nr_samples=2, **quiet),
        quantus.RandomLogit(num_classes=4, **quiet),
        quantus.FaithfulnessCorrelation(nr_runs=5, subset_size=20, **quiet),
    ]
    explain = fxlrp.explainer(model, "epsilon_plus")
    for metric in metrics:
        found = metric(model=model, explain_func=explain, s_batch=mask.numpy()[:, None].astype(bool), **arrays)
        assert np.isfinite(np.asarray(found, dtype=float)).all()
    heat = torch.from_numpy(explain(model, arrays["x_batch"], target.numpy()))
    (found,) = [metrics[0](model=model, **{**arrays, "a_batch": heat.numpy()})]
    torch.testing.assert_close(torch.tensor(found), fxlrp.metrics.sparseness(heat).double(), rtol=1e-5, atol=1e-5)
