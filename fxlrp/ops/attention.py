"""Softmax, matrix products of activations, and attention: by AttnLRP (arXiv 2402.05602)."""

from __future__ import annotations

import torch
from torch import fx

from ..graph import argument, unwrap
from ..rules.base import Rule
from ..rules.defaults import Attention, Bilinear, Slots, Softmax, proportional
from ..vocabulary import register

aten = torch.ops.aten


def _product(node: fx.Node, slots: Slots) -> Rule | None:
    factors = len(unwrap(node)[1][1]) if unwrap(node)[0] is aten.einsum.default else 2
    if len(slots) == 1:
        return proportional(node, slots)
    return Bilinear() if factors == len(slots) == 2 else None


def _attention(node: fx.Node, slots: Slots) -> Rule | None:
    # Which weights are dropped, the op does not tell.
    return None if argument(node, "dropout_p") else Attention()


register(
    aten.softmax.int, aten._softmax.default, default=lambda node, slots: Softmax(), non_negative=lambda node, _: True
)
register(aten.matmul.default, aten.bmm.default, aten.mm.default, inputs=(0, 1), default=_product)
register(aten.einsum.default, inputs=(1,), default=_product)
register(aten.scaled_dot_product_attention.default, inputs=(0, 1, 2), default=_attention)
