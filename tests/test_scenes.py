"""The scenes of benchmarks/scenes.py are what they say: masks and boxes are the object's, labels balanced, seeds kept.

The kind of fault: a ground truth that is none. A mask that is larger or smaller than what was painted, a box beside it,
an answer that depends on another object too, test photographs in training.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import fxlrp
from fxlrp.testing.assertions import relative

for package in ("mlxtend", "skimage", "sklearn"):
    pytest.importorskip(package, reason=f"the scenes are made with {package}")

FOLDER = Path(__file__).parents[1] / "benchmarks"
KINDS = ("digits", "shapes", "several", "questions", "focus", "pointing")
ONE_CROP = ("digits", "shapes", "several", "questions")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def make(module):
    scenes = module("scenes")
    return lambda kind, split="train", count=24, **options: scenes.KINDS[kind](split, count, size=48, **options)


def image_of(scene):
    return scene.x[0] if isinstance(scene.x, tuple) else scene.x


def same(a, b) -> bool:
    pairs = zip((image_of(a), a.mask, a.boxes), (image_of(b), b.mask, b.boxes), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_masks(make, kind):
    for scene in make(kind):
        image = image_of(scene)
        assert image.shape == (3, *scene.mask.shape)
        assert image.dtype == torch.float32
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert scene.mask.dtype == torch.bool
        assert scene.mask.any()
        within = torch.zeros_like(scene.mask)
        for left, top, right, bottom in scene.boxes.tolist():
            inside = scene.mask[top:bottom, left:right]
            # A box is tight: each of its sides has a pixel of the mask.
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            within[top:bottom, left:right] = True
        assert not (scene.mask & ~within).any()


@pytest.mark.parametrize("kind", ["digits", "shapes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_mask_is_where_the_object_was_painted(module, make, kind, split):
    """Of one object, nothing else differs from the photograph, and all of it does."""
    scenery, scenes = module("scenery"), make(kind, split)
    for index, scene in enumerate(scenes):
        behind = scenery.crop(scenes.generator(index), split, 48)
        differs = (scene.x != behind).any(0)
        assert torch.equal(scene.x[:, ~scene.mask], behind[:, ~scene.mask])
        assert differs[scene.mask].float().mean() > 0.99


@pytest.mark.parametrize("kind", ["several", "questions"])
def test_the_answer_depends_on_the_object_of_the_mask_alone(module, make, kind):
    """The mask is in the colour that was asked for; no other painted pixel is; objects do not touch."""
    scenery, scenes = module("scenery"), make(kind)
    colours, objects = torch.tensor(list(scenery.COLOURS.values())), []
    for index, scene in enumerate(scenes):
        image = image_of(scene)
        asked = int(scene.x[1].argmax()) if kind == "questions" else list(scenery.COLOURS).index("red")
        painted = (image != scenery.crop(scenes.generator(index), "train", 48)).any(0)
        assert not (scene.mask & ~painted).float().mean() > 0.001
        directions = torch.nn.functional.normalize(image, dim=0).flatten(1).T @ torch.nn.functional.normalize(colours).T
        nearest = directions.argmax(1).view(48, 48)
        of_colour = nearest == asked
        assert of_colour[scene.mask].float().mean() > 0.99
        assert of_colour[painted & ~scene.mask].float().mean() < 0.01
        around = torch.nn.functional.max_pool2d(scene.mask[None].float(), 3, 1, 1)[0] > 0
        assert not (painted & around & ~scene.mask).any()
        objects.append(len(nearest[painted].unique(return_counts=True)[1].gt(20).nonzero()))
    assert min(objects) >= 2
    assert max(objects) >= 4


@pytest.mark.parametrize("name", ["disc", "square", "triangle", "cross", "ring", "star"])
def test_shapes_are_told_apart_by_their_pixels(module, name):
    """The share of its square that each covers, by closed forms; a ring has a hole, a cross and a star have arms."""
    scenery = module("scenery")
    line = (np.arange(400) + 0.5) / 200 - 1
    v, u = np.meshgrid(line, line, indexing="ij")
    inside = scenery.SHAPES[name](u, v)
    pi = torch.pi
    shares = {
        "disc": pi * 0.8 / 4,
        "square": 0.72**2,
        "triangle": 1.55**2 / 1.9 / 4,
        "cross": (2 * 1.8 * 0.54 - 0.54**2) / 4,
        "ring": pi * (0.92**2 - 0.44**2) / 4,
        "star": None,
    }
    share = float(inside.mean())
    assert 0.15 < share < 0.65
    if shares[name] is not None:
        assert share == pytest.approx(shares[name], abs=0.01)
    assert bool(inside[200, 200]) == (name != "ring")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_balanced_and_right(make, kind):
    scenes = make(kind, count=30)
    labels = torch.tensor([scene.label for scene in scenes])
    counts = labels.bincount(minlength=len(scenes.classes))
    assert len(counts) == len(scenes.classes)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize(("kind", "tiles"), [("focus", 2), ("pointing", 1)])
def test_mosaics_have_the_class_in_their_mask_and_not_beside_it(make, kind, tiles):
    """Each tile is drawn anew, by itself, for its class: what the mask shows is the label's, nothing else is."""
    scenes = make(kind)
    for index, scene in enumerate(scenes):
        assert scene.mask.float().mean() == tiles / 4
        assert len(scene.boxes) == tiles
        random = scenes.generator(index)
        others = random.permutation([i for i in range(6) if i != scene.label])[: 4 - tiles]
        order = random.permutation([*[scene.label] * tiles, *others])
        assert len(set(order.tolist())) == 5 - tiles
        for place, label in enumerate(order):
            top, left = place // 2 * 48, place % 2 * 48
            of_tile = scenes.tiles.draw(random, int(label))
            assert torch.equal(scene.x[:, top : top + 48, left : left + 48], of_tile.x)
            assert bool(scene.mask[top : top + 48, left : left + 48].all()) == (label == scene.label)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_made_by_its_seed_split_and_number_alone(make, kind):
    scenes = make(kind)
    assert same(scenes[7], make(kind)[7])
    assert same(scenes[7], make(kind, count=8)[7])
    assert not torch.equal(image_of(scenes[7]), image_of(make(kind, seed=1)[7]))
    assert not torch.equal(image_of(scenes[7]), image_of(make(kind, "test")[7]))
    assert len({image_of(scene).numpy().tobytes() for scene in scenes}) == len(scenes)


