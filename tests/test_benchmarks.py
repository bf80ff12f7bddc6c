"""The scripts in benchmarks/ still run: all with --help, and with their smallest settings (but for one, `slow`)."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

SMALLEST = {
    "conservation.py": "squeezenet1_1",
    "default_composite.py": "epsilon_plus --photographs 1",
    "heatmap.py": "resnet18 --batch 1 --size 32 --rounds 1",
    "isnet.py": "resnet18 --batch 2 --size 32 --rounds 1",
    "operations.py": "resnet50 --size 64",
    "zoo.py": "torchvision:squeezenet1_1 --kept kept.json -o zoo.md",
}
QUICK = ("zoo.py",)

NOT_RUN = {
    "peers/run.py": "it needs checkouts of the peers' sources",
    "peers/as_zennit.py": "a plugin that run.py gives to pytest",
    "peers/as_captum.py": "a plugin that run.py gives to pytest",
}

A_ROW = {
    "conservation.py": "| squeezenet1_1 |",
    "default_composite.py": "| epsilon_plus |",
    "heatmap.py": "| epsilon-plus |",
    "isnet.py": "| selective |",
    "operations.py": "| resnet50 | gamma |",
    "zoo.py": "| torchvision:squeezenet1_1 |",
}
"""Of the table that each one writes."""


def test_each_script_is_run_or_listed():
    assert sorted([*SMALLEST, *NOT_RUN]) == sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("name", [*SMALLEST, "peers/run.py"])
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
    command = [sys.executable, str(FOLDER / name), *SMALLEST[name].split()]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = done.stdout + "".join(path.read_text() for path in tmp_path.glob("*.md"))
    assert A_ROW[name] in written
