"""Which of a model's outputs is explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from ..errors import CaptureError

__all__ = ["Output", "chosen"]

Output = str | int | Callable[[Any], Any] | None
"""Which of a model's outputs is explained: a key or field, an index, a function of what the model returns, or None."""


def chosen(value: object, output: Output) -> fx.Node:
    """The node of the tensor that is explained.

    Parameters
    ----------
    value : object
        What the model returns, with nodes in place of tensors.
    output : str, int, callable or None
        As of `fxlrp.capture.capture`.

    Raises
    ------
    CaptureError
        If there is none, or it is no tensor.
    """
    found = _by_itself(value) if output is None else _asked_for(value, output)
    if isinstance(found, fx.Node):
        return found
    asked = "a function" if callable(output) else repr(output)
    raise CaptureError(
        f"output={asked} gives {_described(found)}, and not a tensor. The model returns {_described(value)}: name a "
        "tensor in it, or give a function of it, as in output=lambda found: found['a'][0]"
    )


def _asked_for(value: Any, output: Output) -> object:
    if callable(output):
        try:
            return output(value)
        except Exception as error:
            raise CaptureError(
                f"the function given as output fails with {type(error).__name__}: {error}. The model returns "
                f"{_described(value)}"
            ) from error
    if not isinstance(output, str | int):
        raise CaptureError(f"output is a key, an index, a function or None, not {output!r} ({type(output).__name__})")
    entries = _entries(value)
    if entries is not None and output in entries:
        return entries[output]
    try:
        return value[output]
    except (KeyError, IndexError, TypeError, AttributeError, NotImplementedError) as error:
        raise CaptureError(
            f"the model's output has no {output!r}: it is {_described(value)}; name one of these with output=..."
        ) from error


def _by_itself(value: object) -> fx.Node:
    if isinstance(value, fx.Node):
        return value
    entries = _entries(value)
    if entries is not None:
        tensors = {name: entry for name, entry in entries.items() if isinstance(entry, fx.Node)}
        if "logits" in tensors:
            return tensors["logits"]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        if tensors and not isinstance(value, tuple):
            raise CaptureError(
                f"the model returns {_described(value)}, and none is named 'logits': say with output='...' which one "
                "is to be explained"
            )
    for entry in value if isinstance(value, tuple | list) else ():
        if isinstance(entry, fx.Node):
            return entry
    raise CaptureError(f"the model returns {_described(value)}, in which there is no tensor to explain")


def _entries(value: object) -> Mapping[Any, object] | None:
    """What a dict, a named tuple or a dataclass holds, by name; None of anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: getattr(value, name) for name in value._fields}  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _described(value: object) -> str:
    entries = _entries(value)
    if entries is not None:
        what = "keys" if isinstance(value, Mapping) else "fields"
        return f"a {type(value).__name__} with the {what} {list(entries)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else "a tensor" if isinstance(value, fx.Node) else f"a {type(value).__name__}"
