"""The scripts in benchmarks/ still run: all with --help, and with their smallest settings (but for one, `slow`)."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

SECTIONS = {
    "heatmaps": "| resnet18 | alpha2-beta1 |",
    "rewrites": "| resnet18 | fewest_products |",
    "rounding": "| resnet18 | gamma |",
    "training": "| resnet18 | selective |",
    "classes": "| resnet18 | 1000 |",
    "conversion": "| resnet18 | 32 x 32 |",
    "memory": "| resnet18 | z+ |",
    "growth": "| resnet18 | 4 x 32 x 32 |",
    "compiled": "| resnet18 | gamma |",
    "shares": "| resnet18 | gamma |",
}
"""Of performance: a row of the table of each."""

PAPERS = {
    "localization": "| LRP-z | 1.347 |",
    "perturbation": "| tutorial | MoRF |",
    "canonization": "| vgg (4) | EB |",
    "tuning": "| vgg | gradient, each layer, by MoRF |",
    "trials": "| vgg | 4 | 4 |",
}
"""Of papers: the beginning of a row."""

SMALLEST = {
    "conservation.py": ("squeezenet1_1", "| squeezenet1_1 |"),
    "default_composite.py": ("epsilon_plus --photographs 1 --networks 0", "| epsilon_plus |"),
    "flipping.py": ("linear --images 2 --size 32 --steps 4 --rounds 1", "| linear | inpaint |"),
    "scene_networks.py": ("relation --count 64 --epochs 1 --size 32", "| relation | questions |"),
    "scenes.py": ("digits --count 2 -o scenes.png", "| digits | 10 |"),
    "zoo.py": ("torchvision:squeezenet1_1 --kept kept.json -o zoo.md", "| torchvision:squeezenet1_1 |"),
    **{
        f"performance {name}": (f"{name} --networks resnet18 --size 32 --rounds 1", row)
        for name, row in SECTIONS.items()
    },
    **{
        f"papers {name}": (
            f"{name} --networks vgg --images 4 --count 64 --epochs 1 --size 32 --trials 2 --seconds 1",
            row,
        )
        for name, row in PAPERS.items()
    },
}
"""Arguments, and a row of the table that is written."""

QUICK = ("flipping.py", "scenes.py", "zoo.py")

NOT_RUN = {
    "performance device": "it compiles thirty things; it is for a GPU",
    "peers/run.py": "it needs checkouts of the peers' sources",
    "peers/as_zennit.py": "a plugin that run.py gives to pytest",
    "peers/as_captum.py": "a plugin that run.py gives to pytest",
    "scenery.py": "what scenes.py draws with",
    "marks.py": "what puts tables into pages",
}


@pytest.fixture
def performance(monkeypatch):
    """A module of performance."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: importlib.import_module(f"performance.{name}")


def test_each_script_is_run_or_listed(performance):
    scripts = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*.py")
        if path.parent.name not in ("papers", "performance")
    }
    sections = {f"performance {name}" for name in performance("__main__").SECTIONS}
    sections |= {f"papers {name}" for name in importlib.import_module("papers.__main__").SECTIONS}
    assert {*SMALLEST, *NOT_RUN} == scripts | sections


SCRIPTS = [
    "conservation.py",
    "default_composite.py",
    "flipping.py",
    "papers",
    "performance",
    "peers/run.py",
    "scene_networks.py",
    "scenes.py",
    "zoo.py",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert left.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SMALLEST]
)
def test_smallest_settings(name, tmp_path):
    options, row = SMALLEST[name]
    command = [sys.executable, str(FOLDER / name.split()[0]), *options.split()]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert row in done.stdout + "".join(path.read_text() for path in tmp_path.glob("*.md"))


def test_what_got_worse_is_said(performance):
    """By more than a tenth, and by more than the noise; of our own figures, by the direction that they should take."""
    section, measuring = performance("section"), performance("measuring")
    figure = measuring.Figure
    subject = section.Section("heatmaps", "", lambda settings: iter(()), more=("faster",), unchecked=("zennit",))
    row = lambda **figures: {"network": "net", "composite": "z+", "must reach": "<= 2: met", **figures}
    before = row(time=figure(1.0, 0.02), noisy=figure(1.0, 0.3), faster=figure(3.0), zennit=figure(2.0), words="a")
    same = row(time=figure(1.09), noisy=figure(1.4, 0.2), faster=figure(2.8), zennit=figure(9.0), words="b")
    slower = row(time=figure(1.2, 0.02), noisy=figure(1.6), faster=figure(2.5), zennit=figure(2.0))
    assert section.worse(subject, [same], [before]) == []
    assert section.worse(subject, [{**slower, "network": "other"}], [before]) == []
    assert section.worse(subject, [slower], [before]) == [
        "heatmaps, net, z+, time: 1.00 ± 0.02 before, 1.20 ± 0.02 now",
        "heatmaps, net, z+, noisy: 1.00 ± 0.30 before, 1.60 now",
        "heatmaps, net, z+, faster: 3.00 before, 2.50 now",
    ]


def test_a_verdict_is_about_what_is_printed(performance):
    section, figure = performance("section"), performance("measuring").Figure
    assert section.verdict(figure(1.154), 1.15) == "<= 1.15: met"
    assert section.verdict(figure(1.156), 1.15) == "<= 1.15: **not met**"
    assert section.verdict(figure(2.5), 2.5, at_least=True) == ">= 2.5: met"
    assert section.verdict(figure(2.49), 2.5, at_least=True) == ">= 2.5: **not met**"
    assert section.verdict(None, 1) is None


def test_tables_stand_in_between_their_marks(performance, tmp_path, monkeypatch):
    """The README has the rows of one network; what is kept is read again as it was."""
    main, figure = performance("__main__"), performance("measuring").Figure
    pages = [tmp_path / "page.md", tmp_path / "README.md"]
    pages[0].write_text("before\n<!-- memory -->\nold\n<!-- end of memory -->\nafter\n")
    pages[1].write_text("before\n<!-- memory: resnet50 -->\n<!-- end of memory -->\nafter\n")
    monkeypatch.setattr(main, "PAGES", pages)
    monkeypatch.setattr(main, "FIGURES", tmp_path / "figures.json")
    rows = [{"network": name, "composite": "z+", "peak": figure(2.0, 0.5)} for name in ("resnet50", "vgg16")]
    for _ in range(2):
        main.write({"memory": {"about": "by a command", "rows": rows}})
        kept = main.stored()
        assert kept["memory"]["rows"] == rows
        assert (
            pages[0]
            .read_text()
            .endswith(
                "| network | composite | peak |\n| --- | --- | --- |\n| resnet50 | z+ | 2.00 ± 0.50 |\n"
                "| vgg16 | z+ | 2.00 ± 0.50 |\n\nby a command\n\n<!-- end of memory -->\nafter\n"
            )
        )
        assert pages[0].read_text().startswith("before\n<!-- memory -->\nThe bytes of all tensors")
        assert "vgg16" not in pages[1].read_text()
        assert "resnet50 | z+" in pages[1].read_text()
