"""Linear layers: fully connected, convolutions, transposed convolutions, and the affine map that a batch norm is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import name_of_target
from ..reading import unwrap
from ..rules.defaults import gradient, passed
from ..signature import Target
from ..vocabulary import Call, lookup, pull_back, register
from .convolution import Geometry, convolve, transpose

__all__ = [
    "CONVOLUTIONS",
    "LINEAR",
    "TRANSPOSED",
    "affine",
    "constant_map",
    "layer_of",
    "padded_convolution",
    "scaled_weight",
    "with_bias_map",
]

aten = torch.ops.aten
_PARAMS = {"weight": 1, "bias": 2}
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight * x + bias`` along the channels (dimension 1): what a batch norm is to relevance.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, ...).
    weight, bias : Tensor
        Shape (C,).
    """
    return torch.addcmul(_channels(bias, x.ndim), x, _channels(weight, x.ndim))


def constant_map(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight * x + bias`` by constants of the model's: scaling and centering, an embedding added to pixels.

    Parameters
    ----------
    x : Tensor
        Shape (B, ...).
    weight, bias : Tensor
        Of the same number of dimensions, 1 in the first one; they broadcast to x.
    """
    return torch.addcmul(bias, x, weight)


def _channels(param: Tensor, ndim: int) -> Tensor:
    return param.reshape(-1, *(1,) * (ndim - 2))


def _value(node: fx.Node, position: int) -> Any:
    argument = unwrap(node)[1][position]
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _argument(node: fx.Node, position: int, default: Any = None) -> Any:
    args = unwrap(node)[1]
    return args[position] if position < len(args) else default


def _each(value: Any, n: int) -> list[int]:
    """A stride, padding or dilation, spelled out for each of `n` dimensions."""
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


def _linear_stand_in(node: fx.Node) -> nn.Module:
    out_features, in_features = _value(node, 1).shape
    return nn.Linear(in_features, out_features, bias=_argument(node, 2) is not None, device="meta")


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


def _scaled(call: Call, scale: Tensor) -> Tensor:
    """The weight of a call of a linear layer, each output channel scaled."""
    groups = call.argument(6, 1) if call.args[1].ndim > 2 else 1
    return scaled_weight(call.args[1], scale, groups, call.target in _ALL_TRANSPOSED)


def _with_scale(call: Call, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the weight, with the scale that stands outside of the weight in whichever is smaller."""
    scale, weight = call.channel_scale, call.args[1]
    if scale is not None and weight.numel() < gradient.numel():
        weight = _scaled(call, scale)
    elif scale is not None:
        gradient = gradient * _along(scale, call).to(gradient.dtype)
    return gradient, weight.to(gradient.dtype)


def _along(channels: Tensor, call: Call) -> Tensor:
    """A number for each output channel, to broadcast with the value of a linear layer."""
    return channels if call.args[1].ndim == 2 else _channels(channels, call.args[0].ndim)


def _run(call: Call) -> Tensor:
    """The value of a linear layer."""
    x, weight, bias, options = call.args[0], call.args[1], call.argument(2), call.args[3:]
    geometry = None if weight.ndim == 2 or call.target in _PADDED else _geometry(call)
    weight = weight.to(x.dtype)
    value = call.target(x, weight, None, *options) if geometry is None else convolve(x, weight, geometry)
    if call.channel_scale is not None:
        value = value * _along(call.channel_scale, call).to(value.dtype)
    if bias is None:
        return value
    return value + (bias if bias.ndim > 1 else _along(bias, call)).to(value.dtype)


def _linear_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    gradient, weight = _with_scale(call, gradient)
    return (gradient.matmul(weight),)


register(
    aten.linear.default,
    params=_PARAMS,
    stand_in=_linear_stand_in,
    default=gradient,
    vjp=_linear_vjp,
    at_zero=lambda call: call.argument(2),
    run=_run,
    scaled=_scaled,
)


def _batch_norm_stand_in(node: fx.Node) -> nn.Module:
    x = _value(node, 0)
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.ndim, nn.BatchNorm1d)
    return kind(int(x.shape[1]), device="meta")


register(
    affine,
    params=_PARAMS,
    stand_in=_batch_norm_stand_in,
    default=gradient,
    vjp=lambda call, gradient: (gradient * _channels(call.args[1], gradient.ndim),),
    at_zero=lambda call: _channels(call.args[2], call.args[0].ndim),
    products=lambda call: call.args[0] * _channels(call.args[1], call.args[0].ndim),
)


# A frozen batch norm, but for its name: zennit leaves one without a rule to the gradient, which does not conserve.
register(
    constant_map,
    params=_PARAMS,
    stand_in=_batch_norm_stand_in,
    default=passed,
    vjp=lambda call, gradient: (gradient * call.args[1].to(gradient.dtype),),
    at_zero=lambda call: call.args[2],
    products=lambda call: call.args[0] * call.args[1],
)


