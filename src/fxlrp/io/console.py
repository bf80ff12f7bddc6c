"""Prints text as it is: names of files and classes are no markup, and lines are not wrapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["make_console", "make_error_console", "printable", "progress_bar", "say", "walk"]

Step = TypeVar("Step")


def make_console() -> Console:
    """The console of the command line."""
    from rich.console import Console

    return Console(highlight=False)


def make_error_console() -> Console:
    """A console beside what is printed: where functions of the library show how far they are."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(console: Console, text: str) -> None:
    """Print text as it is."""
    lines = map(printable, text.split("\n"))
    console.print("\n".join(lines), soft_wrap=True, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """Text with a mark for each character that is none: those of a name that is not UTF-8, and line breaks."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def progress_bar(console: Console, *, transient: bool = False, disable: bool = False) -> Progress:
    """A bar for each task: what is done, how far it is, and how long it will take; transient: it goes in the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=transient, disable=disable)


def walk(console: Console, steps: Iterable[Step], what: str) -> Iterable[Step]:
    """The steps, one after the other, with a bar that shows how far it is."""
    from rich.progress import track

    return track(steps, what, console=console, transient=True)
