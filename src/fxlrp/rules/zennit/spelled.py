"""A zennit rule as one would write it: zennit keeps no arguments, but the rule's functions hold them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from numbers import Number

from torch import Tensor
from zennit.core import Hook, Stabilizer

from .held import held_by
from .stabilizer import is_plain

__all__ = ["spelled"]

_OPTIONS = ("stabilizer", "zero_params", "clip", "norm_scale", "dim")
"""Parameters of many rules, of which only what is not the default is worth a word."""

_LISTED = 4
_LOST = object()


def spelled(rule: Hook | Stabilizer) -> str:
    """A rule with its parameters, as in ``Gamma(0.25)``; by its name alone as far as they are not to be found.

    Parameters
    ----------
    rule : zennit.core.Hook or Stabilizer
        Zennit's or a user's. The arguments of its constructor are looked for, by their names, among its attributes and
        in the closures of its functions.
    """
    name = type(rule).__name__
    try:
        signature = inspect.signature(type(rule))
    except (TypeError, ValueError):
        return f"{name}()"
    parameters = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    held = held_by(rule)
    by_default = _held_by_default(type(rule), parameters)
    texts = {each.name: _text(_argument(held, each.name)) for each in parameters}
    own = [each.name for each in parameters if each.name not in _OPTIONS]
    by_position = None not in [texts[each] for each in own]
    shown = []
    for each in parameters:
        text = texts[each.name]
        if text is None or (each.name in _OPTIONS and text == _text(_argument(by_default, each.name))):
            continue
        positional = by_position and each.name in own and each.kind is not each.KEYWORD_ONLY
        shown.append(text if positional else f"{each.name}={text}")
    return f"{name}({', '.join(shown)})"


def _held_by_default(kind: type, parameters: Sequence[inspect.Parameter]) -> dict[str, object]:
    """What a rule holds that is given nothing: of zennit's own, what they make of it (`Flat` zeroes the bias)."""
    if kind.__module__.startswith("zennit.") and all(each.default is not each.empty for each in parameters):
        return held_by(kind())
    return {each.name: each.default for each in parameters}


def _argument(held: Mapping[str, object], name: str) -> object:
    """The value of a parameter; of one that becomes a `Stabilizer` or is a function in its place, that."""
    if name not in ("epsilon", "stabilizer"):
        return held.get(name, _LOST)
    stabilizer = held.get("stabilizer_fn")
    if stabilizer is None and name == "stabilizer":
        stabilizer = next((value for value in held.values() if isinstance(value, Stabilizer)), None)
    found = held.get(name, _LOST) if stabilizer is None else stabilizer
    return _Name(found.__name__) if isinstance(found, types.FunctionType) else found


class _Name(str):
    """A function's name."""


def _text(value: object) -> str | None:
    """A value in short; None of one that has no short form."""
    if isinstance(value, Stabilizer):
        return _text(value.epsilon) if is_plain(value) else spelled(value)
    if isinstance(value, Tensor):
        one = value.numel() == 1 and type(value) is Tensor and not value.is_meta
        return _text(value.item()) if one else f"tensor{list(value.shape)}"
    if isinstance(value, _Name | bool | str | types.NoneType):
        return str(value) if isinstance(value, _Name) else repr(value)
    if isinstance(value, Number):
        short = f"{value:g}" if isinstance(value, float) else str(value)
        return short if not isinstance(value, float) or float(short) == value else str(float(value))
    if isinstance(value, list | tuple) and len(value) <= _LISTED:
        parts = [_text(each) for each in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    return None
