"""`fxlrp evaluate` and `fxlrp search`: guards against work before an error, numbers of another run, and lost work."""

from __future__ import annotations

import csv
import json
import re
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torchvision import transforms

import fxlrp
from fxlrp.cli import evaluate, main, measuring, search
from fxlrp.evaluation import SPACES, ImageFolder
from fxlrp.evaluation.measures import MEASURES
from fxlrp.evaluation.several import BASELINES
from fxlrp.metrics import FILLS
from fxlrp.testing import trained
from fxlrp.zoo import LoadedModel

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

SIDE = 16
NAMES = ["cat", "dog", "lynx"]


class Tiny(nn.Sequential):
    def __init__(self):
        head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), *head)


@pytest.fixture
def loaded(monkeypatch):
    """The model that all commands load."""
    seen = transforms.Resize(20), transforms.CenterCrop(SIDE)
    transform = transforms.Compose([*seen, transforms.ToTensor(), transforms.Normalize([0.5], [0.25])])
    half = torch.full((1, 3, 1, 1), 0.5)
    found = LoadedModel(trained(Tiny()).float().eval(), transform, half, half / 2, NAMES)
    monkeypatch.setattr("fxlrp.zoo.load", lambda *_, **__: found)
    return found


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, and one of none; masks and boxes of two of them."""
    for name in ("cat/a", "cat/b", "dog/c", "d"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((30, 24), 90).convert("RGB").save(path)
    mask = np.zeros((24, 30), bool)
    mask[4:16, 6:20] = True
    for name in ("cat/a", "dog/c"):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    image = {"id": 1, "file_name": "dog/c.png", "width": 30, "height": 24}
    boxes = {"images": [image], "annotations": [{"image_id": 1, "bbox": [6, 4, 14, 12]}]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # Which takes it for inpainting alone.

    def command(name, *words, images="images"):
        asked = [name, folder / images, "--model", "torchvision:any", "-o", folder / "out", "--fill", "mean", *words]
        return CliRunner().invoke(main, list(map(str, asked)))

    return command


def fails(result, *words):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_evaluate(run, loaded, folder):
    words = ("--composite", "epsilon_plus", "--composite", "random", "--not-canonized", "--batch-size", 3)
    result = run("evaluate", "--masks", folder / "masks", *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "4 images, 2 with masks, of cat (0), dog (1), 1 explained for the class that the model sees"
    head = next(line for line in lines if "better" in line)
    assert re.split("  +", head.strip()) == ["better", "epsilon_plus", "random", "epsilon_plus, not canonized"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["heatmaps.png", "rows.jsonl", "table.csv"]
    with Image.open(folder / "out" / "heatmaps.png") as picture:
        assert min(picture.size) > 500
    data = ImageFolder(folder / "images", loaded.transform, masks=folder / "masks", classes=NAMES)
    bounds = tuple(bound.flatten() for bound in loaded.bounds)
    flipping = {"fill": "mean", "patch": 8, "bounds": bounds}
    names = ("flipping", "sparseness", "inside_total_ratio", "relevance_mass_accuracy", "relevance_rank_accuracy")
    ways = ["epsilon_plus", "random"]
    expected = fxlrp.compare(
        loaded.model, data, ways, names, canonize=(True, False), options={"flipping": flipping}, progress=False
    )
    with (folder / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == set(expected.metrics)
    for row in rows:
        value = expected.values(row["metric"], row["way"])[int(row["image"])]
        assert float(row["value"]) == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True)
    for metric in expected.metrics:
        line = next(line for line in lines if line.startswith(f"{metric}  "))
        assert line.count(" *") == 1
        assert line.count("(2 NaN)") == (3 if "inside" in metric or "accuracy" in metric else 0)
        first, second = expected.ranked(metric)[:2]
        assert any(line.startswith(f"{metric}: {first} - {second} = ") and "p = " in line for line in lines)


def test_evaluate_goes_on_where_it_was_interrupted(run, loaded, folder, monkeypatch):
    """And says of another model, or other images, that the folder holds something else."""
    measured, plain = [], fxlrp.metrics.sparseness

    def counted(relevance, **options):
        measured.append(len(relevance))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return plain(relevance, **options)

    monkeypatch.setattr("fxlrp.metrics.sparseness", counted)
    words = ("--metric", "sparseness", "--composite", "random", "--batch-size", 1)
    result = run("evaluate", *words)
    assert result.exit_code == 130
    assert "goes on with what is in" in result.output
    assert not (folder / "out" / "table.csv").exists()
    measured.clear()
    monkeypatch.setattr("fxlrp.metrics.sparseness", lambda *a, **k: measured.append(1) or plain(*a, **k))
    result = run("evaluate", *words)
    assert result.exit_code == 0, result.output
    assert len(measured) == 2
    assert len((folder / "out" / "rows.jsonl").read_text().splitlines()) == 5
    fails(run("evaluate", *words, "--target", "LYNX"), "rows.jsonl holds another evaluation", "target")
    with torch.no_grad():
        loaded.model[0].weight.add_(0.1)
    fails(run("evaluate", *words), "rows.jsonl holds another evaluation", "model")


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_search(sampler, run, loaded, folder):
    words = ("--boxes", folder / "boxes.json", "--metric", "inside_total_ratio", "--sampler", sampler, "--seed", 2)
    result = run("search", *words, "--trials", 2)
    assert result.exit_code == 0, result.output
    result = run("search", *words, "--trials", 4)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["contour.png", "study.log"]
    head, best, code, end = result.stdout.splitlines()
    assert head == "4 images, 1 with masks, of cat (0), dog (1), 1 explained for the class that the model sees"
    assert best.startswith("the best of 4 trials: gamma ")
    assert end == f"{folder / 'out'} holds contour.png and study.log."
    # The line makes the composite whose heatmaps have the score.
    data = ImageFolder(folder / "images", loaded.transform, boxes=folder / "boxes.json", classes=NAMES)
    composite = eval(code, {"fxlrp": fxlrp, "torch": torch})
    table = fxlrp.compare(loaded.model, data, {"best": composite}, ("inside_total_ratio",), progress=False)
    score = float(best.rpartition(" ")[2])
    assert table.summary("inside_total_ratio", "best").mean == pytest.approx(score, rel=1e-3)


NOTHING = {
    "no folder": ("evaluate", (), {"images": "none"}, ("none is not a folder",)),
    "composite": ("evaluate", ("--composite", "epsilon_pluss"), {}, ("did you mean 'epsilon_plus'?",)),
    "metric": ("evaluate", ("--metric", "flippin"), {}, ("no metric 'flippin'; did you mean 'flipping'?",)),
    "masks": ("evaluate", ("--metric", "inside_total_ratio"), {}, ("give --masks or --boxes",)),
    "no masks": ("evaluate", ("--masks", "nowhere"), {}, ("nowhere is not a folder",)),
    "OpenCV": ("evaluate", ("--fill", "inpaint"), {}, ("fxlrp[evaluate]",)),
    "target": ("evaluate", ("--target", "lion"), {}, ("no class 'lion'",)),
    "space": ("search", ("--space", "tutoria"), {}, ("did you mean 'tutorial'?",)),
    "direction": ("search", ("--metric", "flipping"), {}, ("no metric 'flipping' to search by",)),
    "search without masks": ("search", ("--metric", "inside_total_ratio"), {}, ("give --masks or --boxes",)),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_is_wrong_is_said_in_a_line(what, run, loaded, folder, monkeypatch):
    command, words, where, said = NOTHING[what]
    monkeypatch.setattr("fxlrp.evaluation.several.Several.__call__", lambda *_: pytest.fail("there was work before"))
    fails(run(command, *words, **where), *said)


def test_an_output_that_cannot_be_written_is_told_before_the_work(run, folder, monkeypatch):
    monkeypatch.setattr("fxlrp.zoo.load", lambda *_, **__: pytest.fail("there was work before the error"))
    for command, name in (("evaluate", "table.csv"), ("evaluate", "heatmaps.png"), ("search", "contour.png")):
        (folder / "out" / name).mkdir(parents=True, exist_ok=True)
        fails(run(command), f"cannot write {folder / 'out' / name}: it is a folder")
        (folder / "out" / name).rmdir()


def test_the_names_in_the_help_are_all_there_are():
    """They stand there once more: `--help` does not wait for torch."""
    assert set(evaluate.METRICS) == set(MEASURES)
    assert set(evaluate.BASELINES) == set(BASELINES)
    assert set(search.SPACES) == set(SPACES)
    assert set(measuring.FILLS) == set(FILLS)
    for name in evaluate.COMPOSITES:
        assert name in BASELINES or fxlrp.composites.resolve(name)
