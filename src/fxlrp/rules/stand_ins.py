"""The module that stands for a functional call of an op before a composite: an `nn.Conv2d` for ``F.conv2d``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn
from zennit.layer import Sum

from ..ops.linear import of_each_dimension
from ..reading import argument, unwrap

__all__ = [
    "StandIn",
    "batch_norm",
    "convolution",
    "linear",
    "max_pooled",
    "mean",
    "of",
    "output_size",
    "sum_of",
    "transposed_convolution",
    "window",
]

StandIn = Callable[[fx.Node], nn.Module | None]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def of(kind: Callable[[], nn.Module]) -> StandIn:
    """A module that is made without arguments."""
    return lambda node: kind()


def window(kind: Callable[..., nn.Module]) -> StandIn:
    """A pooling over windows of a size."""
    return lambda node: kind(argument(node, "kernel_size"))


def output_size(kind: Callable[..., nn.Module]) -> StandIn:
    """A pooling to a size."""
    return lambda node: kind(tuple(argument(node, "output_size")))


def max_pooled(node: fx.Node) -> nn.Module:
    """Max pooling whose winners are known."""
    kernel = argument(node, "kernel")
    return {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[len(kernel)](kernel)


def linear(node: fx.Node) -> nn.Module:
    """A fully connected layer."""
    out_features, in_features = _value(node, "weight").shape
    return nn.Linear(in_features, out_features, bias=argument(node, "bias") is not None, device="meta")


def batch_norm(node: fx.Node) -> nn.Module:
    """An affine map."""
    x, weight = _value(node, "x"), _value(node, "weight")
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.ndim, nn.BatchNorm1d)
    # Not those of x, whose size may depend on the input's values.
    channels = weight.shape[0 if weight.ndim == 1 else 1]
    return kind(channels, device="meta")


def convolution(node: fx.Node) -> nn.Module:
    """A convolution."""
    weight, groups, padding = _value(node, "weight"), argument(node, "groups"), argument(node, "padding")
    n = weight.ndim - 2
    each = lambda name: tuple(of_each_dimension(argument(node, name), n))
    return _CONV[n](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=each("stride"),
        padding=padding if isinstance(padding, str) else each("padding"),
        dilation=each("dilation"),
        groups=groups,
        bias=argument(node, "bias") is not None,
        device="meta",
    )


def transposed_convolution(node: fx.Node) -> nn.Module:
    """A transposed convolution."""
    weight, groups = _value(node, "weight"), argument(node, "groups")
    n = weight.ndim - 2
    each = lambda name: tuple(of_each_dimension(argument(node, name), n))
    return _CONV_TRANSPOSE[n](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=each("stride"),
        padding=each("padding"),
        output_padding=each("output_padding"),
        groups=groups,
        bias=argument(node, "bias") is not None,
        dilation=each("dilation"),
        device="meta",
    )


def sum_of(node: fx.Node) -> nn.Module:
    """A sum over dimensions."""
    return Sum(dim=argument(node, "dim"))


def mean(node: fx.Node) -> nn.Module | None:
    """A mean over all of space, kept or dropped, is a global average pooling."""
    args = unwrap(node)[1]
    rank = args[0].meta["val"].ndim
    kinds = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}
    dims = {d % rank for d in args[1]} if args[1] is not None else set()
    return kinds[rank](1) if rank in kinds and dims == set(range(2, rank)) else None


def _value(node: fx.Node, name: str) -> Tensor:
    return argument(node, name).meta["val"]
