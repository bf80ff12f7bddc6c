"""The sweep: what becomes of one model is found out, of many is kept, and nothing of it takes the rest down."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import textwrap
import warnings
from importlib.metadata import PackageNotFoundError
from typing import NamedTuple

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models._api import BUILTIN_MODELS

import fxlrp
from fxlrp import canonizers, errors, zoo
from fxlrp.cli import main
from fxlrp.graph import call
from fxlrp.weights import settled, trained
from fxlrp.zoo import sweep
from fxlrp.zoo.catalogue import CLASSES, LIBRARIES, _Timm
from fxlrp.zoo.sweep import table

X = torch.randn(2, 3, 16, 16, dtype=torch.float64)


def net(strange=lambda x: x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(strange(self.bn(self.conv(x)).relu()).mean((2, 3)))

    return trained(Net()).eval()


def tried(model):
    return zoo.try_out("own", lambda: zoo.Sample(model, (X,)))


def test_a_model_that_passes():
    trial = tried(net())
    assert trial.passed
    assert (trial.parameters, trial.inputs, trial.attention) == (135, [[2, 3, 16, 16]], False)
    assert trial.captured
    assert max(trial.difference, trial.leak, trial.unconserved) < 1e-12
    assert trial.batch_norms == 0


def test_what_is_attention():
    assert tried(net(lambda x: torch.softmax(x @ x.mT, -1) @ x)).attention
    constant = torch.randn(14, 14, dtype=torch.float64)
    assert not tried(net(lambda x: x @ constant)).attention


@pytest.mark.parametrize(
    "strange",
    [
        lambda x: (x.float() @ x.float().mT).to(x.dtype),
        lambda x: x.amax(3, keepdim=True).expand(x.shape).permute(0, 1, 3, 2) + x,
        lambda x: nn.functional.conv2d(x, x.mean((0, 2, 3)).sigmoid().reshape(4, 1, 1, 1).expand(4, 4, 3, 3)),
    ],
    ids=["lower precision", "expanded", "weight from the input"],
)
def test_what_the_zoo_showed(strange):
    trial = tried(net(strange))
    assert trial.passed, trial.failure
    assert trial.unconserved < 1e-12


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        (torch.erfc, r"UnsupportedOpError: .*aten.erfc.default .*test_zoo.py"),
        (lambda x: x if x.sum() > 0 else 2 * x, r"CaptureError: .*test_zoo.py"),
    ],
)
def test_what_keeps_a_model_from_being_converted(strange, said):
    trial = tried(net(strange))
    assert not trial.passed
    assert trial.captured == ("Capture" not in said)
    assert re.search(said, trial.failure or "")


def test_a_twin_of_another_function_is_found(monkeypatch):
    monkeypatch.setattr(canonizers.registry, "_REGISTERED", [])

    @canonizers.register
    def halve(graph_module):
        for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
            with graph_module.graph.inserting_after(node):
                half = call(node, torch.ops.aten.div.Scalar, node, 2.0)
            node.replace_all_uses_with(half, lambda user, half=half: user is not half)

    trial = tried(net())
    assert trial.difference > 0.01
    assert trial.failure == f"f is not kept: {trial.difference:.1e}"


@pytest.mark.parametrize("form", [lambda y: (y, 2 * y), lambda y: Output(2 * y, y)], ids=["first", "logits"])
def test_of_several_outputs_the_one_that_is_explained_is_compared(form):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return form(self.net(x))

    trial = tried(Several())
    assert trial.passed, trial.failure


class Output(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


def test_a_leak_is_found_and_named():
    class Lossy(fxlrp.rules.Pass):
        def propagate(self, call, output, relevance):
            return [0.5 * relevance]

    fxlrp.vocabulary.register(torch.ops.aten.erfc.default, default=lambda node, slots: Lossy())
    try:
        trial = tried(net(torch.erfc))
    finally:
        fxlrp.vocabulary.remove(torch.ops.aten.erfc.default)
    assert trial.leak > 0.01
    assert trial.failure.startswith("relevance leaks")
    assert trial.failure.endswith("at erfc (erfc, Lossy)")


def test_settled_batch_norms_keep_a_deep_network_at_its_scale():
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)) for _ in range(30)))
    trained(deep).eval()
    for name, value in deep.named_parameters():
        if name.endswith("0.weight"):
            value.data *= 3
    spread = lambda: float(deep(X).detach().std())
    before = spread()
    settled(deep, X)
    assert before > 1e3
    assert 0.1 < spread() < 10


def test_names():
    assert zoo.names("timm:resnet18") == ["timm:resnet18"]
    assert "torchvision:resnet18" in zoo.names("torchvision")
    found = zoo.names("transformers")
    assert "transformers:ViTForImageClassification" in found
    assert not any("Auto" in name for name in found)
    with pytest.raises(errors.ModelError, match="no library"):
        zoo.names("keras")


def test_the_chosen():
    models = ["vit_base_patch16_224", "resnet18", "vit_tiny_patch16_224", "regnety_002", "vit_giant_patch14_224"]
    chosen = LIBRARIES["timm"].chosen
    assert chosen(models, iter) == ["vit_tiny_patch16_224", "resnet18", "regnety_002"]
    assert chosen(["vit_giant_patch14_224"], iter) == []


def test_a_model_that_looks_at_its_values_is_the_last_of_its_family(monkeypatch):
    """None can be made without any, to count its parameters."""
    library = _Timm()
    plain = library.make
    monkeypatch.setattr(library, "make", lambda name: 1 / 0 if name == "vit_tiny_patch16_224" else plain(name))
    assert library.chosen(["vit_tiny_patch16_224", "vit_small_patch16_224"], iter) == ["vit_small_patch16_224"]
    assert library.chosen(["vit_tiny_patch16_224"], iter) == ["vit_tiny_patch16_224"]


def tiny_vit(*, image_size: int, num_classes: int) -> VisionTransformer:
    return VisionTransformer(image_size, 16, 1, 2, 8, 8, num_classes=num_classes)


def test_models_of_torchvision(monkeypatch):
    """A transformer of theirs is for one size, and GoogLeNet warns where it is not told how to begin."""
    monkeypatch.setitem(BUILTIN_MODELS, "tiny_vit", tiny_vit)
    vit = zoo.build("torchvision:tiny_vit")
    assert [x.shape[2:] for x in vit.inputs] == [(vit.model.image_size,) * 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        googlenet = zoo.build("torchvision:googlenet")
    assert googlenet.model(*googlenet.inputs).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("kind", "shapes", "millions"),
    [("ViT", [(2, 3, 64, 64)], 20), ("Levit", [(2, 3, 64, 64)], 6), ("Siglip2", [(2, 256, 768), (2, 256), (2, 2)], 30)],
)
def test_models_of_transformers_have_few_layers_and_fitting_images(kind, shapes, millions):
    sample = zoo.build(f"transformers:{kind}ForImageClassification")
    assert [x.shape for x in sample.inputs] == shapes
    assert sum(parameter.numel() for parameter in sample.model.parameters()) < millions * 1e6


def test_token_ids_are_no_images():
    with pytest.raises(errors.ModelError, match="ImageGPTForImageClassification takes token ids, not images"):
        zoo.build("transformers:ImageGPTForImageClassification")


def test_a_head_of_zeros_is_none():
    made = zoo.build("test_zoo:headless")
    assert made.model[2].weight.abs().min() > 0
    assert [x.shape for x in made.inputs] == [(2, 3, 64, 64)]


def headless():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize("name", ["timm:nothing", "torchvision:nothing", "transformers:Nothing", "no.module:of_it"])
def test_no_such_model(name):
    trial = zoo.try_out(name, lambda: zoo.build(name))
    assert not trial.passed
    assert not trial.captured


QUICK = ("convnext", "vit")
"""Of timm's tiny models, which are made like most others; the others are in the sweep."""


