"""Linear layers: fully connected, convolutions, transposed convolutions, with a bias map or a scale of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import name_of_target
from ..signature import Parameter, Target, parameters
from .affine import per_channel
from .convolution import Geometry, convolve, transpose
from .derivative import pull_back
from .op import WEIGHT_AND_BIAS, Call, Channels, Op

__all__ = [
    "CONVOLUTIONS",
    "LINEAR",
    "OPS",
    "TRANSPOSED",
    "layer_of",
    "of_each_dimension",
    "padded_convolution",
    "scaled_weight",
    "with_bias_map",
    "with_scale",
]

aten = torch.ops.aten
_FUNCTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


def of_each_dimension(value: int | Sequence[int], n: int) -> list[int]:
    """A stride, padding or dilation, spelled out for each of `n` dimensions."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * n if len(sizes) == 1 else sizes


def padded_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad: Sequence[int],
) -> Tensor:
    """A convolution that pads its input with zeros first, by amounts of its own on each side.

    One op, so that a rule which does not look at its input (flat, w-square, box) gives nothing to the padding.

    Parameters
    ----------
    x, weight, bias : Tensor
        As of a convolution.
    stride, padding, dilation : sequence of int
        As of a convolution, spelled out.
    groups : int
        As of a convolution.
    pad : sequence of int
        As of `torch.nn.functional.pad`.
    """
    return _FUNCTIONS[x.ndim - 2](
        nn.functional.pad(x, list(pad)), weight, bias, list(stride), list(padding), list(dilation), groups
    )


CONVOLUTIONS: tuple[Target, ...] = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    padded_convolution,
)
TRANSPOSED: tuple[Target, ...] = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
LINEAR: tuple[Target, ...] = (aten.linear.default,)
_LAYERS: dict[Target, Target] = {}


def layer_of(target: Target) -> Target:
    """The linear layer that `target` is but for a bias map or a scale, if it has one; any other op as it is."""
    return _LAYERS.get(target, target)


