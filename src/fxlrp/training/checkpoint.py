"""The checkpoint of a training: what it holds, and whether a training may go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, TypeGuard

import torch
from torch import Tensor

from ..errors import InputError
from ..isnet.ranges import Ranges
from .log import COLUMNS, Row

__all__ = ["CHECKPOINT", "Checkpoint", "State", "read_checkpoint"]

CHECKPOINT = "checkpoint.pt"

FREE = ("epochs", "workers")
"""Settings that may be changed when a training is continued."""

PARTS = {"model": dict, "optimizer": dict, "scaler": dict | None, "ranges": dict, "rows": list, "conditions": dict}
"""What it holds, and of which type."""

INSTEAD = "Write to another --output, or begin anew with --restart"


class State(TypedDict):
    """What a model in training is: its state dict, and those of its optimizer and of the scaler, if there is one."""

    model: dict[str, Tensor]
    optimizer: dict[str, object]
    scaler: dict[str, object] | None


class Checkpoint(State):
    """A state with the ranges that were calibrated, the log so far, and the conditions of the training."""

    ranges: Ranges
    rows: list[Row]
    conditions: dict[str, object]


def read_checkpoint(path: Path, conditions: Mapping[str, object]) -> Checkpoint:
    """Read a checkpoint, to continue under these conditions.

    Raises
    ------
    InputError
        If it is broken, of something else, or of a training under other conditions.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    # Of broken files, the parser raises whatever it happens to.
    except Exception as error:
        raise InputError(f"{path} is broken, or no checkpoint. {INSTEAD}") from error
    if not _is_checkpoint(saved):
        raise InputError(f"{path} is no checkpoint of fxlrp train. {INSTEAD}")
    theirs = saved["conditions"]
    changed = [
        f"{name} was {theirs.get(name)}, is {value}"
        for name, value in conditions.items()
        if name not in FREE and theirs.get(name) != value
    ]
    if changed:
        raise InputError(
            f"{path} is of a training with other settings: {'; '.join(changed)}. Repeat those to continue, write "
            "to another --output, or begin anew with --restart"
        )
    return saved


def _is_checkpoint(saved: object) -> TypeGuard[Checkpoint]:
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name, ...), kind) for name, kind in PARTS.items()):
        return False
    return all(isinstance(row, dict) and tuple(row) == COLUMNS for row in saved["rows"])