def test_test_photographs_and_digits_are_in_no_training_scene(module):
    scenery = module("scenery")
    for parts in (scenery.photographs, lambda split: [each for of_class in scenery.digits(split) for each in of_class]):
        train, test = ({part.numpy().tobytes() for part in parts(split)} for split in ("train", "test"))
        assert train
        assert test
        assert not train & test
    assert sum(map(len, scenery.digits("train"))) == 4000
    assert {len(of_class) for of_class in scenery.digits("test")} == {100}


def test_all_at_once(make):
    (images, questions), labels, masks = make("questions", count=5).tensors()
    assert images.shape == (5, 3, 48, 48)
    assert questions.sum(1).tolist() == [1.0] * 5
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert masks.shape == (5, 48, 48)
    scenes = make("shapes", count=3)
    assert torch.equal(scenes.tensors()[0][2], scenes[2].x)
    assert [scene.label for scene in scenes] == [0, 1, 2]
    with pytest.raises(IndexError):
        scenes[3]


def test_an_unknown_split(make):
    with pytest.raises(ValueError, match="train, test, not 'validation'"):
        make("shapes", "validation")


NETWORKS = ("vgg", "vgg_plain", "resnet", "densenet", "efficientnet", "relation")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vgg_plain" else pytest.mark.slow) for name in NETWORKS]
)
def test_networks_are_explained(module, name):
    """The network's own output, and relevance of which all is accounted for."""
    torch.manual_seed(0)
    model = fxlrp.testing.trained(module("scene_networks").NETWORKS[name](6).double()).eval()
    image, question = torch.rand(1, 3, 32, 32, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[:1]
    inputs = (image, question) if name == "relation" else (image,)
    twin = fxlrp.convert(model, "epsilon_plus")
    assert fxlrp.audit(twin, inputs).leak < 1e-9
    assert relative(twin(inputs).output, model(*inputs)) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_small_and_take_scenes(module, make, name):
    model = module("scene_networks").NETWORKS[name](6).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 8e5
    scenes = make("questions" if name == "relation" else "shapes", count=2)
    assert module("scene_networks").accuracy(model, scenes) in (0.0, 0.5, 1.0)


def test_training_learns(module, make):
    """A network of two convolutions tells two dozen scenes that it was trained on apart, the same way each time."""
    networks, scenes = module("scene_networks"), make("shapes")
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 12, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(12, 24, 5, 2), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(24 * 81, 6))
        before = networks.accuracy(model, scenes)
        networks.train(model, scenes, epochs=20, batch=12)
        assert networks.accuracy(model, scenes) > 0.9 > before
        assert not model.training
        weights.append(next(model.parameters()).detach().clone())
    assert torch.equal(*weights)
