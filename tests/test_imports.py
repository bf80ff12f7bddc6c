"""What importing fxlrp does, and what it does not."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fxlrp
import fxlrp.testing


def run(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_folder_of_this_name_is_not_taken_for_the_package(tmp_path):
    """A script that runs in the folder which holds the clone finds the package, and no empty namespace."""
    (tmp_path / "fxlrp" / "tests").mkdir(parents=True)
    assert run("import fxlrp; print(fxlrp.convert.__name__)", tmp_path) == "convert"


def test_help_does_not_wait_for_torch(tmp_path):
    code = """
import sys
from fxlrp.cli import main

for arguments in ([], *([command] for command in main.commands)):
    main([*arguments, "--help"], standalone_mode=False)
print(len(main.commands), "torch" in sys.modules)
"""
    assert run(code, tmp_path).endswith("7 False")


@pytest.mark.parametrize("module", [fxlrp, fxlrp.testing], ids=lambda module: module.__name__)
def test_what_is_public_is_listed_and_found(module):
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, name) for name in module.__all__)
    assert not hasattr(module, "nothing")


SCRIPT = Path(__file__).parents[1] / "docs" / "import_graph.py"


def test_imports_go_one_way():
    """Neither modules nor rooms import one another, in functions and under TYPE_CHECKING neither; nor the package."""
    script = runpy.run_path(str(SCRIPT))
    modules = script["modules"]()
    assert len(modules) > 80
    assert script["circles"](modules) == []
    assert script["circles"](script["rooms"](modules)) == []
    assert not list(modules.predecessors("fxlrp"))


def test_the_circle_that_is_looked_for_would_be_found():
    script = runpy.run_path(str(SCRIPT))
    modules = script["modules"]()
    modules.add_edge("fxlrp.errors", "fxlrp.twin")
    assert any({"fxlrp.errors", "fxlrp.twin"} <= set(each) for each in script["circles"](modules))


def test_the_graph_in_the_documentation_is_that_of_today():
    page = SCRIPT.with_name("design.md")
    subprocess.run([sys.executable, str(SCRIPT), str(page), "--check"], check=True)
