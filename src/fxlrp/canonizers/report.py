"""What canonization did with each batch norm, read off the canonical graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, fx

from ..marks import CARRIED, FOLDS, Fold
from ..ops.affine import affine
from ..ops.linear import layer_of, with_bias_map
from ..place import module_path, where
from ..reading import is_known, unwrap
from ..wording import columns

__all__ = ["Kept", "Report", "mark", "report"]


@dataclass(frozen=True)
class Kept:
    """A batch norm that stays an op of its own.

    Attributes
    ----------
    batch_norm : str
        Its module path.
    why : tuple of str
        For each reader that could not take it in: what it is, and where.
    """

    batch_norm: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What became of a model's batch norms; printed, it is a table.

    Attributes
    ----------
    folded : tuple of Fold
        One for each layer that took one in: a batch norm with several readers may be there several times.
    kept : tuple of Kept
        Those that have readers which cannot take them in. They are linear ops, with a rule of their own.
    """

    folded: tuple[Fold, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        rows = [(f.batch_norm, f.into, f.how) for f in self.folded]
        rows += [(k.batch_norm, "kept", f"read by {why}") for k in self.kept for why in k.why]
        if not rows:
            return "no batch norms"
        return "\n".join(columns(("batch norm", "folded into", "how"), rows))


def mark(new: fx.Node, old: fx.Node, folds: Iterable[Fold]) -> None:
    """Note that `new`, which takes the place of the layer `old`, has taken in these batch norms."""
    FOLDS.put(new, (*FOLDS.of(old), *folds))


def report(graph: fx.Graph) -> Report:
    """What became of the batch norms of a canonical graph."""
    folded = [fold for node in graph.nodes for fold in FOLDS.of(node)]
    kept = [
        Kept(module_path(node) or node.name, tuple(_readers(node)))
        for node in graph.nodes
        if node.op == "call_function" and unwrap(node)[0] is affine and _is_read(node)
    ]
    return Report(tuple(folded), tuple(kept))


def _is_read(node: fx.Node) -> bool:
    """Whether `node` is more than the value of a layer that it was folded into."""
    return any(not is_known(user) or node in user.args[1:] for user in node.users)


def _readers(affine_map: fx.Node) -> list[str]:
    """The readers of an affine map, through ops that it was moved through, that do not take it in."""
    found: list[str] = []
    moved = {affine_map}
    for node in affine_map.graph.nodes:
        if moved.isdisjoint(node.all_input_nodes):
            continue
        if node.op == "output":
            found.append("the model's output")
        elif CARRIED.of(node) or not isinstance(node.meta["val"], Tensor):
            moved.add(node)
        elif layer_of(unwrap(node)[0]) in with_bias_map:
            found.append(f"{where(node)}, whose weight is no constant")
        else:
            found.append(where(node))
    return found
