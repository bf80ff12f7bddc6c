"""Prints text as it is: names of files and classes are no markup, and lines are not wrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["make_console", "printable", "say"]


def make_console() -> Console:
    """The console of the command line."""
    from rich.console import Console

    return Console(highlight=False)


def say(console: Console, text: str) -> None:
    """Print text as it is."""
    lines = map(printable, text.split("\n"))
    console.print("\n".join(lines), soft_wrap=True, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """Text with a mark for each character that is none: those of a name that is not UTF-8, and line breaks."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
