"""The marks that a node, or a graph, may carry in its ``meta`` beside what `torch.export` leaves there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import fx

from .signature import Target

__all__ = [
    "CARRIED",
    "FOLDED",
    "FOLDS",
    "NUMBER",
    "PROCESS_GROUP",
    "SIZE_BOUND",
    "SPELLED",
    "STANDS_FOR",
    "SYNCHRONIZED",
    "UNBATCHED",
    "VALUES_READ",
    "Fold",
    "Mark",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Mark(Generic[_T]):
    """A mark, under its name; what has none has the default."""

    name: str
    default: _T

    def of(self, owner: fx.Node | fx.GraphModule) -> _T:
        """What a node or a graph carries."""
        return owner.meta.get(self.name, self.default)

    def put(self, owner: fx.Node | fx.GraphModule, value: _T) -> None:
        """Have a node or a graph carry `value`."""
        owner.meta[self.name] = value


@dataclass(frozen=True)
class Fold:
    """What became of a batch norm: its module path, that of the layer it went into, and how."""

    batch_norm: str
    into: str
    how: str


STANDS_FOR: Mark[Target | None] = Mark("stands_for", None)
"""Of another reading of a value (`fxlrp.reading.known`): the op that it is read as the value of."""

FOLDS: Mark[tuple[Fold, ...]] = Mark("folds", ())
"""Of a linear layer: the batch norms that were folded into it."""

CARRIED: Mark[bool] = Mark("carried", False)
"""Whether the value's affine maps have been moved on, to the layers behind it."""

FOLDED: Mark[bool] = Mark("folded", False)
"""Whether it is a constant that was computed from others."""

SPELLED: Mark[Target | None] = Mark("spelled", None)
"""Of a constant map: the sum or product that it was."""

SYNCHRONIZED: Mark[bool] = Mark("synchronized", False)
"""Whether a batch norm in training mode shares its statistics with other processes."""

PROCESS_GROUP: Mark[str | None] = Mark("process_group", None)
"""Of a synchronized batch norm: its process group's name, None for the default group."""

NUMBER: Mark[int] = Mark("number", -1)
"""By this number, a node of a canonical graph is found again in its copies, which rename it."""

SIZE_BOUND: Mark[bool] = Mark("size_bound", False)
"""Of a graph: whether it speaks for one spatial size alone."""

UNBATCHED: Mark[bool] = Mark("unbatched", False)
"""Of a graph: whether its inputs are of one sample, without a batch."""

VALUES_READ: Mark[frozenset[str]] = Mark("values_read", frozenset())
"""Of a graph: the paths of the tensors whose values, and not their shapes alone, its rewrites went by."""
