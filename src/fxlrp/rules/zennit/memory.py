"""What was found out about a rule's functions by trying them, for as long as one relevance pass is written.

No longer: what a function gives may change with what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar, cast

__all__ = ["remembered", "remembering"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FOUND: ContextVar[dict[object, object] | None] = ContextVar("found", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Remember what is found out in here, and forget it behind."""
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def remembered(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function that finds something out not do so twice for the same functions, shapes and settings."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        found = _FOUND.get()
        key = function, _frozen(args), _frozen(kwargs)
        if found is None or not _is_hashable(key):
            return function(*args, **kwargs)
        if key not in found:
            found[key] = function(*args, **kwargs)
        return cast(_T, found[key])

    return run


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple((name, _frozen(each)) for name, each in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