def _spelled_as(layer: Target, function: Callable[..., Tensor], name: str, *further: str) -> Target:
    """A function with the parameters of a layer, and further ones behind them."""
    own = [_parameter(each) for each in parameters(layer)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ends = [inspect.Parameter(each, kind, default=None) for each in further]
    function.__name__ = f"{name_of_target(layer).removeprefix('aten.').replace('.', '_')}_{name}"
    function.__signature__ = inspect.Signature([*own, *ends])  # pyright: ignore[reportFunctionMemberAccess]
    _LAYERS[function] = layer_of(layer)
    return function


def _parameter(each: Parameter) -> inspect.Parameter:
    default = inspect.Parameter.empty if each.required else each.default
    return inspect.Parameter(each.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


def _with_bias_map(layer: Target) -> Target:
    def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        value = layer(x, weight, None, *options)
        return value if bias is None else value + bias

    return _spelled_as(layer, mapped, "with_bias_map")


with_bias_map: dict[Target, Target] = {layer: _with_bias_map(layer) for layer in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR)}
"""For each linear layer, the same with a bias that is a feature map, of one sample: it broadcasts with the value."""


def scaled_weight(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    """A linear layer's weight with each output channel scaled.

    Parameters
    ----------
    weight : Tensor
        The layer's.
    scale : Tensor
        Shape (C_out,).
    groups : int
        The convolution's groups.
    transposed : bool
        Whether it is a transposed convolution, whose weight has its output channels in dimension 1.
    """
    if not transposed:
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    # (C_in, C_out / groups, ...): a group's output channels stand side by side in dimension 1.
    per_group = weight.unflatten(0, (groups, -1))
    return (per_group * scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).flatten(0, 1)


def _with_scale(layer: Target) -> Target:
    def scaled(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *own, scale = options
        groups = own[_group_position(layer)] if weight.ndim > 2 else 1
        return layer(x, scaled_weight(weight, scale, groups, layer_of(layer) in TRANSPOSED), bias, *own)

    return _spelled_as(layer, scaled, "with_scale", "scale")


def _group_position(layer: Target) -> int:
    return [each.name for each in parameters(layer)].index("groups") - 3


with_scale: dict[Target, Target] = {layer: _with_scale(layer) for layer in (*with_bias_map, *with_bias_map.values())}
"""For each linear layer, the same with a factor for each output channel, shape (C_out,), beside its weight."""


def _scaled(call: Call, scale: Tensor) -> Tensor:
    """The weight of a call of a linear layer, each output channel scaled."""
    groups = call["groups"] if call["weight"].ndim > 2 else 1
    return scaled_weight(call["weight"], scale, groups, layer_of(call.target) in TRANSPOSED)


def _scale_of(call: Call) -> Tensor | None:
    return call["scale"] if "scale" in call.names else None


def _taken_in(call: Call, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the weight, with the scale that stands outside of the weight in whichever is smaller."""
    scale, weight = _scale_of(call), call["weight"]
    if scale is not None and weight.numel() < gradient.numel():
        weight = _scaled(call, scale)
    elif scale is not None:
        gradient = gradient * _along(scale, call).to(gradient.dtype)
    return gradient, weight.to(gradient.dtype)


def _along(channels: Tensor, call: Call) -> Tensor:
    """A number for each output channel, to broadcast with the value of a linear layer."""
    return channels if call["weight"].ndim == 2 else per_channel(channels, call.args[0].ndim)


def _run(call: Call) -> Tensor:
    """The value of a linear layer."""
    x, weight, bias, scale = call.args[0], call["weight"], call["bias"], _scale_of(call)
    weight = weight.to(x.dtype)
    # What is scaled, or has a bias map, gets its bias beside.
    own = bias.to(x.dtype) if bias is not None and bias.ndim == 1 and scale is None else None
    layer = layer_of(call.target)
    geometry = None if weight.ndim == 2 or layer is padded_convolution else _geometry(call)
    if geometry is None:
        options = call.args[3:] if scale is None else call.args[3:-1]
        value = layer(x, weight, own, *options)
    else:
        value = convolve(x, weight, geometry, own)
    if scale is not None:
        value = value * _along(scale, call).to(value.dtype)
    if bias is None or own is not None:
        return value
    return value + (bias if bias.ndim > 1 else _along(bias, call)).to(value.dtype)


def _geometry(call: Call) -> Geometry | None:
    """How the kernel of a (transposed) convolution moves; None if it pads one side more than the other."""
    kernel = call["weight"].shape[2:]
    n = len(kernel)
    stride, dilation = (of_each_dimension(call[name], n) for name in ("stride", "dilation"))
    padding = call["padding"]
    if layer_of(call.target) in TRANSPOSED:
        output_padding = of_each_dimension(call["output_padding"], n)
        return Geometry(stride, of_each_dimension(padding, n), dilation, True, output_padding, call["groups"])
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    padding = of_each_dimension(0 if padding == "valid" else padding, n)
    return Geometry(stride, padding, dilation, False, [0] * n, call["groups"])


def _linear_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    gradient, weight = _taken_in(call, gradient)
    return (gradient.matmul(weight),)


def _convolution_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    geometry = _geometry(call)
    gradient, weight = _taken_in(call, gradient)
    if geometry is None:
        layer, options = layer_of(call.target), call.args[3:] if _scale_of(call) is None else call.args[3:-1]
        return pull_back(lambda x: layer(x, weight, None, *options), call.args[0].to(gradient.dtype))[1](gradient)
    return (transpose(gradient, weight, tuple(call.args[0].shape), geometry),)


def _padded_convolution_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, pad = call.args[0], list(call["pad"])
    # The shape alone is read, as above.
    padded = nn.functional.pad(x.new_empty(()).expand(x.shape), pad)
    (found,) = _convolution_vjp(replace(call, args=(padded, *call.args[1:])), gradient)
    return (nn.functional.pad(found, [-amount for amount in pad]),)


def _bias_of(call: Call) -> Tensor | None:
    """The value at an input of zeros."""
    bias = call["bias"]
    return bias if bias is None or bias.ndim > 1 else _along(bias, call)


def _vjp_of(layer: Target) -> Callable[[Call, Tensor], tuple[Tensor, ...]]:
    if layer in LINEAR:
        return _linear_vjp
    return _padded_convolution_vjp if layer is padded_convolution else _convolution_vjp


def _channels_of(target: Target) -> Channels | None:
    """None of a layer with a scale beside, which has channels of its own."""
    if target in with_scale.values():
        return None
    layer = layer_of(target)
    return Channels(0, -1) if layer in LINEAR else Channels(int(layer in TRANSPOSED), 1)


OPS: dict[Target, Op] = {
    target: Op(
        params=WEIGHT_AND_BIAS, vjp=_vjp_of(layer_of(target)), at_zero=_bias_of, run=_run, channels=_channels_of(target)
    )
    for target in (*with_bias_map, *with_bias_map.values(), *with_scale.values())
}
