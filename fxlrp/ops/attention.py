"""Softmax, matrix products of activations, and attention: by AttnLRP (arXiv 2402.05602)."""

from __future__ import annotations

import torch
from torch import fx

from ..rules.base import Rule
from ..rules.defaults import Attention, Matmul, Slots, Softmax, proportional
from ..vocabulary import register

aten = torch.ops.aten


def _matmul(node: fx.Node, slots: Slots) -> Rule:
    return Matmul() if len(slots) == 2 else proportional(node, slots)


register(
    aten.softmax.int, aten._softmax.default, default=lambda node, slots: Softmax(), non_negative=lambda node, _: True
)
register(aten.matmul.default, aten.bmm.default, aten.mm.default, inputs=(0, 1), default=_matmul)
register(aten.scaled_dot_product_attention.default, inputs=(0, 1, 2), default=lambda node, slots: Attention())
