"""`fxlrp train`: what is read, what is written, and that an interruption changes nothing.

Guards against work that is lost: to a second process, a full disk, a broken checkpoint or image, numbers that are not
finite, or names that are taken for markup.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torchvision.models import resnet18

import fxlrp
from fxlrp import cli, zoo
from fxlrp.errors import InputError, MaskError
from fxlrp.io import files
from fxlrp.io.images import read_mask
from fxlrp.io.lock import alone_in
from fxlrp.isnet.variants import Settings, epsilon_composite
from fxlrp.training.data import MaskedImages, Sample, read_folder, split
from fxlrp.training.heatmaps import background_share
from fxlrp.training.log import COLUMNS
from fxlrp.training.run import Run

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

SIZE = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
PER_CLASS, UNMASKED = 8, 2


class Net(nn.Module):
    """A small classifier that also draws random numbers."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return self.fc(self.drop(x.mean((2, 3))))


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    def library(name, pretrained, classes):
        model = Net(classes)
        if pretrained:
            nn.init.constant_(model.conv1.weight, 0.125)
        return model, None, MEAN, STD

    monkeypatch.setitem(zoo.by_name._LIBRARIES, "tests", library)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def paint(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with a bright spot in the foreground, and a corner in the background that gives the class away."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("apple", "pear")):
        for i in range(PER_CLASS):
            image = generator.integers(0, 90, (SIZE, SIZE, 3))
            image[5:9, 4 + i % 3 : 8] += 120 + 30 * label
            image[0, 15 * label] = 255
            paint(folder / "images" / name / f"{i}.png", image)
            if i < PER_CLASS - UNMASKED:
                mask = np.zeros((SIZE, SIZE))
                mask[5:9, 4 + i % 3 : 8] = 255
                paint(folder / "masks" / name / f"{i}.png", mask)
    return folder


OPTIONS = {
    "model": "tests:net",
    "size": SIZE,
    "batch-size": 4,
    "calibration-epochs": 1,
    "workers": 0,
    "validation": 0.25,
}


def run(data, output, *flags, **options):
    options = OPTIONS | {"epochs": 1, "output": output} | {k.replace("_", "-"): v for k, v in options.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return CliRunner().invoke(cli.main, ["train", str(data / "images"), str(data / "masks"), *words, *flags])


def parameters(output):
    return torch.load(output / "model.pt", weights_only=True)


def log(output):
    with (output / "log.csv").open() as file:
        return list(csv.DictReader(file))


def succeeds(result):
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def fails(result, *words):
    assert isinstance(result.exception, SystemExit), (result.output, result.exception)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """One training of two epochs, that several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            zoo.by_name._LIBRARIES, "tests", lambda name, pretrained, classes: (Net(classes), None, MEAN, STD)
        )
        output = tmp_path_factory.mktemp("trained") / "new" / "folder"
        return output, succeeds(run(data, output, epochs=2))


def test_what_is_written(data, trained):
    output, printed = trained
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint.pt",
        "heatmaps.png",
        "log.csv",
        "model.pt",
        "settings.json",
    ]
    assert "16 images of 2 classes, 12 with a mask." in printed
    Net(2).load_state_dict(parameters(output))
    with (output / "log.csv").open() as file:
        assert file.readline().strip() == ",".join(COLUMNS)
    rows = log(output)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert values["total"] == pytest.approx(0.1 * values["classification"] + 0.9 * values["heatmap"], rel=1e-4)
        assert values["heatmap"] == pytest.approx(values["background"] + values["foreground"], rel=1e-4)
        assert f"{values['validation_background']:.1%}" in printed
    settings = json.loads((output / "settings.json").read_text())
    assert settings["classes"] == ["apple", "pear"]
    assert settings["mean"] == list(MEAN)
    assert settings["std"] == list(STD)
    low, high = settings["ranges"]["input"]
    assert 0 < low < high
    assert settings["epsilon"] == 0.01
    with Image.open(output / "heatmaps.png") as image:
        # Four columns: two classes, two validation images with a mask in each.
        assert len(split(read_folder(data / "images", data / "masks").samples, 0.25, 0)[1]) == 6
        assert image.width > 4 * 390
        colors = {color for _, color in image.convert("RGB").getcolors(image.width * image.height)}
    assert (0x1B, 0x9E, 0x77) in colors  # The outline.


def check_validation(data, output, model):
    """The last line of the log, against what is computed of the model that was written, image by image."""
    model.load_state_dict(parameters(output))
    model.eval()
    settings = json.loads((output / "settings.json").read_text())
    mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
    _, held = split(read_folder(data / "images", data / "masks").samples, 0.25, 0)
    rules = epsilon_composite(Settings(settings["epsilon"], None, (0, 1), "bounded", 0.01, flex=False))
    twin = fxlrp.convert(model, rules)
    hits, shares = [], []
    for sample in held:
        pixels = torch.from_numpy(np.array(Image.open(sample.image))) / 255
        x = ((pixels - mean) / std).permute(2, 0, 1)[None]
        hits.append(float(model(x).argmax() == sample.label))
        if sample.mask is not None:
            relevance = twin(x, sample.label).relevance[0].abs().sum(0)
            outside = torch.from_numpy(np.array(Image.open(sample.mask)) == 0)
            shares.append(float(relevance[outside].sum() / relevance.sum()))
    last = log(output)[-1]
    assert 0 < len(shares) < len(hits)
    assert float(last["validation_accuracy"]) == pytest.approx(np.mean(hits), abs=1e-6)
    assert float(last["validation_background"]) == pytest.approx(np.mean(shares), rel=1e-3)


def test_validation_is_of_the_model_that_is_written(data, trained):
    check_validation(data, trained[0], Net(2))


def test_an_epoch_is_that_of_a_plain_loop(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "drop", nn.Identity(), raising=False)
    start = Net(2)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    options = {"weights": tmp_path / "start.pt", "lr": 0.1, "p": 0.6, "d": 0.7, "w1": 2.0, "epsilon": 0.05}
    succeeds(run(data, tmp_path / "out", seed=3, **options))
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())

    samples, _ = split(read_folder(data / "images", data / "masks").samples, 0.25, 3)
    assert len(samples) == 10
    images = MaskedImages(samples, SIZE, *(torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD)))
    model = start.train()
    isnet, loss = fxlrp.ISNet(model, epsilon=0.05), fxlrp.ISNetLoss(0.6, 0.7, 2.0, 1.0, settings["ranges"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(3))
    totals = []
    for batch in order[:8].view(2, 4).tolist():
        x, labels, masks, has_mask = default_collate([images[i] for i in batch])
        found = loss(isnet(x), labels, masks, has_mask)
        optimizer.zero_grad()
        found.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(found.total.item())
    torch.testing.assert_close(parameters(tmp_path / "out"), dict(model.state_dict()), rtol=1e-4, atol=1e-6)
    assert float(log(tmp_path / "out")[0]["total"]) == pytest.approx(np.mean(totals), rel=1e-4)


def test_an_interruption_changes_nothing(data, tmp_path, monkeypatch):
    options = {"variant": "stochastic", "lr": 0.05}
    succeeds(run(data, tmp_path / "whole", epochs=2, **options))

    # Interrupted in the midst of the second epoch, when the model is no longer that of the checkpoint.
    calls, forward = [], fxlrp.ISNetLoss.forward

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fxlrp.ISNetLoss, "forward", interrupted)
        result = run(data, tmp_path / "parts", epochs=5, **options)
    assert result.exit_code == 130
    assert "The same command continues" in result.output
    assert [row["epoch"] for row in log(tmp_path / "parts")] == ["1"]
    one = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["model"]
    printed = succeeds(run(data, tmp_path / "parts", epochs=2, **options))
    assert "Continuing after epoch 1" in printed
    assert "Calibrating" not in printed

    whole, parts = parameters(tmp_path / "whole"), parameters(tmp_path / "parts")
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    assert not torch.equal(one["fc.weight"], whole["fc.weight"])
    for mine, theirs in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert {**mine, "seconds": ""} == {**theirs, "seconds": ""}


def test_half_precision_goes_on_with_its_scale(data, tmp_path, monkeypatch):
    scalers = []

    def scaled(precision):
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr("fxlrp.training.train._accelerator", scaled)
    succeeds(run(data, tmp_path))
    succeeds(run(data, tmp_path, epochs=2))
    # It doubles with each of the two steps of an epoch.
    assert [scaler.get_scale() for scaler in scalers] == [4 * 2**2, 4 * 2**4]


def test_other_settings(data, trained):
    output, _ = trained
    fails(run(data, output, epochs=2, lr=0.02), "lr was 0.001, is 0.02", "--restart", "--output")
    fails(run(data, output, "--deep-supervision", epochs=2), "deep_supervision was False, is True")


def test_restart(data, trained, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr("fxlrp.training.train.calibrate", interrupted)
        result = run(data, tmp_path, "--restart", lr=0.02)
    assert result.exit_code == 130
    assert "Nothing was saved" in result.output
    # What was there before is of no account: the first training again.
    assert "Calibrating" in succeeds(run(data, tmp_path, "--restart", epochs=2))
    fresh, again = parameters(trained[0]), parameters(tmp_path)
    assert all(torch.equal(value, again[name]) for name, value in fresh.items())


def test_a_loss_that_is_not_finite(data, tmp_path, monkeypatch):
    forward = fxlrp.ISNetLoss.forward
    monkeypatch.setattr(
        fxlrp.ISNetLoss,
        "forward",
        lambda self, *arguments: (out := forward(self, *arguments))._replace(total=out.total * torch.nan),
    )
    fails(run(data, tmp_path), "the loss is nan in epoch 1", "--lr")
    assert log(tmp_path) == []
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in saved.values())


def test_random_weights_are_initial_ones(trained):
    # Four short steps away from them; those of `zoo.load` are anywhere between a half and one and a half.
    assert (parameters(trained[0])["norm.weight"] - 1).abs().max() < 0.01


def test_without_validation_and_with_every_option(data, tmp_path):
    options = {"validation": 0, "variant": "dual", "first_layer": "zbox", "precision": "bf16", "workers": 1}
    succeeds(run(data, tmp_path, "--deep-supervision", weights="pretrained", lr=0, **options))
    (row,) = log(tmp_path)
    assert row["validation_accuracy"] == row["validation_background"] == ""
    assert float(row["heatmap"]) > 0
    assert (tmp_path / "heatmaps.png").exists()
    assert len(json.loads((tmp_path / "settings.json").read_text())["ranges"]["input"]) == 2
    # What is pretrained is taken, but for the last layer, which is of other classes.
    assert torch.equal(parameters(tmp_path)["conv1.weight"], torch.full((4, 3, 3, 3), 0.125))
    assert parameters(tmp_path)["fc.weight"].shape == (2, 6)


@pytest.mark.slow
def test_a_network_of_torchvision(data, tmp_path):
    options = {"model": "torchvision:resnet18", "calibration_epochs": 0, "size": 32, "validation": 0}
    succeeds(run(data, tmp_path, **options))
    resnet18(num_classes=2).load_state_dict(parameters(tmp_path))


def test_masks_that_are_missing(data):
    folder = read_folder(data / "images", data / "masks")
    assert folder.classes == ["apple", "pear"]
    assert [sample.label for sample in folder.samples] == [0] * PER_CLASS + [1] * PER_CLASS
    assert [sample.mask is None for sample in folder.samples] == ([False] * 6 + [True] * 2) * 2
    images = MaskedImages(folder.samples, 8, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    x, label, mask, has_mask = images[0]
    assert x.shape == (3, 8, 8)
    assert 0 <= x.min() < x.max() <= 1
    assert (label, has_mask) == (0, True)
    # Rows 5 to 8, columns 4 to 7, at half the size: cells with any of them.
    assert mask.nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3)]
    _, label, mask, has_mask = images[15]
    assert (label, has_mask) == (1, False)
    assert not mask.any()


def test_names_and_endings(tmp_path):
    grey = np.full((6, 6), 200)
    for name in ("b/deep/1.JPG", "b/2.bmp", "a/.hidden.png", "a/x.y.png", ".c/1.png"):
        paint(tmp_path / "images" / name, grey)
    (tmp_path / "images" / "a" / "notes.txt").write_text("no image")
    for name in ("b/deep/1.png", "a/x.y.tif", "a/none.png"):
        paint(tmp_path / "masks" / name, grey)
    folder = read_folder(tmp_path / "images", tmp_path / "masks")
    assert folder.classes == ["a", "b"]
    assert folder.unused == 1
    found = [(s.image.name, s.label, s.mask and s.mask.name) for s in folder.samples]
    assert found == [("x.y.png", 0, "x.y.tif"), ("2.bmp", 1, None), ("1.JPG", 1, "1.png")]


def test_what_is_foreground(tmp_path):
    def reads(image, expected, ending="png"):
        image.save(tmp_path / f"mask.{ending}")
        assert read_mask(tmp_path / f"mask.{ending}").tolist() == [expected]

    def grey(*values, dtype=np.uint8):
        return Image.fromarray(np.array([values], dtype=dtype))

    reads(grey(0, 127, 128, 255), [False, False, True, True])
    reads(grey(0, 1, 2), [False, True, True])
    reads(grey(0, 0, 0), [False, False, False])
    reads(grey(0, 300, 2**15, 2**16 - 1, dtype=np.uint16), [False, False, True, True])
    reads(grey(0, 3, dtype=np.uint16), [False, True])
    reads(grey(0.0, 1.0, dtype=np.float32), [False, True], "tif")
    reads(grey(0, 255).convert("1"), [False, True])
    reads(Image.merge("RGB", [grey(0, 250)] * 3), [False, True])
    labels = grey(0, 1, 255).convert("P")
    labels.putpalette([0, 0, 0, 128, 0, 0] + [10] * 762)
    reads(labels, [False, True, True])


def test_split():
    samples = [Sample(f"{i}", i % 3, None if i % 2 else "mask") for i in range(60)]
    samples.append(Sample("alone", 3, None))
    training, validation = split(samples, 0.2, 0)
    assert sorted(training + validation, key=samples.index) == samples
    for label in range(3):
        assert sum(s.label == label and s.mask is None for s in validation) == 2
        assert sum(s.label == label and s.mask is not None for s in validation) == 2
    assert split(samples, 0.2, 0) == (training, validation)
    assert split(samples, 0.2, 1)[1] != validation
    assert split(samples, 0, 0)[1] == []
    assert len(split(samples, 0.001, 0)[1]) == 6


def test_background_share():
    relevance = torch.tensor([[[[1.0, -2.0]], [[-1.0, 2.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    masks = torch.tensor([[[True, False]], [[True, False]]])
    assert background_share(relevance, masks).tolist() == pytest.approx([4 / 6, 0])


@pytest.fixture
def folders(tmp_path):
    """A good pair of folders, for each test to spoil."""
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        paint(tmp_path / "images" / name, np.zeros((20, 30, 3)))
        paint(tmp_path / "masks" / name, np.full((10, 15), 255))
    read_folder(tmp_path / "images", tmp_path / "masks")
    return tmp_path


def no_images(folder):
    for path in (folder / "images").rglob("*.png"):
        path.unlink()


def loose_image(folder):
    paint(folder / "images" / "loose.png", np.zeros((4, 4)))


def one_class(folder):
    (folder / "images" / "b" / "1.png").unlink()


def broken_image(folder):
    (folder / "images" / "b" / "1.png").write_text("no image")


def no_masks(folder):
    for path in (folder / "masks").rglob("*.png"):
        path.unlink()


def masks_elsewhere(folder):
    (folder / "masks").rename(folder / "inner")
    (folder / "inner").rename(folder / "masks")
    for path in list((folder / "masks").rglob("*.png")):
        path.rename(folder / "masks" / f"{path.parent.name}_{path.name}")


def two_masks(folder):
    paint(folder / "masks" / "a" / "1.bmp", np.zeros((10, 15)))


def other_aspect(folder):
    paint(folder / "masks" / "a" / "2.png", np.zeros((15, 15)))


def broken_mask(folder):
    (folder / "masks" / "a" / "2.png").write_text("no mask")


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (no_images, InputError, ("<class>/<name>.png", "there are none")),
        (loose_image, InputError, ("loose.png lies beside the classes",)),
        (one_class, InputError, ("one class only, 'a'",)),
        (broken_image, InputError, ("1.png is not an image",)),
        (no_masks, MaskError, ("no mask of any of the 3 images", "masks/a/1.png")),
        (masks_elsewhere, MaskError, ("no mask of any of the 3 images",)),
        (two_masks, MaskError, ("1.bmp", "1.png", "same image")),
        (other_aspect, MaskError, ("2.png is 15 x 15 and its image 30 x 20",)),
        (broken_mask, MaskError, ("2.png is not an image",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders_that_are_of_no_use(folders, spoil, kind, words):
    spoil(folders)
    with pytest.raises(kind) as raised:
        read_folder(folders / "images", folders / "masks")
    assert all(word in str(raised.value) for word in words), raised.value


def test_errors_of_the_command(data, tmp_path, monkeypatch):
    fails(run(tmp_path / "nowhere", tmp_path), "nowhere", "is not a folder")
    fails(run(data, tmp_path, precision="fp16"), "--precision fp16 cannot be had")
    fails(run(data, tmp_path, model="other:net"), "torchvision:NAME")
    fails(run(data, tmp_path, p=1.5), "p is 1.5")
    fails(run(data, tmp_path, epsilon=0), "epsilon is 0")
    (tmp_path / "file").write_text("")
    fails(run(data, tmp_path / "file" / "out"), "cannot write")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        fails(run(data, tmp_path), "matplotlib", "fxlrp[train]")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    fails(run(data, tmp_path), "accelerate", "fxlrp[train]")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def no_work(monkeypatch):
    """Whatever takes long fails the test."""

    def worked(*_, **__):
        pytest.fail("there was work before the error")

    monkeypatch.setattr("fxlrp.training.train.calibrate", worked)
    monkeypatch.setattr(Run, "epoch", worked)


def test_a_second_process_writes_nothing(data, trained, no_work):
    output, _ = trained
    before = contents(output)
    with alone_in(output):
        fails(run(data, output, epochs=3), "is in use by process", str(os.getpid()), "another folder")
        fails(run(data, output, "--restart", epochs=3), "is in use by process")
    assert contents(output) == before


def missing_part(saved):
    del saved["optimizer"]


def other_type(saved):
    saved["rows"] = "rows"


def no_conditions(saved):
    saved["conditions"] = {}


def other_shape(saved):
    saved["model"]["fc.weight"] = torch.zeros(3, 3)


def other_rows(saved):
    saved["rows"][0] = {}


def other_ranges(saved):
    saved["ranges"] = {"input": "x"}


def ruined_weights(saved):
    saved["model"]["norm.running_var"][0] = torch.nan


def other_optimizer(saved):
    saved["optimizer"] = {"state": {}, "param_groups": []}


def spoiled(spoil):
    def write(path):
        saved = torch.load(path, weights_only=True)
        spoil(saved)
        torch.save(saved, path)

    return write


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "is broken, or no checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is broken, or no checkpoint"),
        (lambda path: path.write_text("no checkpoint"), "is broken, or no checkpoint"),
        (lambda path: torch.save(Net(2).state_dict(), path), "is no checkpoint of fxlrp train"),
        (lambda path: torch.save([1], path), "is no checkpoint of fxlrp train"),
        (spoiled(missing_part), "is no checkpoint of fxlrp train"),
        (spoiled(other_type), "is no checkpoint of fxlrp train"),
        (spoiled(no_conditions), "other settings"),
        (spoiled(other_shape), "does not fit the model"),
        (spoiled(other_optimizer), "does not fit the model"),
        (spoiled(other_rows), "is no checkpoint of fxlrp train"),
        (spoiled(other_ranges), "does not fit the model"),
        (spoiled(ruined_weights), "norm.running_var is not finite"),
    ],
    ids=[
        "empty",
        "cut",
        "text",
        "weights",
        "list",
        "part",
        "type",
        "conditions",
        "shape",
        "optimizer",
        "rows",
        "ranges",
        "nan",
    ],
)
def test_a_checkpoint_that_is_of_no_use(data, trained, tmp_path, no_work, spoil, words):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "checkpoint.pt")
    before = contents(tmp_path)
    result = run(data, tmp_path, epochs=3)
    fails(result, "checkpoint.pt", words, "--restart")
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_full_disk_loses_nothing(data, trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        fails(run(data, tmp_path, epochs=3), "cannot write", "checkpoint.pt", "No space left on device")
    assert contents(tmp_path) == before
    (tmp_path / ".checkpoint.pt.1.tmp").write_text("of a process that was killed")
    assert "Continuing after epoch 2" in succeeds(run(data, tmp_path, epochs=3))
    assert contents(tmp_path).keys() == before.keys()
    assert [row["epoch"] for row in log(tmp_path)] == ["1", "2", "3"]


def test_an_output_that_cannot_be_written_is_told_before_the_work(data, tmp_path, no_work):
    for name in ("checkpoint.pt", "log.csv", "settings.json", "model.pt", "heatmaps.png"):
        (tmp_path / name / name).mkdir(parents=True)
        fails(run(data, tmp_path / name), "cannot write", name, "it is a folder")


def test_a_broken_file_is_told_before_the_work(data, tmp_path, no_work):
    shutil.copytree(data, tmp_path / "data")
    for kind in ("masks", "images"):
        path = tmp_path / "data" / kind / "pear" / "3.png"
        path.write_bytes(path.read_bytes()[:-30])
        fails(run(tmp_path / "data", tmp_path / "out"), str(path), "it is broken")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_are_no_markup(data, tmp_path):
    for old, new in (("apple", "$5_{$"), ("pear", "[x]")):
        for kind in ("images", "masks"):
            shutil.copytree(data / kind / old, tmp_path / "[/data]" / kind / new)
    output = tmp_path / "[bold]out :cat:"
    printed = succeeds(run(tmp_path / "[/data]", output, calibration_epochs=0))
    assert f"The model is {output / 'model.pt'}, with" in printed
    assert json.loads((output / "settings.json").read_text())["classes"] == ["$5_{$", "[x]"]
    assert (output / "heatmaps.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["fc.weight", "norm.running_var"])
def test_a_weight_that_is_not_finite(data, trained, tmp_path, monkeypatch, name):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    epoch = Run.epoch

    def ruined(self, *arguments):
        row = epoch(self, *arguments)
        with torch.no_grad():
            self.model.state_dict()[name].view(-1)[0] = torch.nan
        return row

    monkeypatch.setattr(Run, "epoch", ruined)
    fails(run(data, tmp_path, epochs=3), f"{name} is not finite in epoch 3", "--lr", "checkpoint.pt")
    assert [contents(tmp_path)[file] == before[file] for file in ("log.csv", "model.pt")] == [True, True]
    # It was written again, when the training went on.
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [row["epoch"] for row in saved["rows"]] == [1, 2]
    assert saved["model"][name].isfinite().all()


def test_weights_to_begin_with_that_are_not_finite(data, tmp_path, no_work):
    state = Net(2).state_dict()
    for value, words in ((torch.nan, "weights that are not finite"), (3e38, "output of")):
        for name in ("conv2.weight", "fc.weight"):
            state[name].fill_(value)
        torch.save(state, tmp_path / "start.pt")
        fails(run(data, tmp_path / "out", weights=tmp_path / "start.pt"), words, "not finite")


def test_python_m():
    command = [sys.executable, "-m", "fxlrp", "train", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Usage: fxlrp train" in printed
    assert "[default: 0.9]" in printed


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    options = {**OPTIONS, "model": "torchvision:resnet18", "batch-size": 3, "epochs": 1, "lr": 0.1, "output": tmp_path}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    # On a CPU, `accelerate launch --num_processes 2` starts one process without a word.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fxlrp", "train"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [*command, data / "images", data / "masks", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("16 images of 2 classes") == 1
    assert json.loads((tmp_path / "settings.json").read_text())["processes"] == 2
    assert len(log(tmp_path)) == 1
    check_validation(data, tmp_path, resnet18(num_classes=2))
