"""Pixel flipping: guards against curves of other pixels, images or classes than said.

Held against a loop that flips patch by patch, and against a linear model, of which the curve is known.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp import metrics
from fxlrp.errors import InputError, TargetError

B, H, W, PATCH = 3, 10, 7, 3
BOUNDS = (-0.5, 1.5)

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


def grid():
    """The pixels of each patch."""
    return [
        [(i, j) for i in range(top, min(top + PATCH, H)) for j in range(left, min(left + PATCH, W))]
        for top in range(0, H, PATCH)
        for left in range(0, W, PATCH)
    ]


COLOURS = {
    "black": lambda image, c: BOUNDS[0],
    "grey": lambda image, c: sum(BOUNDS) / 2,
    "mean": lambda image, c: sum(image[c].flatten().tolist()) / (H * W),
}


def curve_by_hand(model, image, relevance, target, order, counts, colour):
    """Scores and shares of pixels of one image, flipped patch by patch; no two patches are equal."""
    patches = grid()
    sums = [sum(float(relevance[c, i, j]) for i, j in pixels for c in range(2)) for pixels in patches]
    places = sorted(range(len(patches)), key=lambda p: sums[p], reverse=order == "morf")
    scores, shares = [], []
    for count in counts:
        changed = image.clone()
        pixels = [pixel for p in places[:count] for pixel in patches[p]]
        for i, j in pixels:
            for c in range(2):
                changed[c, i, j] = colour(image, c)
        with torch.no_grad():
            scores.append(float(model(changed[None])[0, target]))
        shares.append(len(pixels) / (H * W))
    return scores, shares


@pytest.mark.parametrize("fill", COLOURS)
@pytest.mark.parametrize(
    ("order", "steps", "counts"),
    [
        ("morf", "log", [0, 1, 2, 4, 8, 12]),
        ("lerf", "log", [0, 4, 8, 10, 11, 12]),
        ("morf", 5, [0, 2, 5, 7, 10, 12]),
        ("lerf", [7, 3], [0, 3, 7, 12]),
        ("morf", range(0, 13, 6), [0, 6, 12]),
        ("lerf", 100, list(range(13))),
    ],
)
def test_each_curve_is_what_a_loop_gives(model, x, relevance, fill, order, steps, counts):
    targets = [4, 0, 2]
    curve = metrics.pixel_flipping(
        model, x, relevance, targets, order=order, fill=fill, patch=PATCH, steps=steps, bounds=BOUNDS
    )
    assert curve.flipped.tolist() == counts
    for number, target in enumerate(targets):
        scores, shares = curve_by_hand(model, x[number], relevance[number], target, order, counts, COLOURS[fill])
        torch.testing.assert_close(curve.scores[number], torch.tensor(scores, dtype=torch.float64), **exactly)
        torch.testing.assert_close(curve.shares[number], torch.tensor(shares, dtype=torch.float64), **exactly)
        area = sum((scores[k] + scores[k + 1]) / 2 * (shares[k + 1] - shares[k]) for k in range(len(counts) - 1))
        assert curve.auc[number].item() == pytest.approx(area, rel=1e-10)
        fall = sum(scores[0] - score for score in scores) / len(counts)
        assert curve.aopc[number].item() == pytest.approx(fall, rel=1e-10)


def test_a_linear_model(x):
    """Each pixel takes its own contribution away: in the order of how much that is, and backwards."""
    weight = torch.randn(2, H, W, dtype=torch.float64)
    model = lambda images: torch.stack([(images * weight).flatten(1).sum(1), images.new_zeros(len(images))], 1)
    relevance = x * weight
    ordered = relevance.sum(1).flatten(1).sort(1).values
    options = {"fill": "black", "bounds": (0.0, 1.0), "patch": 1, "steps": H * W}
    for order, taken in (("morf", ordered.flip(1)), ("lerf", ordered)):
        curve = metrics.pixel_flipping(model, x, relevance, 0, order=order, **options)
        left = ordered.sum(1, keepdim=True) - nn.functional.pad(taken.cumsum(1), (1, 0))
        torch.testing.assert_close(curve.scores, left, **exactly)
    random = metrics.pixel_flipping(model, x, relevance, 0, order="random", **options)
    morf, lerf = (
        metrics.pixel_flipping(model, x, relevance, 0, order=each, **options).auc for each in ("morf", "lerf")
    )
    assert ((morf < random.auc) & (random.auc < lerf)).all()


@pytest.mark.parametrize(
    ("patches", "order", "counts"),
    [
        (16, "morf", [0, 1, 2, 4, 8, 16]),
        (16, "lerf", [0, 8, 12, 14, 15, 16]),
        (16, "random", [0, 3, 6, 10, 13, 16]),
        (784, "morf", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 784]),
        (1, "morf", [0, 1]),
    ],
)
def test_logarithmic_steps(patches, order, counts):
    x = torch.rand(1, 1, 1, patches)
    curve = metrics.pixel_flipping(lambda x: x.flatten(1), x, x, 0, order=order, fill="grey", patch=1)
    assert curve.flipped.tolist() == counts


def flipped_at(relevance, count, seed, order="morf"):
    """Which pixels of maps (B, h, w) are flipped, by a model that tells it."""
    x = torch.ones(len(relevance), 1, *relevance.shape[1:])
    found = []
    model = lambda images: found.append(images[:, 0] == 0) or torch.ones(len(images), 2)
    metrics.pixel_flipping(
        model, x, relevance, 0, order=order, fill="black", bounds=(0, 1), patch=1, steps=[count], seed=seed
    )
    return found[1][::2]


def test_ties_are_broken_by_the_seed_and_not_by_place():
    constant = torch.ones(2, 8, 8)
    first, again, other = (flipped_at(constant, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, other)
    assert 3 < first[0, :4].sum() < 17
    steps = torch.arange(64.0).div(16, rounding_mode="floor").reshape(1, 8, 8)
    assert flipped_at(steps, 16, 0)[0, 6:].all()
    part = flipped_at(steps, 24, 0)[0]
    assert part[6:].all()
    assert part[4:6].sum() == 8
    assert not part[:4].any()
    assert flipped_at(steps, 16, 0, "lerf")[0, :2].all()
    assert not torch.equal(flipped_at(steps, 16, 0, "random"), flipped_at(steps, 16, 1, "random"))


FILLS = [*metrics.FILLS, lambda x, mask, generator: torch.where(mask, torch.rand((), generator=generator), x)]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("order", ["morf", "random"])
def test_an_image_does_not_depend_on_its_batch(model, x, relevance, fill, order):
    x[1] *= 3  # Bounds that come from the data are each image's own.
    options = {"order": order, "fill": fill, "patch": PATCH}
    curve = metrics.pixel_flipping(model, x, relevance, **options)
    turned = metrics.pixel_flipping(model, x.flip(0), relevance.flip(0), batch_size=4, **options)
    torch.testing.assert_close(turned.scores.flip(0), curve.scores, **exactly)
    torch.testing.assert_close(turned.auc.flip(0), curve.auc, **exactly)
    for number in range(B):
        alone = slice(number, number + 1)
        one = metrics.pixel_flipping(model, x[alone], relevance[alone], batch_size=None, **options)
        torch.testing.assert_close(one.scores, curve.scores[alone], **exactly)


@pytest.mark.parametrize("batch_size", [1, 4, 64, None])
def test_no_call_gets_more_images_than_it_may(model, x, relevance, batch_size):
    sizes = []
    counting = lambda images: sizes.append(len(images)) or model(images)
    metrics.pixel_flipping(counting, x, relevance, 0, fill="grey", patch=PATCH, steps=6, batch_size=batch_size)
    assert max(sizes) <= (batch_size or B * 6)
    assert sum(sizes) == B * 7


def test_scores_and_targets(model, x, relevance):
    options = {"fill": "grey", "patch": PATCH}
    with torch.no_grad():
        output = model(x)
    highest = output.argmax(1)
    curve = metrics.pixel_flipping(model, x, relevance, **options)
    torch.testing.assert_close(curve.scores[:, 0], output.amax(1), **exactly)
    for target in (highest, highest.tolist(), highest.numpy()):
        assert torch.equal(metrics.pixel_flipping(model, x, relevance, target, **options).scores, curve.scores)
    last = metrics.pixel_flipping(model, x, relevance, 4, **options).scores
    assert torch.equal(metrics.pixel_flipping(model, x, relevance, -1, **options).scores, last)
    probable = metrics.pixel_flipping(model, x, relevance, 1, score="probability", **options)
    torch.testing.assert_close(probable.scores[:, 0], output.softmax(1)[:, 1], **exactly)
    margin = metrics.pixel_flipping(model, x, relevance, score=lambda z: z[:, 0] - z[:, 1], **options)
    torch.testing.assert_close(margin.scores[:, 0], output[:, 0] - output[:, 1], **exactly)


ANSWERS = {
    "an explanation": lambda output: fxlrp.Explanation(output, output, {}),
    "that of an ISNet": lambda output: fxlrp.ISNetOutput(output, {}),
    "a dict": lambda output: {"loss": output.sum(), "logits": output},
    "a tuple": lambda output: (output, output.sum()),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_whatever_holds_the_outputs(model, x, relevance, answer):
    options = {"fill": "grey", "patch": PATCH}
    found = metrics.pixel_flipping(lambda x: answer(model(x)), x, relevance, **options)
    torch.testing.assert_close(found.scores, metrics.pixel_flipping(model, x, relevance, **options).scores, **exactly)


def test_models_that_write_to_their_input_or_return_a_view_of_it(x, relevance):
    kept = x.clone()
    in_place = metrics.pixel_flipping(lambda x: x.mul_(2).sum((2, 3)), x, relevance, 0, fill="mean", batch_size=2)
    assert torch.equal(x, kept)
    plain = metrics.pixel_flipping(lambda x: (2 * x).sum((2, 3)), x, relevance, 0, fill="mean", batch_size=2)
    torch.testing.assert_close(in_place.scores, plain.scores, **exactly)
    view = lambda x: x.flatten(1)
    options = {"fill": "black", "bounds": (0.0, 1.0), "patch": PATCH, "batch_size": 2}
    viewed = metrics.pixel_flipping(view, x, relevance, score=lambda z: z[:, 0], **options)
    copied = metrics.pixel_flipping(view, x, relevance, 0, **options)
    assert torch.equal(viewed.scores, copied.scores)


def test_nan_in_a_heatmap(model, x, relevance):
    relevance[1, 0, 3, 3] = torch.nan
    curve = metrics.pixel_flipping(model, x, relevance, fill="mean")
    assert curve.auc.isnan().tolist() == curve.aopc.isnan().tolist() == [False, True, False]
    assert not metrics.pixel_flipping(model, x, relevance, fill="mean", order="random").auc.isnan().any()


def test_the_mode_and_the_gradients_of_a_model_are_left_alone(model, x, relevance):
    with_dropout = nn.Sequential(nn.Dropout(), model)
    with pytest.raises(InputError, match=r"Dropout '0' is in training mode.*model.eval\(\)"):
        metrics.pixel_flipping(with_dropout, x, relevance)
    with_dropout[0].eval()  # The rest is in training mode still, and acts no otherwise for it.
    curve = metrics.pixel_flipping(with_dropout, x, relevance.requires_grad_(), fill="mean")
    assert not curve.scores.requires_grad
    assert with_dropout.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (InputError, "fill is .*did you mean 'inpaint'", {"fill": "inpant"}),
        (InputError, "order is .*did you mean 'morf'", {"order": "mrf"}),
        (InputError, "score is 'logit' or 'probability'", {"score": "loss"}),
        (InputError, "one number for each image", {"score": lambda z: z}),
        (InputError, "patch is a whole number", {"patch": 0}),
        (InputError, "batch_size is a whole number", {"batch_size": 0}),
        (InputError, "seed is a whole number", {"seed": 1.5}),
        (InputError, "steps is 'log'", {"steps": "linear"}),
        (InputError, "steps is 0", {"steps": 0}),
        (InputError, "steps has the count 13, and an image has 12 patches", {"steps": [1, 13]}),
        (InputError, r"counts of patches \(ints\)", {"steps": [0.5]}),
        (InputError, "bounds is a pair", {"bounds": 1.0}),
        (InputError, "black not above white", {"bounds": (1.0, 0.0)}),
        (InputError, "its 2 channels", {"bounds": ([0.0] * 3, [1.0] * 3)}),
        (InputError, r"returns an image of shape \(1, 2, 10, 7\), not float", {"fill": lambda x, *_: 1.0}),
        (InputError, "are not those of images", {"relevance": torch.ones(B, H, W + 1)}),
        (InputError, "images are floating-point", {"x": torch.ones(B, 2, H, W, dtype=torch.long)}),
        (InputError, "images are floating-point", {"x": torch.ones(2, H, W)}),
        (InputError, r"a classifier's is \(B, C\)", {"model": lambda x: x}),
        (InputError, "no tensor is named 'logits' or 'output'", {"model": lambda x: None}),
        (InputError, "one output has no probability", {"model": lambda x: x.sum((1, 2, 3)), "score": "probability"}),
        (TargetError, "5 classes", {"target": 5}),
        (TargetError, "a class for each of the 3", {"target": [0, 1]}),
        (TargetError, "a seed or a function of the output is none", {"target": torch.ones(B, 5)}),
    ],
)
def test_what_is_wrong_is_said(model, x, relevance, error, says, options):
    given = {"model": model, "x": x, "relevance": relevance, "patch": PATCH, "fill": "grey"} | options
    with pytest.raises(error, match=says):
        metrics.pixel_flipping(**given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fill", metrics.FILLS)
def test_on_a_gpu(model, x, relevance, fill):
    expected = metrics.pixel_flipping(model, x, relevance, fill=fill, patch=PATCH)
    found = metrics.pixel_flipping(model.cuda(), x.cuda(), relevance.cuda(), fill=fill, patch=PATCH)
    assert found.auc.is_cuda
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-6, atol=1e-6)
