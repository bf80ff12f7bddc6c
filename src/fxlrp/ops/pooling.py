"""Pooling, and other choices of the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..signature import Target
from .op import Call, Op
from .sign import as_inputs, keeps_sign

__all__ = ["ADAPTIVE_POOLS", "AVG_POOLS", "MAX_POOLS", "OPS", "REDUCTIONS", "max_pooled"]

aten = torch.ops.aten


def max_pooled(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    winners: Tensor,
) -> Tensor:
    """Max pooling whose winners are known.

    Parameters
    ----------
    x : Tensor
        As of max pooling.
    kernel, stride, padding, dilation : sequence of int
        As of max pooling, spelled out for each spatial dimension.
    ceil_mode : bool
        As of max pooling.
    winners : Tensor
        Where each value comes from: its position in the flattened spatial dimensions.
    """
    n = len(kernel)
    return x.flatten(-n).gather(-1, winners.flatten(-n)).view_as(winners)


def _max_pooled_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, *window, winners = call.args
    n = len(window[0])
    if n == 2:
        # The backward op reads the input's shape alone.
        like = gradient.new_empty(()).expand(x.shape)
        return (aten.max_pool2d_with_indices_backward(gradient, like, *window, winners),)
    nothing = gradient.new_zeros(x.shape).flatten(-n)
    return (nothing.scatter_add(-1, winners.flatten(-n), gradient.flatten(-n)).view(x.shape),)


def _avg_pool2d_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, kernel, stride, *options = call.args
    return (aten.avg_pool2d_backward(gradient, x.to(gradient.dtype), kernel, stride or kernel, *options),)


def _adaptive_avg_pool2d_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (aten._adaptive_avg_pool2d_backward(gradient, call.args[0].to(gradient.dtype)),)


MAX_POOLS: tuple[Target, ...] = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
)
AVG_POOLS: tuple[Target, ...] = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
ADAPTIVE_POOLS: tuple[Target, ...] = (
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
REDUCTIONS: tuple[Target, ...] = (
    aten.max.dim,
    aten.amax.default,
    aten.min.dim,
    aten.amin.default,
    aten.median.dim,
    aten.sort.default,
    aten.topk.default,
)
"""Over a dimension, the winner takes all; of several in order, each takes its own."""

_divided = keeps_sign("divisor_override")

OPS: dict[Target, Op] = {
    **dict.fromkeys((*MAX_POOLS, *ADAPTIVE_POOLS[:3], *REDUCTIONS), Op(non_negative=as_inputs, carries_zeros=True)),
    max_pooled: Op(vjp=_max_pooled_vjp, non_negative=as_inputs, carries_zeros=True),
    aten.avg_pool1d.default: Op(linear=True, non_negative=as_inputs),
    aten.avg_pool2d.default: Op(vjp=_avg_pool2d_vjp, linear=True, non_negative=_divided),
    aten.avg_pool3d.default: Op(linear=True, non_negative=_divided),
    aten.adaptive_avg_pool1d.default: Op(linear=True, non_negative=as_inputs),
    aten.adaptive_avg_pool2d.default: Op(vjp=_adaptive_avg_pool2d_vjp, linear=True, non_negative=as_inputs),
    aten.adaptive_avg_pool3d.default: Op(linear=True, non_negative=as_inputs),
    **dict.fromkeys((aten.maximum.default, aten.minimum.default), Op(inputs=(0, 1), carries_zeros=True)),
}
