"""`fxlrp.compare`: guards against numbers of another composite, image, class or evaluation than the table says.

Held against direct calls of `fxlrp.metrics` on heatmaps of one composite's own twin, and against zennit's attributor.
"""

from __future__ import annotations

import copy
import csv
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import BetaSmooth, EpsilonPlus, GuidedBackprop, LayerMapComposite
from zennit.rules import Gamma
from zennit.types import Linear

import fxlrp
from fxlrp import metrics
from fxlrp.errors import CompositeError, InputError, MaskError, MissingExtraError
from fxlrp.evaluation import Table
from fxlrp.evaluation.several import Several
from fxlrp.evaluation.storage import ImageRow
from fxlrp.testing import trained

H, W, CLASSES = 9, 8, 4
exactly = {"rtol": 1e-10, "atol": 1e-10}


def equal(found, expected):
    """Of numbers, with NaN where the other has NaN."""
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), **exactly, equal_nan=True)


class Plain(nn.Sequential):
    """Convolution, batch norm and ReLU, which works in place."""

    def __init__(self):
        head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES)
        inner = nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)
        super().__init__(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), *inner, *head)


class Dense(nn.Module):
    """As a DenseNet has it: batch norm, ReLU, convolution, of all that is in front."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)) for width in (4, 7)
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.head(x)


def gamma(value):
    return LayerMapComposite([(Linear, Gamma(value))])


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return trained(Plain()).eval()


class Images(Dataset):
    """Images with classes and masks, of which some may be wanting."""

    def __init__(self, number=5, seed=0, masks=True):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(number, 2, H, W, dtype=torch.float64, generator=generator)
        self.classes = torch.randint(CLASSES, (number,), generator=generator)
        self.masks = torch.rand(number, H, W, generator=generator) > 0.6
        self.order, self.masked = list(range(number)), masks

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        i = self.order[index]
        return (self.x[i], self.classes[i], self.masks[i])[: 3 if self.masked else 2]

    def batches(self, size=2):
        return list(DataLoader(self, size))


@pytest.fixture
def images():
    return Images()


WAYS = {"plus": EpsilonPlus(), "gamma": gamma(0.3), "box": "epsilon_gamma_box"}
BOUNDS = (-4.0, 5.0)
FLIPPING = {"patch": 3, "fill": "black", "bounds": (-3.0, 3.0), "steps": 3}
OPTIONS = {
    "flipping": FLIPPING,
    "faithfulness_correlation": {"runs": 6, "subset": 20, "fill": "mean"},
    "sensitivity_max": {"runs": 2},
    "sensitivity_mean": {"runs": 2, "radius": 0.1},
    "inside_total_ratio_weighted": {"pool": "abs"},
}


def compare(model, loader, ways=WAYS, names=("sparseness",), **options):
    return fxlrp.compare(model, loader, ways, names, progress=False, **options)


def curve(order):
    return lambda model, x, r, y, m, twin: metrics.pixel_flipping(model, x, r, y, order=order, **FLIPPING)


BY_HAND = {
    "flipping_auc_morf": lambda *case: curve("morf")(*case).auc,
    "flipping_aopc_morf": lambda *case: curve("morf")(*case).aopc,
    "flipping_auc_lerf": lambda *case: curve("lerf")(*case).auc,
    "flipping_aopc_lerf": lambda *case: curve("lerf")(*case).aopc,
    "inside_total_ratio": lambda model, x, r, y, m, twin: metrics.inside_total_ratio(r, m),
    "inside_total_ratio_weighted": lambda model, x, r, y, m, twin: metrics.inside_total_ratio(
        r, m, weighted=True, pool="abs"
    ),
    "relevance_mass_accuracy": lambda model, x, r, y, m, twin: metrics.relevance_mass_accuracy(r, m),
    "relevance_rank_accuracy": lambda model, x, r, y, m, twin: metrics.relevance_rank_accuracy(r, m),
    "sparseness": lambda model, x, r, y, m, twin: metrics.sparseness(r),
    "faithfulness_correlation": lambda model, x, r, y, m, twin: metrics.faithfulness_correlation(
        model, x, r, y, runs=6, subset=20, fill="mean"
    ),
    "random_logit": lambda model, x, r, y, m, twin: metrics.random_logit(twin, x, y),
    "sensitivity_max": lambda model, x, r, y, m, twin: metrics.sensitivity(twin, x, y, runs=2),
    "sensitivity_mean": lambda model, x, r, y, m, twin: metrics.sensitivity(
        twin, x, y, runs=2, radius=0.1, reduce="mean"
    ),
}
EVERY = (
    "flipping",
    "inside_total_ratio",
    "inside_total_ratio_weighted",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "sparseness",
    "faithfulness_correlation",
    "random_logit",
    "sensitivity_max",
    "sensitivity_mean",
)


@pytest.fixture(scope="module")
def every(model):
    """A table of all metrics, over batches of two."""
    return compare(model, Images().batches(2), names=EVERY, options=OPTIONS, bounds=BOUNDS)


@pytest.fixture(scope="module")
def twins(model):
    """A twin of each composite by itself."""
    ways = {**WAYS, "box": fxlrp.composites.resolve("epsilon_gamma_box", BOUNDS)}
    return {name: fxlrp.convert(model, way) for name, way in ways.items()}


def test_nothing_is_left_out(every):
    assert sorted(every.metrics) == sorted(BY_HAND)
    assert every.ways == list(WAYS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("metric", BY_HAND)
def test_a_column_is_the_metric_of_the_composites_own_twin(metric, way, every, twins, model, images):
    x, y, mask, twin = images.x, images.classes, images.masks, twins[way]
    expected = BY_HAND[metric](model, x, twin(x, y).relevance, y, mask, twin)
    assert expected.std() > 0
    equal(torch.from_numpy(every.values(metric, way)), expected)


def heatmaps(model, loader, ways, **options):
    """The heatmaps of a comparison, by way: (B, C, H, W)."""
    table = compare(model, loader, ways, ("sparseness",), examples=100, **options)
    return {way: torch.stack([each.relevance[way] for each in table.examples]) for way in table.ways}


CLIPPING = {"guided": GuidedBackprop(), "smooth": BetaSmooth(), "plus": EpsilonPlus(), "gamma": gamma(0.2)}


@pytest.mark.parametrize("kind", [Plain, Dense])
def test_composites_together_are_as_each_alone(kind, images):
    """Of a DenseNet too, where some ask for the ReLU's clip, and others for the batch norm folded through it."""
    model = trained(kind()).eval()
    found = heatmaps(model, images.batches(5), CLIPPING)
    for name, composite in CLIPPING.items():
        alone = fxlrp.convert(model, composite)(images.x, images.classes).relevance
        equal(found[name], alone)


