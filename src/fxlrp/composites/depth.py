"""Where a linear layer stands among all of a model's: what a composite goes by that speaks of depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import zennit.types
from torch import nn

from ..errors import CompositeError

__all__ = ["Place", "place_of", "standing"]


@dataclass(frozen=True)
class Place:
    """Where a linear layer stands.

    Attributes
    ----------
    index : int
        How many linear layers are in front of it.
    count : int
        How many there are.
    """

    index: int
    count: int


_UNTOLD = object()
_PLACE: ContextVar[Any] = ContextVar("place", default=_UNTOLD)


@contextmanager
def standing(place: Place | None) -> Iterator[None]:
    """Tell composites, while they are offered an op, where it stands among the linear layers; None for any other."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


def place_of(context: dict[Any, Any], name: str, module: nn.Module) -> Place | None:
    """Where a module that is offered to a composite stands among the model's linear layers; None if it is none.

    Under fxlrp, layers are the calls of linear ops, functional ones too, in the order of execution. Under zennit, which
    looks at modules before anything runs, they are the modules of `zennit.types.Linear`, in the order of
    ``named_modules()``. Every composite can ask, as every ``module_map`` is given these three.

    Parameters
    ----------
    context : dict
        The composite's context.
    name : str
        The module's name; that of the model, which is offered first, is empty.
    module : nn.Module
        The module.

    Raises
    ------
    CompositeError
        If the model was not offered first.

    Examples
    --------
    >>> import fxlrp, zennit.rules
    >>> from zennit.core import Composite
    >>> def deeper_is_sharper(context, name, module):
    ...     place = fxlrp.composites.place_of(context, name, module)
    ...     return None if place is None else zennit.rules.Gamma(1 - place.index / place.count)
    >>> composite = Composite(module_map=deeper_is_sharper)
    """
    told = _PLACE.get()
    if told is not _UNTOLD:
        return told
    if name == "":
        layers = [name for name, each in module.named_modules() if isinstance(each, zennit.types.Linear)]
        context["places"] = {name: Place(index, len(layers)) for index, name in enumerate(layers)}
    if "places" not in context:
        raise CompositeError(
            f"a composite that goes by depth was offered the module '{name}' before the model itself: register the "
            "composite with the whole model, as its context does"
        )
    return context["places"].get(name)