@pytest.mark.parametrize("name", [f"timm:test_{name}" for name in QUICK])
def test_one_of_each_kind(name):
    trial = zoo.try_out(name, lambda: zoo.build(name))
    assert trial.passed, trial.failure
    assert trial.attention or trial.unconserved < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in timm.list_models("test_*") if name.partition("_")[2] not in QUICK])
def test_the_tiny_models_of_timm(name):
    test_one_of_each_kind(f"timm:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ConvNext", "Levit", "Siglip2", "SwiftFormer", "ViT"])
def test_some_of_transformers(kind):
    test_one_of_each_kind(f"transformers:{kind}ForImageClassification")


OWN = """
    import os, pathlib, time
    import torch
    from torch import nn

    def small():
        with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
            calls.write("small ")
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def table():
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)

    def dies():
        os._exit(3)

    def hangs():
        time.sleep(600)
"""


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "found.json"
    run = lambda *args: CliRunner().invoke(main, ["models", *args, "-o", str(file), "--jobs", "2"])
    first = run("own_models:small", "own_models:table", "own_models:dies")
    assert first.exit_code == 1, first.output
    assert "own_models:dies: its process ended with code 3" in first.output
    assert "2 of 3 models pass" in first.output
    second = run("own_models:small", "own_models:hangs", "--seconds", "5")
    assert "own_models:hangs: stopped after 5 s" in second.output
    assert "1 of 2 models pass" in second.output
    assert (tmp_path / "calls").read_text() == "small "
    assert run("own_models:small", "own_models:table").exit_code == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())["trials"]}
    assert len(rows) == 4
    assert rows["own_models:small"]["inputs"] == [[2, 3, 64, 64]]
    assert rows["own_models:table"]["inputs"] == [[5, 4]]
    written = file.with_suffix(".md").read_text()
    assert written.count("\n| own_models:") == 4
    run("own_models:dies", "--retry")
    assert {row["name"] for row in json.loads(file.read_text())["trials"]} == set(rows)


def test_files_that_are_none(tmp_path):
    file = tmp_path / "found.json"
    file.write_text("{}")
    with pytest.raises(errors.InputError, match="not a file of a sweep"):
        zoo.Sweep(file)
    conditions = {"composite": "gamma", "versions": {}}
    file.write_text(json.dumps({"conditions": conditions, "chosen": {}, "trials": []}))
    with pytest.raises(errors.InputError, match="other conditions"):
        zoo.Sweep(file)


def test_a_package_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    def version(name):
        if name == "timm":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(sweep, "version", version)
    found = zoo.Sweep(tmp_path / "found.json").conditions["versions"]
    assert found == {name: "1" for name in sweep.PACKAGES if name != "timm"}


def test_where_there_is_no_forkserver_processes_are_spawned(monkeypatch):
    assert sweep._context([]).get_start_method() == "forkserver"
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert sweep._context([]).get_start_method() == "spawn"


def test_the_table():
    trials = [zoo.Trial("timm:b", failure="a | b"), zoo.Trial("timm:a", 1_500_000, [[2, 3, 64, 64]], True, leak=1e-16)]
    head, _, a, b = table(trials).splitlines()
    assert head.count("|") == a.count("|") == b.replace("\\|", "").count("|")
    assert a.startswith("| timm:a | 1.5 M | 2 x 3 x 64 x 64 | yes | - | 1e-16 | - |")
    assert b.endswith("a \\| b |")
