"""For downstream CI: strategies that draw networks, rules and composites, assertions, and a pytest plugin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..weights import trained
    from .assertions import assert_conserves, assert_matches_zennit, assert_same_function
    from .strategies import composites, inputs, networks, rules

__all__ = [
    "assert_conserves",
    "assert_matches_zennit",
    "assert_same_function",
    "composites",
    "inputs",
    "networks",
    "rules",
    "trained",
]

_HOMES = (
    dict.fromkeys(("assert_conserves", "assert_matches_zennit", "assert_same_function"), ".assertions")
    | dict.fromkeys(("composites", "inputs", "networks", "rules"), ".strategies")
    | {"trained": "..weights"}
)


def __getattr__(name: str) -> object:
    # Imported when asked for: the pytest plugin lies here, and every run of pytest loads it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'fxlrp.testing' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
