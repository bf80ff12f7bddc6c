"""What a training depends on, beside its images."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRETRAINED", "TrainSettings"]

PRETRAINED = "pretrained"
"""What stands for a file of weights where the library's pretrained ones are wanted."""


@dataclass(frozen=True)
class TrainSettings:
    """The options of `fxlrp train`, where they are described and have their defaults."""

    model: str
    weights: str
    variant: str
    deep_supervision: bool
    first_layer: str | None
    epsilon: float
    size: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    p: float
    d: float
    w1: float
    w2: float
    calibration_epochs: int
    validation: float
    seed: int
    workers: int
    precision: str
