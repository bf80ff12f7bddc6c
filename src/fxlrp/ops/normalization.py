"""Normalizations over a sample's own values: linear, once the deviation is held constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..signature import Target
from .affine import per_channel
from .op import WEIGHT_AND_BIAS, Call, Op

__all__ = ["OPS", "group_norm_map", "layer_norm_map"]

aten = torch.ops.aten


def layer_norm_map(call: Call) -> Callable[[Tensor], Tensor]:
    """The linear map that a layer norm is at the call's values, their deviation held constant."""
    x, shape = call["input"], call["normalized_shape"]
    weight, bias, eps = call["weight"], call["bias"], call["eps"]
    dims = tuple(range(-len(shape), 0))
    scale = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    scale = scale if weight is None else scale * weight

    def linear(x: Tensor) -> Tensor:
        y = (x - x.mean(dims, keepdim=True)) * scale
        return y if bias is None else y + bias

    return linear


def group_norm_map(call: Call) -> Callable[[Tensor], Tensor]:
    """The linear map that a group norm is at the call's values, their deviation held constant."""
    x, groups = call["input"], call["num_groups"]
    weight, bias, eps = call["weight"], call["bias"], call["eps"]
    grouped = lambda x: x.reshape(x.shape[0], groups, -1)
    scale = (grouped(x).var(-1, correction=0, keepdim=True) + eps).rsqrt()

    def linear(x: Tensor) -> Tensor:
        y = grouped(x)
        y = ((y - y.mean(-1, keepdim=True)) * scale).reshape(x.shape)
        y = y if weight is None else y * per_channel(weight, x.ndim)
        return y if bias is None else y + per_channel(bias, x.ndim)

    return linear


OPS: dict[Target, Op] = {
    aten.layer_norm.default: Op(params=WEIGHT_AND_BIAS),
    aten.group_norm.default: Op(params=WEIGHT_AND_BIAS),
    aten.rms_norm.default: Op(params={"weight": "weight"}),
}
