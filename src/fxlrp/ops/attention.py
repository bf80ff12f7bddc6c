"""Softmax, matrix products of activations, and attention: by AttnLRP (arXiv 2402.05602)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..reading import unwrap
from ..rules.base import Rule
from ..rules.defaults import Attention, Bilinear, Slots, Softmax, proportional
from ..vocabulary import Call, pull_back, register

__all__ = ["attention_as_products"]

aten = torch.ops.aten


def attention_as_products(*args: Any, **kwargs: Any) -> Tensor:
    """``aten.scaled_dot_product_attention`` by its formula: the kernels have no second derivative."""
    return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]


def _attention_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    exact = lambda x: x.to(gradient.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
    call = replace(call, args=tuple(map(exact, call.args)))
    run = lambda *inputs: attention_as_products(*call.with_inputs(inputs).args, **call.kwargs)
    return pull_back(run, *call.inputs)[1](gradient)


def _product(node: fx.Node, slots: Slots) -> Rule | None:
    factors = len(unwrap(node)[1][1]) if unwrap(node)[0] is aten.einsum.default else 2
    if len(slots) == 1:
        return proportional(node, slots)
    return Bilinear() if factors == len(slots) == 2 else None


register(
    aten.softmax.int, aten._softmax.default, default=lambda node, slots: Softmax(), non_negative=lambda node, _: True
)
register(aten.matmul.default, aten.bmm.default, aten.mm.default, inputs=(0, 1), default=_product)
register(aten.einsum.default, inputs=(1,), default=_product)
# One that drops weights is spelled out when it is captured: which they are, the op does not tell.
register(
    aten.scaled_dot_product_attention.default,
    inputs=(0, 1, 2),
    default=lambda node, slots: Attention(),
    vjp=_attention_vjp,
)
