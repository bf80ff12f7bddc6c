"""Puts what a benchmark printed in between its marks in the pages of the documentation."""

from __future__ import annotations

from pathlib import Path

__all__ = ["put"]


def put(page: Path, begin: str, end: str, body: str) -> None:
    """Replace what stands between `<!-- begin -->` and the next `<!-- end of end -->`; a page without them stays."""
    text = page.read_text()
    before, mark, rest = text.partition(f"<!-- {begin} -->\n")
    if mark:
        _, last, after = rest.partition(f"<!-- end of {end} -->")
        page.write_text(f"{before}{mark}{body}\n\n{last}{after}")
