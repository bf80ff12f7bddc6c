"""Tables for the terminal: the classes that a model sees, where relevance went, and which composite is best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..evaluation import Table as Comparison
from ..io.console import printable
from ..metrics import ABOUT
from ..wording import columns
from .spread import spread

__all__ = ["Explained", "comparison", "spread_table", "top_table"]


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


def comparison(table: Comparison) -> str:
    """Means of metrics, the best by each metric marked, and how far it is from the next."""
    head = ("", "better", *table.ways)
    rows, lines = [], []
    for metric in table.metrics:
        ranked = table.ranked(metric)
        mark = lambda way, best=ranked[:1]: " *" if [way] == best else ""
        cells = [f"{table.summary(metric, way)}{mark(way)}" for way in table.ways]
        rows.append((metric, ABOUT[metric].better, *cells))
        if len(ranked) > 1:
            found = table.difference(metric, *ranked[:2])
            interval = f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"
            lines.append(f"{metric}: {ranked[0]} - {ranked[1]} = {interval}, p = {found.p:.2g}")
    about = "Means with 95 % intervals (bootstrap over images), the best with a *"
    test = ["", "The best minus the next, image by image, with p of Wilcoxon's signed-rank test:", *lines]
    return "\n".join([f"{about}:", *columns(head, rows), *(test if lines else ())])