def _geometry(call: Call) -> Geometry | None:
    """How the kernel of a (transposed) convolution moves; None if it pads one side more than the other."""
    n = call.args[1].ndim - 2
    spelled = lambda position, default: _each(call.argument(position, default), n)
    if call.target in _ALL_TRANSPOSED:
        stride, padding, output_padding, dilation = spelled(3, 1), spelled(4, 0), spelled(5, 0), spelled(7, 1)
        return Geometry(stride, padding, dilation, True, output_padding, call.argument(6, 1))
    dilation, padding = spelled(5, 1), call.argument(4, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, call.args[1].shape[2:], strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    padding = _each(0 if padding == "valid" else padding, n)
    return Geometry(spelled(3, 1), padding, dilation, False, [0] * n, call.argument(6, 1))


def _convolution_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    geometry = _geometry(call)
    gradient, weight = _with_scale(call, gradient)
    if geometry is None:
        at = replace(call.with_params({"weight": weight}), channel_scale=None)
        return pull_back(lambda x: at.with_inputs([x]).run(), call.args[0])[1](gradient)
    return (transpose(gradient, weight, tuple(call.args[0].shape), geometry),)


def _convolution_stand_in(n: int) -> Callable[[fx.Node], nn.Module]:
    def stand_in(node: fx.Node) -> nn.Module:
        weight, groups = _value(node, 1), _argument(node, 6, 1)
        padding = _argument(node, 4, 0)
        return _CONV[n](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(_each(_argument(node, 3, 1), n)),
            padding=padding if isinstance(padding, str) else tuple(_each(padding, n)),
            dilation=tuple(_each(_argument(node, 5, 1), n)),
            groups=groups,
            bias=_argument(node, 2) is not None,
            device="meta",
        )

    return stand_in


def _convolution_transpose_stand_in(n: int) -> Callable[[fx.Node], nn.Module]:
    def stand_in(node: fx.Node) -> nn.Module:
        weight, groups = _value(node, 1), _argument(node, 6, 1)
        return _CONV_TRANSPOSE[n](
            weight.shape[0],
            weight.shape[1] * groups,
            tuple(weight.shape[2:]),
            stride=tuple(_each(_argument(node, 3, 1), n)),
            padding=tuple(_each(_argument(node, 4, 0), n)),
            output_padding=tuple(_each(_argument(node, 5, 0), n)),
            groups=groups,
            bias=_argument(node, 2) is not None,
            dilation=tuple(_each(_argument(node, 7, 1), n)),
            device="meta",
        )

    return stand_in


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
    stride, padding, dilation, groups
        As of a convolution, spelled out.
    pad : sequence of int
        As of `torch.nn.functional.pad`.
    """
    return _FUNCTIONS[x.ndim - 2](
        nn.functional.pad(x, list(pad)), weight, bias, list(stride), list(padding), list(dilation), groups
    )


_FUNCTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


def _padded_convolution_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, *operands, pad = call.args
    # The shape alone is read, as above.
    padded = nn.functional.pad(x.new_empty(()).expand(x.shape), list(pad))
    inner = replace(call, args=(padded, *operands))
    (found,) = _convolution_vjp(inner, gradient)
    return (nn.functional.pad(found, [-amount for amount in pad]),)


def _bias_map(call: Call) -> Tensor | None:
    bias = call.argument(2)
    return None if bias is None else _channels(bias, call.args[0].ndim)


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

for _n in (1, 2, 3):
    register(
        *CONVOLUTIONS[2 * _n - 2 : 2 * _n],
        params=_PARAMS,
        stand_in=_convolution_stand_in(_n),
        default=gradient,
        vjp=_convolution_vjp,
        at_zero=_bias_map,
        run=_run,
        scaled=_scaled,
    )
    register(
        TRANSPOSED[_n - 1],
        params=_PARAMS,
        stand_in=_convolution_transpose_stand_in(_n),
        default=gradient,
        vjp=_convolution_vjp,
        at_zero=_bias_map,
        run=_run,
        scaled=_scaled,
    )

register(
    padded_convolution,
    params=_PARAMS,
    stand_in=lambda node: _convolution_stand_in(_value(node, 0).ndim - 2)(node),
    default=gradient,
    vjp=_padded_convolution_vjp,
    at_zero=_bias_map,
    run=_run,
    scaled=_scaled,
)


def _with_bias_map(layer: Target) -> Target:
    entry = lookup(layer)
    assert entry is not None

    def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        value = layer(x, weight, None, *options)
        return value if bias is None else value + bias

    mapped.__name__ = f"{name_of_target(layer).removeprefix('aten.').replace('.', '_')}_with_bias_map"
    register(
        mapped,
        params=_PARAMS,
        stand_in=entry.stand_in,
        default=gradient,
        vjp=entry.vjp,
        at_zero=lambda call: call.argument(2),
        run=_run,
        scaled=_scaled,
    )
    return mapped


with_bias_map: dict[Target, Target] = {layer: _with_bias_map(layer) for layer in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR)}
"""For each linear layer, the same with a bias that is a feature map, of one sample: it broadcasts with the value."""
_LAYERS = {mapped: layer for layer, mapped in with_bias_map.items()}


def layer_of(target: Any) -> Any:
    """The linear layer that `target` is but for a bias map, if it has one; any other op as it is."""
    return _LAYERS.get(target, target)


_PADDED = (padded_convolution, with_bias_map[padded_convolution])
_ALL_TRANSPOSED = (*TRANSPOSED, *(with_bias_map[layer] for layer in TRANSPOSED))
