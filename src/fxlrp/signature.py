"""What an op takes, by name: its parameters, their defaults, and a call with all of them written out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

__all__ = ["Parameter", "Target", "normal", "parameters", "positions"]

Target = Callable[..., Any]
"""What a node calls."""


class Parameter(NamedTuple):
    """A parameter of an op: its default (None where there is none), and whether a call may give it by position."""

    name: str
    default: Any
    required: bool
    by_position: bool


@cache
def parameters(target: Target) -> tuple[Parameter, ...]:
    """The parameters of an op, by its schema, or of a function, by its signature, but for what it takes beside them."""
    if isinstance(target, torch._ops.OpOverload):
        found = target._schema.arguments
        return tuple(Parameter(p.name, p.default_value, not p.has_default_value(), not p.kwarg_only) for p in found)
    try:
        signature = inspect.signature(target).parameters.values()
    except ValueError:  # Of some functions that are not written in Python, nothing is known.
        return ()
    none = inspect.Parameter.empty
    return tuple(
        Parameter(p.name, None if p.default is none else p.default, p.default is none, p.kind is not p.KEYWORD_ONLY)
        for p in signature
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )


@cache
def positions(target: Target) -> Mapping[str, int]:
    """Where each of an op's parameters stands that has a position, by name."""
    return {p.name: i for i, p in enumerate(p for p in parameters(target) if p.by_position)}


def normal(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, those that have a position in it, with defaults filled in.

    Of what a function takes beside its named parameters, nothing is changed.
    """
    found, rest = list(args), dict(kwargs)
    for parameter in parameters(target)[len(found) :]:
        if not parameter.by_position or (parameter.required and parameter.name not in rest):
            break
        value = rest.pop(parameter.name, parameter.default)
        found.append(list(value) if isinstance(value, list) else value)
    return tuple(found), rest
