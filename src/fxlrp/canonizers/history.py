"""What canonization did, step by step: the graph as code after each rewrite."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["History", "Moment"]


@dataclass(frozen=True)
class Moment:
    """A graph after a rewrite.

    Attributes
    ----------
    rewrite : str
        The rewrite's name; "capture" for the graph as it was captured.
    seconds : float
        How long it took.
    code : str
        The graph as Python code.
    ops : int
        How many ops it has.
    """

    rewrite: str
    seconds: float
    code: str
    ops: int


@dataclass(frozen=True)
class History:
    """The graph after each rewrite; printed, its code where it changed, and one line where it did not.

    Attributes
    ----------
    moments : tuple of Moment
        In their order; the first is the capture.
    """

    moments: tuple[Moment, ...]

    def __str__(self) -> str:
        parts, before = [], ""
        for moment in self.moments:
            head = f"# {moment.rewrite}: {moment.seconds:.3f} s, {moment.ops} ops"
            parts.append(f"{head}, nothing changed" if moment.code == before else f"{head}\n{moment.code}")
            before = moment.code
        return "\n".join(parts)
