"""The checkpoint of a training: what it holds, and whether a training may go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .report import COLUMNS

__all__ = ["CHECKPOINT", "read_checkpoint"]

CHECKPOINT = "checkpoint.pt"

FREE = ("epochs", "workers")
"""Settings that may be changed when a training is continued."""

PARTS = {"model": dict, "optimizer": dict, "scaler": dict | None, "ranges": dict, "rows": list, "conditions": dict}
"""What it holds, and of which type."""

INSTEAD = "Write to another --output, or begin anew with --restart"


def read_checkpoint(path: Path, conditions: dict[str, Any]) -> dict[str, Any]:
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
    whole = isinstance(saved, dict) and all(isinstance(saved.get(name, ...), kind) for name, kind in PARTS.items())
    if not whole or not all(isinstance(row, dict) and tuple(row) == COLUMNS for row in saved["rows"]):
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