def operations(function):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_one_forward_pass_serves_all(model, images):
    several = [Several(model, dict(list(WAYS.items())[:n]), bounds=BOUNDS) for n in (1, 2)]
    for each in several:
        each(images.x, images.classes)
    forward = operations(lambda: model(images.x))
    one, two = (operations(lambda each=each: each(images.x, images.classes)) for each in several)
    other = operations(lambda: several[1].alone("gamma")(images.x, images.classes))
    assert one > forward
    assert two <= one + other - forward


def test_one_capture_serves_all(images, monkeypatch):
    seen, plain = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: seen.append(1) or plain(*a, **k))
    monkeypatch.setattr(fxlrp.capture, "_TRACES", type(fxlrp.capture._TRACES)())
    compare(trained(Plain()).eval(), images.batches(5), WAYS)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", [EpsilonPlus, BetaSmooth])
def test_not_canonized_is_zennits_own(kind, model, images):
    """Also of rules that go by what a ReLU is given, which one that works in place overwrites."""
    before, composite = copy.deepcopy(model), kind(canonizers=[SequentialMergeBatchNorm()])
    found = heatmaps(model, images.batches(5), {"it": composite, "random": "random"}, canonize=(True, False))
    assert list(found) == ["it", "random", "it, not canonized"]
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with Gradient(model=plain, composite=kind()) as attributor:
        seed = torch.eye(CLASSES, dtype=torch.float64)[images.classes]
        _, expected = attributor(images.x, lambda output: output.detach() * seed)
    equal(found["it, not canonized"], expected)
    assert torch.allclose(found["it"], expected, rtol=1e-3, atol=0) == (kind is BetaSmooth)
    # The model is as it was, and the composite too.
    assert str(model) == str(before)
    assert len(composite.canonizers) == 1
    torch.testing.assert_close(model(images.x), before(images.x), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_batches_make_no_difference(size, model, every, images):
    """Nor does it, whether they come from a loader or are put together here."""
    table = compare(model, images, names=EVERY, options=OPTIONS, bounds=BOUNDS, batch_size=size)
    for metric in table.metrics:
        for way in WAYS:
            equal(table.values(metric, way), every.values(metric, way))


def test_the_order_of_images_makes_no_difference(model, every, images):
    images.order = [3, 0, 4, 1, 2]
    table = compare(model, images, names=EVERY, options=OPTIONS, bounds=BOUNDS)
    for metric in table.metrics:
        equal(table.values(metric, "gamma"), every.values(metric, "gamma")[images.order])


class Interrupted(Exception):
    """What happens midway."""


def test_an_evaluation_goes_on_where_it_was_interrupted(model, images, tmp_path):
    path, measured = tmp_path / "new" / "rows.jsonl", []

    def own(_, x, relevance, target, mask):
        measured.append(len(x))
        return relevance.abs().flatten(1).sum(1)

    def loader(until):
        for i, batch in enumerate(images.batches(2)):
            if i == until:
                raise Interrupted
            yield batch

    ways, names = {"plus": EpsilonPlus(), "random": "random"}, {"own": own, "flipping": "flipping"}
    asked = {"options": {"flipping": FLIPPING}, "examples": 0}
    with pytest.raises(Interrupted):
        compare(model, loader(2), ways, names, storage=path, **asked)
    assert measured == [2] * 2 * len(ways)
    with path.open("a") as file:
        file.write('{"image": 4, "values"')
    measured.clear()
    table = compare(model, loader(None), ways, names, storage=path, **asked)
    assert measured == [1] * len(ways)
    whole = compare(model, images.batches(5), ways, names, **asked)
    for metric in whole.metrics:
        for way in ways:
            equal(table.values(metric, way), whole.values(metric, way))
    for one, other in zip(table.rows, whole.rows, strict=True):
        equal(one.curves["plus"]["lerf"], other.curves["plus"]["lerf"])
    assert len(path.read_text().splitlines()) == 1 + len(images)
    # All is there: nothing is measured, and the first images are explained to be drawn.
    measured.clear()
    again = compare(model, loader(None), ways, names, storage=path, options=asked["options"])
    assert not measured
    assert [each.image for each in again.examples] == [0, 1, 2, 3]
    assert len(path.read_text().splitlines()) == 1 + len(images)


def changed(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    return other


ANOTHER = {
    "model": lambda model, images: {"model": changed(model)},
    "ways": lambda model, images: {"ways": {"gamma": gamma(0.31)}},
    "names": lambda model, images: {"names": ("sparseness", "random_logit")},
    "options": lambda model, images: {"options": {"sparseness": {"pool": "abs"}}},
    "target": lambda model, images: {"target": 1},
    "image": lambda model, images: {"loader": Images(seed=1)},
    "mask": lambda model, images: {"loader": Images(masks=False)},
}
SAID = {"names": "metrics", "image": "another image 0", "mask": "another image 0"}


@pytest.mark.parametrize("what", ANOTHER)
def test_numbers_of_another_evaluation_are_refused(what, model, images, tmp_path):
    path = tmp_path / "rows.jsonl"
    asked = {"model": model, "loader": images, "ways": {"gamma": gamma(0.3)}, "names": ("sparseness",)}
    compare(**asked, storage=path)
    before = path.read_text()
    with pytest.raises(InputError, match=rf"rows\.jsonl .*{SAID.get(what, what)}"):
        compare(**{**asked, **ANOTHER[what](model, images)}, storage=path)
    assert path.read_text() == before
    compare(**asked, storage=path)


@pytest.mark.parametrize("text", [b"a note", b"a note\nof two lines", b"[1, 2]\n", b"\xff\xd8\xff\xe0 a photo"])
def test_a_file_of_something_else_is_left_alone(text, model, images, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match="is no file of an evaluation"):
        compare(model, images, storage=path)
    assert path.read_bytes() == text


def test_a_file_that_was_broken_off_at_its_first_line(model, images, tmp_path):
    path = tmp_path / "rows.jsonl"
    compare(model, images, ["random"], storage=path)
    whole = path.read_text()
    path.write_text(whole[:30])
    compare(model, images, ["random"], storage=path)
    assert path.read_text() == whole


def test_baselines(model, images):
    found = heatmaps(model, images.batches(2), ["gradient_times_input", "random"])
    x = images.x.clone().requires_grad_()
    output = model(x.clone())
    (gradient,) = torch.autograd.grad(output.gather(1, images.classes[:, None]).sum(), x)
    equal(found["gradient_times_input"], images.x * gradient)
    noise = found["random"]
    assert noise.std() > 0.5
    assert torch.equal(noise, noise[:1].expand_as(noise))


def test_functions_and_twins_explain_too(model, images):
    twin = fxlrp.convert(model, "epsilon_plus")
    ways = {"twin": twin, "image": lambda x, target: x * target[:, None, None, None], "plus": EpsilonPlus()}
    found = heatmaps(model, images.batches(3), ways)
    equal(found["twin"], found["plus"])
    equal(found["image"], images.x * images.classes[:, None, None, None])


def explained(model, loader, **options):
    """The class of each image that heatmaps and metrics are of."""
    own = {"class": lambda model, x, relevance, target, mask: target.double()}
    table = compare(model, loader, {"of": lambda x, target: x * 0 + target[:, None, None, None]}, own, **options)
    found = table.values("class", "of").tolist()
    assert [each.relevance["of"].mean().item() for each in table.examples] == found[: len(table.examples)]
    return found


def test_which_class_is_explained(model, images):
    x, given = images.x, images.classes
    best = model(x).argmax(1)
    assert not torch.equal(best, given)
    assert explained(model, [(x, given)]) == given.tolist()
    assert explained(model, [x]) == best.tolist()
    assert explained(model, [(x,)]) == explained(model, [(x, None)]) == best.tolist()
    assert explained(model, [(x, given)], target=2) == [2] * 5
    some = torch.where(torch.arange(5) % 2 == 0, given, -1)
    assert explained(model, [(x, some)]) == torch.where(some >= 0, given, best).tolist()
    wanting = [(each, None if label < 0 else label) for each, label in zip(x, some.tolist(), strict=True)]
    assert explained(model, Listed(wanting), batch_size=2) == torch.where(some >= 0, given, best).tolist()


class Listed(Dataset):
    """A list as a data set."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("shape", [(H, W), (1, H, W)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_of_any_kind_and_those_that_are_wanting(shape, dtype, model, images):
    masks = [None, *(mask.to(dtype).reshape(shape) for mask in images.masks[1:4]), torch.zeros(shape, dtype=dtype)]
    data = Listed([(*images[i][:2], mask) for i, mask in enumerate(masks)])
    names = ("inside_total_ratio", "relevance_rank_accuracy", "sparseness")
    for size in (1, 5):
        table = compare(model, data, {"plus": EpsilonPlus()}, names, batch_size=size)
        whole = compare(model, images, {"plus": EpsilonPlus()}, names)
        for name in names[:2]:
            expected = whole.values(name, "plus")
            expected[[0, 4]] = np.nan
            equal(table.values(name, "plus"), expected)
            assert table.summary(name, "plus").missing == 2
            assert table.summary(name, "plus").number == 3
            assert "(2 NaN)" in str(table)
        assert table.summary("sparseness", "plus").missing == 0


def made(values, ways=("a", "b"), metric="sparseness"):
    """A table of numbers: a column for each way."""
    rows = [{way: {metric: value} for way, value in zip(ways, row, strict=True)} for row in values]
    return Table([ImageRow(i, row) for i, row in enumerate(rows)], ways)


def test_intervals_of_known_numbers():
    same = made([[0.25, 1.0]] * 7).summary("sparseness", "a")
    assert same == (0.25, 0.25, 0.25, 7, 0)
    # Of 100 zeros and ones, the mean of a resample is binomial.
    from scipy.stats import binom

    found = made([[i % 2, math.nan] for i in range(100)])
    low, high = binom.ppf([0.025, 0.975], 100, 0.5) / 100
    assert found.summary("sparseness", "a")[1:3] == pytest.approx((low, high), abs=0.011)
    assert found.summary("sparseness", "a").mean == 0.5
    nothing = found.summary("sparseness", "b")
    assert math.isnan(nothing.mean)
    assert nothing[3:] == (0, 100)
    assert str(nothing) == "- (100 NaN)"


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 2**5),
        ([-1, -2, -3, -4, -5, -6], 2 / 2**6),
        ([1, -2, 3, 4, 5, 6], 2 * 3 / 2**6),  # Signs with a sum of 2 or less: none, {1}, {2}.
        ([0, 0, 0], 1.0),
        ([2], math.nan),
    ],
)
def test_the_paired_test_of_known_numbers(differences, p):
    rows = [[10.0 + each, 10.0] for each in differences]
    found = made([*rows, [math.nan, 3.0]]).difference("sparseness", "a", "b")
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.low <= found.mean <= found.high
    assert found.number == len(differences)
    assert found.p == pytest.approx(p, nan_ok=True)


def test_which_is_best():
    table = made([[0.1, 0.5, math.nan], [0.3, 0.1, math.nan]], "abc")
    assert table.ranked("sparseness") == ["b", "a"]
    assert table.best("sparseness") == "b"
    lower = made([[0.1, 0.5], [0.3, 0.1]], metric="flipping_auc_morf")
    assert lower.ranked("flipping_auc_morf") == ["a", "b"]
    assert "| a | **0.2" in str(lower)
    with pytest.raises(InputError, match="no best way"):
        made([[math.nan, math.nan]]).best("sparseness")


def test_csv(every, tmp_path):
    every.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * len(WAYS) * len(BY_HAND)
    for row in rows:
        assert float(row["value"]) == every.values(row["metric"], row["way"])[int(row["image"])]


def test_the_picture_shows_heatmaps_and_curves(every, tmp_path):
    pytest.importorskip("matplotlib")
    sizes = []
    for count in (1, 2):
        Table(every.rows, every.ways, every.examples[:count]).save(tmp_path / "some.png")
        with Image.open(tmp_path / "some.png") as picture:
            sizes.append(picture.size)
            colors = set(picture.convert("RGB").get_flattened_data())
    (width, height), (wider, higher) = sizes
    assert width == wider
    assert higher > height + 200
    # The outline of the object, the ends of the heatmaps' scale, and the three curves.
    assert {(0, 255, 0), (103, 0, 31), (5, 48, 97), (31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colors


FAULTS = {
    "no images": (InputError, "no images", lambda images: {"loader": []}),
    "no image": (InputError, "no images", lambda images: {"loader": [images.x[:0]]}),
    "images": (InputError, r"a tensor \(2, 9, 8\)", lambda images: {"loader": [images.x[0]]}),
    "something else": (InputError, "not a str", lambda images: {"loader": ["x"]}),
    "sizes": (
        InputError,
        r"of one size.*\(2, 3, 3\), \(2, 9, 8\)",
        lambda images: {"loader": Listed([images.x[0], images.x[0, :, :3, :3]])},
    ),
    "classes": (InputError, r"ints \(5,\)", lambda images: {"loader": [(images.x, images.classes[:3])]}),
    "masks": (MaskError, r"not \(5, 3, 3\)", lambda images: {"loader": [(images.x, None, torch.ones(5, 3, 3))]}),
    "a mask": (
        MaskError,
        r"9 x 8 .*not \(3, 3\)",
        lambda images: {"loader": Listed([(images.x[0], 1, torch.ones(3, 3))])},
    ),
    "no masks": (
        MaskError,
        r"inside_total_ratio compares .* \(x, label, mask\)",
        lambda images: {"loader": [images.x], "names": ("inside_total_ratio",)},
    ),
    "metric": (InputError, "did you mean 'sparseness'", lambda images: {"names": ("sparsenes",)}),
    "options": (InputError, "no option 'flipping'", lambda images: {"options": {"flipping": {}}}),
    "own": (InputError, r"'own' returns one number .* not float", lambda images: {"names": {"own": lambda *_: 1.0}}),
    "composite": (CompositeError, "did you mean 'epsilon_plus'", lambda images: {"ways": ["epsilon_pls"]}),
    "a number": (CompositeError, "'it' is a int", lambda images: {"ways": {"it": 3}}),
    "two": (InputError, "two of the composites are called EpsilonPlus", lambda images: {"ways": [EpsilonPlus()] * 2}),
    "canonize": (InputError, r"canonize is True, False or both", lambda images: {"canonize": ("yes",)}),
    "batch_size": (InputError, "batch_size is a whole number", lambda images: {"batch_size": 0}),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_cannot_be_compared(what, model, images):
    kind, words, given = FAULTS[what]
    asked = {"model": model, "loader": images, "ways": WAYS, **given(images)}
    with pytest.raises(kind, match=words):
        compare(**asked)


def test_a_model_in_training_mode_and_extras_that_are_missing(model, images, monkeypatch):
    with pytest.raises(InputError, match="training"):
        compare(copy.deepcopy(model).train(), images)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"fxlrp\[evaluate\]"):
        compare(model, [], names=("flipping",))
    with pytest.raises(InputError, match="no metric 'sparsenes'; did you mean 'sparseness'"):
        made([[1, 2]]).values("sparsenes", "a")
    with pytest.raises(InputError, match=r"no way of explaining 'c'\. It has: a, b"):
        made([[1, 2]]).summary("sparseness", "c")
