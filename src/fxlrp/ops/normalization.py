"""Normalizations over a sample's own values: linear, once the deviation is held constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..rules.defaults import Linearized, passed
from ..vocabulary import Call, register

aten = torch.ops.aten


def _layer_norm(call: Call) -> Callable[[Tensor], Tensor]:
    x, shape = call.args[0], call.args[1]
    weight, bias, eps = call.argument(2), call.argument(3), call.argument(4, 1e-5)
    dims = tuple(range(-len(shape), 0))
    scale = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    scale = scale if weight is None else scale * weight

    def linear(x: Tensor) -> Tensor:
        y = (x - x.mean(dims, keepdim=True)) * scale
        return y if bias is None else y + bias

    return linear


def _group_norm(call: Call) -> Callable[[Tensor], Tensor]:
    x, groups = call.args[0], call.args[1]
    weight, bias, eps = call.argument(2), call.argument(3), call.argument(4, 1e-5)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    grouped = lambda x: x.reshape(x.shape[0], groups, -1)
    scale = (grouped(x).var(-1, correction=0, keepdim=True) + eps).rsqrt()

    def linear(x: Tensor) -> Tensor:
        y = grouped(x)
        y = ((y - y.mean(-1, keepdim=True)) * scale).reshape(x.shape)
        y = y if weight is None else y * weight.reshape(per_channel)
        return y if bias is None else y + bias.reshape(per_channel)

    return linear


_PARAMS = {"weight": 2, "bias": 3}
register(aten.layer_norm.default, params=_PARAMS, default=lambda node, slots: Linearized(_layer_norm))
register(aten.group_norm.default, params=_PARAMS, default=lambda node, slots: Linearized(_group_norm))
# With its deviation held, a factor for each value: relevance passes.
register(aten.rms_norm.default, params={"weight": 2}, default=passed)
