"""What importing fxlrp does, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
    assert run(code, tmp_path).endswith("5 False")
