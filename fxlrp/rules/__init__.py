"""Rules: how one op's relevance goes to its inputs."""

from .base import Account, Gradient, Pass, Rule, Transpose
from .basic import BasicRule
from .defaults import Attention, Gate, Half, Linearized, Matmul, Softmax
from .hook import HookRule

__all__ = [
    "Account",
    "Attention",
    "BasicRule",
    "Gate",
    "Gradient",
    "Half",
    "HookRule",
    "Linearized",
    "Matmul",
    "Pass",
    "Rule",
    "Softmax",
    "Transpose",
]
