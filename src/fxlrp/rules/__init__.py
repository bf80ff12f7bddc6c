"""Rules: how one op's relevance goes to its inputs."""

from .attnlrp import Attention, Bilinear, Gate, Half, Linearized, Softmax
from .base import Account, Rule, Site
from .plain import Gradient, Pass, Transpose
from .stabilizing import stabilizers
from .zennit.basic import BasicRule
from .zennit.hook import HookRule

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
    "Site",
    "Softmax",
    "Transpose",
    "stabilizers",
]
