"""Softmax, matrix products of activations, and attention, which is made of these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..signature import Target
from .derivative import pull_back
from .op import Call, Op
from .sign import always

__all__ = ["ATTENTION", "OPS", "PRODUCTS", "SOFTMAX", "attention_as_products"]

aten = torch.ops.aten

SOFTMAX: tuple[Target, ...] = (aten.softmax.int, aten._softmax.default)
PRODUCTS: tuple[Target, ...] = (aten.matmul.default, aten.bmm.default, aten.mm.default)
ATTENTION: Target = aten.scaled_dot_product_attention.default
"""One that drops weights is spelled out when it is captured: which they are, the op does not tell."""


def attention_as_products(*args: Any, **kwargs: Any) -> Tensor:
    """``aten.scaled_dot_product_attention`` by its formula: the kernels have no second derivative."""
    return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]


def _attention_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    exact = lambda x: x.to(gradient.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
    call = replace(call, args=tuple(map(exact, call.args)))
    run = lambda *inputs: attention_as_products(*call.with_inputs(inputs).args, **call.kwargs)
    return pull_back(run, *call.inputs)[1](gradient)


OPS: dict[Target, Op] = {
    **dict.fromkeys(SOFTMAX, Op(non_negative=always)),
    **dict.fromkeys(PRODUCTS, Op(inputs=(0, 1))),
    aten.einsum.default: Op(inputs=(1,)),
    ATTENTION: Op(inputs=(0, 1, 2), vjp=_attention_vjp),
}
