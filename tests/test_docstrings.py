"""What users call is documented in full; of all else, `numpydoc lint` (in .ci/run) checks what is written."""

from __future__ import annotations

import inspect
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from numpydoc.validate import validate

PUBLIC = ("fxlrp", "fxlrp.plot", "fxlrp.testing")
SETTINGS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["numpydoc_validation"]
CHECKS = {*SETTINGS["checks"], "GL08", "RT01"}


def functions() -> list[str]:
    modules = {name: import_module(name) for name in PUBLIC}
    names = [(home, name) for home, module in modules.items() for name in module.__all__]
    return [f"{home}.{name}" for home, name in names if inspect.isfunction(getattr(modules[home], name))]


@pytest.mark.parametrize("name", [*functions(), "fxlrp.vocabulary.register"])
def test_a_function_that_users_call_says_what_it_takes_and_gives(name):
    assert [said for code, said in validate(name)["errors"] if code in CHECKS] == []


def test_nothing_is_exempt():
    assert "exclude" not in SETTINGS
    assert "exclude_files" not in SETTINGS
