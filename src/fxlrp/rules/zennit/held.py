"""What a zennit rule holds: its attributes, and what its functions closed over, for zennit keeps no arguments."""

from __future__ import annotations

import functools
import types
from dataclasses import fields, is_dataclass

from torch import Tensor
from zennit.core import Hook, ParamMod, Stabilizer

__all__ = ["held_by", "is_tuned"]


def held_by(*rules: object) -> dict[str, object]:
    """All values that rules and their functions hold, by name; of several under one name, that nearest to the rule.

    Parameters
    ----------
    *rules : object
        Hooks, or functions of theirs.
    """
    return dict(reversed(_all_held(rules)))


def is_tuned(*rules: object) -> bool:
    """Whether a rule holds a tensor that requires a gradient (a gamma that is tuned).

    What such a rule does at the tensor's value of today is no fact about it: the value changes, and its derivative is
    asked for. So of such a function nothing is found out by trying it.

    Parameters
    ----------
    *rules : object
        As of `held_by`.
    """
    return any(isinstance(value, Tensor) and value.requires_grad for _, value in _all_held(rules))


def _all_held(rules: tuple[object, ...]) -> list[tuple[str, object]]:
    """Names and values, those nearest to the rules first."""
    found: list[tuple[str, object]] = []
    todo: list[object] = list(rules)
    seen: set[int] = set()
    while todo:
        value = todo.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        named = _names(value)
        found += named.items()
        todo += value if isinstance(value, list | tuple) else named.values()
    return found


def _names(value: object) -> dict[str, object]:
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return {name: contents for name, cell in cells for contents in _contents(cell)}
    if isinstance(value, functools.partial):
        return {"": value.func, **value.keywords}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return dict(vars(value)) if isinstance(value, Hook | ParamMod | Stabilizer) else {}


def _contents(cell: types.CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # Nothing was put in yet.
        return []
