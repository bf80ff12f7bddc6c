"""Which linear layers are meant: by their numbers in the order of execution, or by shares of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from ..errors import CompositeError

__all__ = ["Where", "check_apart", "layers_of", "overlap", "understood"]

Where = range | slice | int | tuple[int, int] | tuple[float, float]
"""Ints are numbers of layers, floats are shares of the depth from 0.0 (the input) to 1.0 (the output)."""

_Known = slice | tuple[float, float]


def understood(where: Where) -> _Known:
    """What is meant, as a slice of all layers, or as a share of the depth.

    Raises
    ------
    CompositeError
        If it is none of these, empty, or a share beyond [0, 1].
    """
    if isinstance(where, range) and len(where) and min(where) >= 0:
        return slice(min(where), max(where) + 1, None if abs(where.step) == 1 else abs(where.step))
    if type(where) is int:
        return slice(where, where + 1 or None)
    if isinstance(where, slice) and all(type(end) in (int, type(None)) for end in (where.start, where.stop)):
        found, step = where, where.step
        if (step is None or (type(step) is int and step > 0)) and not _is_empty(found):
            return found
    if isinstance(where, tuple) and len(where) == 2 and all(type(end) in (int, float) for end in where):
        start, stop = where
        if type(start) is int and type(stop) is int and not _is_empty(slice(start, stop)):
            return slice(start, stop)
        if float in (type(start), type(stop)) and 0 <= start < stop <= 1:
            return float(start), float(stop)
    raise CompositeError(
        f"{where!r} says no linear layers: name them by a range, a slice or a pair (start, stop) of ints, in the order "
        "of execution, or by a share of the depth, a pair of floats from 0.0 to 1.0; the stop lies behind the start"
    )


def layers_of(where: _Known, count: int) -> Sequence[int]:
    """The numbers of the layers that are meant, of so many.

    Raises
    ------
    CompositeError
        If a slice has none of them. (A share may: of three layers, none is within the first tenth.)
    """
    if isinstance(where, tuple):
        start, stop = where
        return [index for index in range(count) if start <= (index + 0.5) / count < stop]
    found = range(count)[where]
    if not found:
        raise CompositeError(
            f"the composite has a rule for the linear layers {_text(where)}, and the model has {count}: name others, "
            "or shares of the depth, as (0.0, 0.5)"
        )
    return found


def check_apart(every: Sequence[_Known]) -> None:
    """Raise a `CompositeError` if two of these share a layer whatever the number of layers."""
    for one, other in combinations(every, 2):
        if isinstance(one, tuple) and isinstance(other, tuple):
            shared = max(one[0], other[0]) < min(one[1], other[1])
        elif isinstance(one, slice) and isinstance(other, slice):
            shared = bool(set(_certain(one)) & set(_certain(other)))
        else:
            shared = False
        if shared:
            raise overlap(one, other)


def overlap(one: _Known, other: _Known, more: str = "") -> CompositeError:
    """The error that two of these share a layer."""
    return CompositeError(
        f"the linear layers {_text(one)} and {_text(other)} overlap{more}. A layer has one rule: give each its own "
        "range, and the first layer another rule by first="
    )


def _certain(where: slice) -> range:
    """The layers of a slice that does not depend on how many there are."""
    start, stop = where.start or 0, where.stop
    return range(start, stop, where.step or 1) if start >= 0 and stop is not None and stop > 0 else range(0)


def _is_empty(where: slice) -> bool:
    """Whether a slice is empty whatever the number of layers."""
    start, stop = where.start or 0, where.stop
    return stop is not None and (start < 0) == (stop < 0) and stop <= start


def _text(where: _Known) -> str:
    if isinstance(where, tuple):
        return f"({where[0]:g}, {where[1]:g})"
    start, stop, step = ("" if end is None else str(end) for end in (where.start, where.stop, where.step))
    return f"[{start}:{stop}{f':{step}' if step else ''}]"
