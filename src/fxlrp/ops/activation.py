"""Activations: elementwise nonlinearities of one input, and functions of analysis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from ..reading import argument
from ..signature import Target
from .op import Call, Op
from .sign import always, is_number

__all__ = ["OPS", "thresholded_relu"]

aten = torch.ops.aten


def _relu_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (aten.threshold_backward(gradient, call.args[0].to(gradient.dtype), 0),)


def thresholded_relu(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """A ReLU whose affine map was moved to behind it: it clips at the affine map's zero, and not at its own.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, ...).
    low, high : Tensor or None
        Shapes that broadcast with x. Where the map's scale is positive, ``low`` is its zero and ``high`` infinite;
        where it is negative, the other way round. At the threshold itself it is shut, as a ReLU at zero. None: infinite
        everywhere.
    """
    if any(value is not None and value.requires_grad for value in (x, low, high)):
        # The derivative of a maximum is that of a half-open unit there.
        x = x if low is None else torch.where(x <= low, low, x)
        return x if high is None else torch.where(x >= high, high, x)
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _thresholded_relu_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, low, high = call.args
    if low is not None:
        gradient = aten.threshold_backward(gradient, (x - low).to(gradient.dtype), 0)
    if high is not None:
        gradient = aten.threshold_backward(gradient, (high - x).to(gradient.dtype), 0)
    return (gradient,)


def _clips_to_non_negative(lower: str | None, upper: str | None) -> Callable[[fx.Node, bool], bool]:
    """Of ``min(max(x, low), high)``, its bounds given under these names: None of one that it has not."""

    def non_negative(node: fx.Node, inputs: bool) -> bool:
        low = None if lower is None else argument(node, lower)
        high = None if upper is None else argument(node, upper)
        return (inputs or is_number(low, at_least=0)) and (high is None or is_number(high, at_least=0))

    return non_negative


def _is_shut_below_zero(node: fx.Node) -> bool:
    return argument(node, "min_val") == 0


def _softplus_is_non_negative(node: fx.Node, inputs: bool) -> bool:
    """Above its threshold it is the identity, and a negative beta turns its sign."""
    beta, threshold = argument(node, "beta"), argument(node, "threshold")
    return is_number(threshold, at_least=0) and is_number(beta, at_least=0) and beta != 0


OPS: dict[Target, Op] = {
    aten.relu.default: Op(non_negative=always, vjp=_relu_vjp, carries_zeros=True, shuts=lambda node: True),
    aten.relu6.default: Op(non_negative=always, carries_zeros=True, shuts=lambda node: True),
    thresholded_relu: Op(clips=True, vjp=_thresholded_relu_vjp),
    aten.hardtanh.default: Op(non_negative=_clips_to_non_negative("min_val", "max_val"), shuts=_is_shut_below_zero),
    aten.clamp.default: Op(non_negative=_clips_to_non_negative("min", "max")),
    aten.clamp.Tensor: Op(non_negative=_clips_to_non_negative("min", "max")),
    aten.clamp_min.default: Op(non_negative=_clips_to_non_negative("min", None)),
    aten.clamp_max.default: Op(non_negative=_clips_to_non_negative(None, "max")),
    aten.softplus.default: Op(non_negative=_softplus_is_non_negative),
    # Parameters of an activation are for a rule to see, as in zennit.
    aten.prelu.default: Op(params={"weight": "weight"}),
    **dict.fromkeys(
        (
            aten.sigmoid.default,
            aten.hardsigmoid.default,
            aten.abs.default,
            aten.exp.default,
            aten.sqrt.default,
            aten.rsqrt.default,
            aten.square.default,
        ),
        Op(non_negative=always),
    ),
    **dict.fromkeys(
        (
            aten.tanh.default,
            aten.silu.default,
            aten.hardswish.default,
            aten.gelu.default,
            aten.leaky_relu.default,
            aten.elu.default,
            aten.selu.default,
            aten.celu.default,
            aten.log_sigmoid.default,
            aten.hardshrink.default,
            aten.softshrink.default,
            aten.threshold.default,
            aten.mish.default,
            aten.erf.default,
            aten.log.default,
            aten.log1p.default,
            aten.log_softmax.int,
            aten.pow.Tensor_Scalar,
            aten.reciprocal.default,
            aten.sin.default,
            aten.cos.default,
        ),
        Op(),
    ),
}
