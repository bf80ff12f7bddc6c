"""Rules: how one op's relevance goes to its inputs."""

from .base import Account, Gradient, Pass, Rule, Transpose
from .basic import BasicRule
from .defaults import Attention, Bilinear, Gate, Half, Linearized, Softmax
from .hook import HookRule

__all__ = [
    "Account",
    "Attention",
    "BasicRule",
    "Bilinear",
    "Gate",
    "Gradient",
    "Half",
    "HookRule",
    "Linearized",
    "Pass",
    "Rule",
    "Softmax",
    "Transpose",
]
