"""Tables for the terminal: the classes that a model sees, and where relevance went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..io.console import printable
from .spread import spread

__all__ = ["Explained", "spread_table", "top_table"]


class Explained(NamedTuple):
    """One row of `spread_table`: under which composite a class was explained, its relevance (C, H, W), its logit."""

    composite: str
    name: str
    relevance: Tensor
    logit: Tensor


def top_table(output: Tensor, classes: list[str], *, count: int = 5, title: str | None = None) -> Table:
    """A table of the most probable classes, for one sample's logits (C,)."""
    table = Table("class", "probability", "logit", title=title, title_justify="left", title_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    chances = output.softmax(0)
    for index in output.topk(min(count, len(output))).indices.tolist():
        table.add_row(Text(printable(classes[index])), f"{chances[index]:.1%}", f"{output[index]:.2f}")
    return table


def spread_table(rows: Iterable[Explained], *, title: str) -> Table:
    """A table of where relevance lies, and how much of the logit it is."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("composite", "why", "heaviest ninth"):
        table.add_column(name, no_wrap=True)
    for name in ("half of it on", "in favour", "in the pixels"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        where = spread(row.relevance)
        table.add_row(
            row.composite,
            row.name,
            f"{where.share:.0%} {where.place}",
            f"{where.pixels:.0%}",
            f"{where.positive:.0%}",
            f"{float(row.relevance.sum()):.1g} of {float(row.logit):.1f}",
        )
    return table
