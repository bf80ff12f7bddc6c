"""A section of the benchmark: what it measures, the table of it, and what got worse since the last one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from .measuring import Figure

__all__ = ["Row", "Section", "Settings", "merged", "table", "verdict", "worse"]

Row = dict[str, str | Figure | None]
"""By column: words, figures; None where there is none. The first two columns say what a row is of."""


class Settings(NamedTuple):
    """What a user chose; None is each section's own.

    Attributes
    ----------
    networks : sequence of str or None
        Of torchvision.
    size : int or None
        Of the images.
    rounds : int
        How often each thing is timed.
    compiled : bool
        Whether the section `device` compiles, too.
    """

    networks: Sequence[str] | None
    size: int | None
    rounds: int
    compiled: bool = True


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
    more : collection of str
        The columns of which more is better.
    unchecked : collection of str
        The columns that are not ours to answer for.
    once : bool
        Whether it measures each thing once, and not in rounds.
    """

    name: str
    text: str
    rows: Callable[[Settings], Iterator[Row]]
    more: Collection[str] = ()
    unchecked: Collection[str] = ()
    once: bool = False


def verdict(found: Figure | None, limit: float, *, at_least: bool = False) -> str | None:
    """Whether a figure reaches its target, as it is printed."""
    if found is None:
        return None
    value = float(f"{found.value:.2f}")
    met = value >= limit if at_least else value <= limit
    return f"{'>=' if at_least else '<='} {limit:g}: {'met' if met else '**not met**'}"


def _cell(value: str | Figure | None) -> str:
    if not isinstance(value, Figure):
        return "-" if value is None else value
    digits = 0 if value.value >= 100 else 1 if value.value >= 20 else 2
    noise = f" ± {value.noise:.{max(digits, 1)}f}" if value.noise else ""
    return f"{value.value:.{digits}f}{noise}"


def table(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown; a column with nothing in it is left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def worse(section: Section, now: Sequence[Row], before: Sequence[Row], by: float = 0.1) -> list[str]:
    """What is worse than it was, by more than a tenth and more than the noise of both."""
    known, found = {_of(row): row for row in before}, []
    for row in now:
        for column, figure in row.items():
            old = known.get(_of(row), {}).get(column)
            if not isinstance(figure, Figure) or not isinstance(old, Figure) or column in section.unchecked:
                continue
            lost = old.value - figure.value if column in section.more else figure.value - old.value
            if lost > max(by * old.value, figure.noise + old.noise):
                place = ", ".join(map(str, _of(row)))
                found.append(f"{section.name}, {place}, {column}: {_cell(old)} before, {_cell(figure)} now")
    return found


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """All rows, in the place of each network's first; what was measured again is as it is now."""
    rows = list(({_of(row): row for row in before} | {_of(row): row for row in now}).values())
    networks = list(dict.fromkeys(row["network"] for row in rows))
    return sorted(rows, key=lambda row: networks.index(row["network"]))


def _of(row: Row) -> tuple[object, ...]:
    return tuple(row.values())[:2]
