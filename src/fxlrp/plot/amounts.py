"""Amounts of relevance, in units of the seed, as short texts."""

from __future__ import annotations

__all__ = ["MANY", "percent", "short", "tick", "times"]

MANY = 9.995
"""From here on, percents are hard to read."""


def short(amount: float) -> str:
    """A share, or a multiple where it is large."""
    return (times if abs(amount) >= MANY else percent)(amount)


def percent(amount: float) -> str:
    """A share as a short text: 45%, 4.5%, 0.3%; "~0" is less than that."""
    size = abs(amount)
    if size < 5e-4:
        return "~0" if size else "0"
    return f"{amount:.0%}" if size >= 0.0995 else f"{100 * amount:.1f}%"


def times(amount: float) -> str:
    """A multiple as a short text: 1.2e+05x, 120x, 4.5x, 0.3x."""
    size = abs(amount)
    return f"{amount:.1e}x" if size >= 9999.5 else f"{amount:.0f}x" if size >= 99.5 else f"{amount:.1f}x"


def tick(amount: float) -> str:
    """A number below an axis."""
    return f"{amount:g}x" if abs(amount) >= 10 else f"{100 * amount:g}%" if amount else "0"
