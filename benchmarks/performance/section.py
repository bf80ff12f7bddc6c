"""A section of the benchmark: what it measures, the table of it, and what got worse since the last one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from .measuring import Figure

__all__ = ["Row", "Section", "Settings", "table", "verdict", "worse"]

Row = dict[str, str | Figure | None]
"""By column: words, by which the row is known again; figures; None where there is none."""


class Settings(NamedTuple):
    """What a user chose.

    Attributes
    ----------
    networks : sequence of str
        Of torchvision.
    rounds : int
        How often each thing is timed.
    batch, size : int
        Of the images.
    """

    networks: Sequence[str]
    rounds: int
    batch: int
    size: int


class Section(NamedTuple):
    """What is measured together.

    Attributes
    ----------
    name : str
        By which it is asked for.
    text : str
        What its table needs to be read.
    rows : callable
        ``(settings) -> iterator of Row``.
    better : dict of str to str
        The columns of which "more" is better.
    unchecked : collection of str
        The columns that are not ours to answer for.
    """

    name: str
    text: str
    rows: Callable[[Settings], Iterator[Row]]
    better: Mapping[str, str] = {}
    unchecked: Collection[str] = ()


def verdict(found: Figure, limit: float, *, at_least: bool = False) -> str:
    """Whether a figure reaches its target."""
    met = found.value >= limit if at_least else round(found.value, 2) <= limit
    return f"{'>=' if at_least else '<='} {limit:g}: {'met' if met else '**not met**'}"


def _cell(value: str | Figure | None) -> str:
    if isinstance(value, Figure):
        digits = 0 if value.value >= 100 else 1 if value.value >= 20 else 2
        noise = f" ± {value.noise:.{max(digits, 1)}f}" if value.noise else ""
        return f"{value.value:.{digits}f}{noise}"
    return "-" if value is None else value


def table(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown; a column with nothing in it is left out."""
    columns = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def worse(section: Section, now: Sequence[Row], before: Sequence[Row], by: float = 0.1) -> list[str]:
    """What is worse than it was, by more than a tenth and more than the noise of both."""
    known, found = {_name(row): row for row in before}, []
    for row in now:
        for column, figure in row.items():
            old = known.get(_name(row), {}).get(column)
            if not isinstance(figure, Figure) or not isinstance(old, Figure) or column in section.unchecked:
                continue
            lost = old.value - figure.value if section.better.get(column) == "more" else figure.value - old.value
            if lost > max(by * old.value, figure.noise + old.noise):
                found.append(f"{section.name}: {_name(row)}, {column}: {_cell(old)} before, {_cell(figure)} now")
    return found


def _name(row: Row) -> str:
    """What a row is of: its words, but for those that say how it went."""
    return ", ".join(v for k, v in row.items() if isinstance(v, str) and k in ("network", "composite", "what"))
