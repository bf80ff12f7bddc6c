"""A section of the tables: what it takes from the command line, and what it gives to the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scene_networks import Training
from torch import Tensor

__all__ = ["Loader", "Section", "Settings", "loader_of", "rows_of"]

Loader = list[tuple[Tensor, Tensor, Tensor]]
"""Batches of images, classes and masks."""


class Settings(NamedTuple):
    """What a user chose.

    Attributes
    ----------
    networks : sequence of str or None
        Of scene_networks.py; None is each section's own.
    images : int or None
        How many test scenes; None is each section's own.
    how : Training
        How the networks are trained.
    trials : int
        How many values a grid has to a side, and trials are made of.
    seconds : float
        That each way of searching gets.
    pictures : Path
        The folder for them.
    """

    networks: Sequence[str] | None
    images: int | None
    how: Training
    trials: int
    seconds: float
    pictures: Path


class Section(NamedTuple):
    """What is found about a paper.

    Attributes
    ----------
    name : str
        By which it is asked for, and its marks in the page.
    text : str
        What its table needs to be read.
    body : callable
        ``(settings) -> str``, Markdown.
    """

    name: str
    text: str
    body: Callable[[Settings], str]


def loader_of(x: Tensor, labels: Tensor, masks: Tensor, batch: int = 50) -> Loader:
    """Batches, for `fxlrp.compare`."""
    return list(zip(x.split(batch), labels.split(batch), masks.split(batch), strict=True))


def right(model: torch.nn.Module, x: Tensor, labels: Tensor, masks: Tensor, count: int) -> Loader:
    """The first scenes that a network gets right; of a network that gets none right, the first."""
    with torch.no_grad():
        seen = torch.cat([model(part).argmax(1) for part in x.split(100)]) == labels
    chosen = seen.nonzero()[:count, 0] if seen.any() else torch.arange(count)
    return loader_of(x[chosen], labels[chosen], masks[chosen])


def rows_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
