"""Wording: what messages and printed tables have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["columns", "did_you_mean", "near_to"]


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a clause that says what `word` is not: ``; did you mean 'this'?``, or a full stop."""
    near = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else ()
    return f"; did you mean '{near[0]}'?" if near else "."


def near_to(word: str, known: Iterable[str], first: Sequence[str] = ()) -> str:
    """A sentence that names up to eight of `known`, those in `first` in front of those that are spelled alike."""
    near = list(dict.fromkeys([*first[:5], *difflib.get_close_matches(word, list(known), n=3)]))
    return f" Near to it are: {', '.join(near)}." if near else ""


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None) -> list[str]:
    """A table as lines of text: the head, a rule, and the rows.

    Parameters
    ----------
    head : sequence of str
        The columns' names.
    rows : iterable of sequences of str
        The cells.
    left : int or None
        How many columns stand at their left edge, in front of those of numbers; None for all.
    """
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(head) if left is None else left

    def line(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(f"{cell:{'<' if i < left else '>'}{width}}" for i, (cell, width) in cells).rstrip()

    lines = [line(row) for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
