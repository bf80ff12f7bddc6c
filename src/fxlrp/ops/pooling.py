"""Pooling. With no rule: max pooling lets the winner take all, average pooling gives the plain gradient, as zennit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..reading import unwrap
from ..rules.defaults import gradient
from ..vocabulary import Call, register
from .facts import keeps_sign

__all__ = ["max_pooled"]

aten = torch.ops.aten


def _pool(
    *targets: Any,
    stand_in: Callable[[fx.Node], nn.Module | None],
    vjp: Any = None,
    linear: bool = False,
    divisor: str | None = None,
) -> None:
    register(
        *targets,
        stand_in=stand_in,
        default=gradient,
        vjp=vjp,
        linear=linear,
        non_negative=keeps_sign(*([] if divisor is None else [divisor])),
    )


def _window(kind: Callable[..., nn.Module]) -> Callable[[fx.Node], nn.Module]:
    return lambda node: kind(unwrap(node)[1][1])


def _output_size(kind: Callable[..., nn.Module]) -> Callable[[fx.Node], nn.Module]:
    return lambda node: kind(tuple(unwrap(node)[1][1]))


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
    x, kernel, stride, padding, dilation, ceil_mode
        As of max pooling, spelled out for each spatial dimension.
    winners : Tensor
        Where each value comes from: its position in the flattened spatial dimensions.
    """
    n = len(kernel)
    return x.flatten(-n).gather(-1, winners.flatten(-n)).view_as(winners)


def _max_pooled_stand_in(node: fx.Node) -> nn.Module:
    kernel: Any = unwrap(node)[1][1]
    return {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[len(kernel)](kernel)


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
    x, kernel = call.args[0].to(gradient.dtype), call.args[1]
    return (
        aten.avg_pool2d_backward(
            gradient,
            x,
            kernel,
            call.argument(2) or kernel,
            call.argument(3, [0, 0]),
            call.argument(4, False),
            call.argument(5, True),
            call.argument(6),
        ),
    )


def _adaptive_avg_pool2d_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (aten._adaptive_avg_pool2d_backward(gradient, call.args[0].to(gradient.dtype)),)


_pool(aten.max_pool1d.default, stand_in=_window(nn.MaxPool1d))
_pool(aten.max_pool2d.default, stand_in=_window(nn.MaxPool2d))
_pool(max_pooled, stand_in=_max_pooled_stand_in, vjp=_max_pooled_vjp)
_pool(aten.max_pool3d.default, stand_in=_window(nn.MaxPool3d))
_pool(aten.max_pool1d_with_indices.default, stand_in=_window(nn.MaxPool1d))
_pool(aten.max_pool2d_with_indices.default, stand_in=_window(nn.MaxPool2d))
_pool(aten.max_pool3d_with_indices.default, stand_in=_window(nn.MaxPool3d))
_pool(aten.adaptive_max_pool1d.default, stand_in=_output_size(nn.AdaptiveMaxPool1d))
_pool(aten.adaptive_max_pool2d.default, stand_in=_output_size(nn.AdaptiveMaxPool2d))
_pool(aten.adaptive_max_pool3d.default, stand_in=_output_size(nn.AdaptiveMaxPool3d))

_pool(aten.avg_pool1d.default, stand_in=_window(nn.AvgPool1d), linear=True)
_pool(
    aten.avg_pool2d.default,
    stand_in=_window(nn.AvgPool2d),
    vjp=_avg_pool2d_vjp,
    linear=True,
    divisor="divisor_override",
)
_pool(aten.avg_pool3d.default, stand_in=_window(nn.AvgPool3d), linear=True, divisor="divisor_override")
_pool(aten.adaptive_avg_pool1d.default, stand_in=_output_size(nn.AdaptiveAvgPool1d), linear=True)
_pool(
    aten.adaptive_avg_pool2d.default,
    stand_in=_output_size(nn.AdaptiveAvgPool2d),
    vjp=_adaptive_avg_pool2d_vjp,
    linear=True,
)
_pool(aten.adaptive_avg_pool3d.default, stand_in=_output_size(nn.AdaptiveAvgPool3d), linear=True)

# Over a dimension, or of two tensors, the winner takes all; of several in order, each takes its own.
_pool(
    aten.max.dim,
    aten.amax.default,
    aten.min.dim,
    aten.amin.default,
    aten.median.dim,
    aten.sort.default,
    aten.topk.default,
    stand_in=lambda node: None,
)
register(aten.maximum.default, aten.minimum.default, inputs=(0, 1), default=gradient)
