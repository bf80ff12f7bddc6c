"""Normalizations over a sample's own values: linear, once the deviation is held constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..signature import Target
from .affine import per_channel
from .op import WEIGHT_AND_BIAS, Call, Op

__all__ = ["OPS", "NormalizedMap", "group_norm_map", "layer_norm_map"]

aten = torch.ops.aten


@dataclass(frozen=True)
class NormalizedMap:
    """The linear map that a normalization is once its deviation is held constant: ``scale (x - mean(x)) + bias``.

    Attributes
    ----------
    centred : callable
        ``x -> x - mean(x)``, its own transpose.
    scale : Tensor
        Of the values' shape, or one that broadcasts to it.
    bias : Tensor or None
        Likewise.
    """

    centred: Callable[[Tensor], Tensor]
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        y = self.centred(x) * self.scale
        return y if self.bias is None else y + self.bias

    def transposed(self, y: Tensor) -> Tensor:
        """The transpose of the map without its bias."""
        return self.centred(y * self.scale)


def layer_norm_map(call: Call) -> NormalizedMap:
    """The linear map that a layer norm is at the call's values, their deviation held constant."""
    dims = tuple(range(-len(call["normalized_shape"]), 0))
    centred = lambda x: x - x.mean(dims, keepdim=True)
    scale = _inverse_deviation(centred, call["input"], dims, call["eps"])
    return NormalizedMap(centred, scale if call["weight"] is None else scale * call["weight"], call["bias"])


def group_norm_map(call: Call) -> NormalizedMap:
    """The linear map that a group norm is at the call's values, their deviation held constant."""
    x, groups = call["input"], call["num_groups"]
    weight, bias = (None if p is None else per_channel(p, x.ndim) for p in (call["weight"], call["bias"]))
    grouped = lambda x: x.unflatten(1, (groups, x.shape[1] // groups)).flatten(2)
    centred = lambda x: grouped(x) - grouped(x).mean(-1, keepdim=True)
    of_groups = _inverse_deviation(centred, x, (-1,), call["eps"])
    scale = of_groups.repeat_interleave(x.shape[1] // groups, 1).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return NormalizedMap(lambda x: centred(x).reshape(x.shape), scale if weight is None else scale * weight, bias)


def _inverse_deviation(centred: Callable[[Tensor], Tensor], x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Of all that has one mean; half a dtype's squares would overflow. `torch.var` takes four times as long."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return (centred(exact).square().mean(dims, keepdim=True) + eps).rsqrt()


OPS: dict[Target, Op] = {
    aten.layer_norm.default: Op(params=WEIGHT_AND_BIAS),
    aten.group_norm.default: Op(params=WEIGHT_AND_BIAS),
    aten.rms_norm.default: Op(params={"weight": "weight"}),
}
