"""Activations: elementwise nonlinearities of one input. With no rule, the plain gradient, as in zennit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..reading import argument
from ..rules.defaults import gradient, passed, transpose
from ..vocabulary import Call, register
from .facts import is_number

__all__ = ["thresholded_relu"]

aten = torch.ops.aten


def _activation(
    *targets: Any,
    stand_in: Callable[[], nn.Module],
    non_negative: bool | Callable[[fx.Node, bool], bool] = False,
    vjp: Any = None,
) -> None:
    register(
        *targets,
        stand_in=lambda node: stand_in(),
        default=gradient,
        non_negative=non_negative if callable(non_negative) else lambda node, _: non_negative,
        vjp=vjp,
    )


def _relu_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (aten.threshold_backward(gradient, call.args[0].to(gradient.dtype), 0),)


def thresholded_relu(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A ReLU whose affine map was moved to behind it: it clips at the affine map's zero, and not at its own.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, ...).
    low, high : Tensor
        Shapes that broadcast with x. Where the map's scale is positive, ``low`` is its zero and ``high`` infinite;
        where it is negative, the other way round. At the threshold itself it is shut, as a ReLU at zero.
    """
    if not any(value.requires_grad for value in (x, low, high)):
        return x.clamp(low, high)
    # The derivative of a clamp is that of an open unit there.
    return torch.where(x <= low, low, torch.where(x >= high, high, x))


def _thresholded_relu_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    x, low, high = call.args
    return (gradient * ((x > low) & (x < high)),)


def _clips_to_non_negative(lower: str | None, upper: str | None) -> Callable[[fx.Node, bool], bool]:
    """Of ``min(max(x, low), high)``, its bounds given under these names: None of one that it has not."""

    def non_negative(node: fx.Node, inputs: bool) -> bool:
        low = None if lower is None else argument(node, lower)
        high = None if upper is None else argument(node, upper)
        return (inputs or is_number(low, at_least=0)) and (high is None or is_number(high, at_least=0))

    return non_negative


def _softplus_is_non_negative(node: fx.Node, inputs: bool) -> bool:
    """Above its threshold it is the identity, and a negative beta turns its sign."""
    beta, threshold = argument(node, "beta"), argument(node, "threshold")
    return is_number(threshold, at_least=0) and is_number(beta, at_least=0) and beta != 0


_activation(aten.relu.default, stand_in=nn.ReLU, non_negative=True, vjp=_relu_vjp)
register(
    thresholded_relu,
    stand_in=lambda node: nn.ReLU(),
    default=transpose,
    clips=True,
    vjp=_thresholded_relu_vjp,
)
_activation(aten.relu6.default, stand_in=nn.ReLU6, non_negative=True)
_activation(aten.hardtanh.default, stand_in=nn.Hardtanh, non_negative=_clips_to_non_negative("min_val", "max_val"))
_activation(aten.sigmoid.default, stand_in=nn.Sigmoid, non_negative=True)
_activation(aten.hardsigmoid.default, stand_in=nn.Hardsigmoid, non_negative=True)
_activation(aten.softplus.default, stand_in=nn.Softplus, non_negative=_softplus_is_non_negative)
_activation(aten.tanh.default, stand_in=nn.Tanh)
_activation(aten.silu.default, stand_in=nn.SiLU)
_activation(aten.hardswish.default, stand_in=nn.Hardswish)
_activation(aten.gelu.default, stand_in=nn.GELU)
_activation(aten.leaky_relu.default, stand_in=nn.LeakyReLU)
_activation(aten.elu.default, stand_in=nn.ELU)
_activation(aten.selu.default, stand_in=nn.SELU)
_activation(aten.celu.default, stand_in=nn.CELU)
_activation(aten.log_sigmoid.default, stand_in=nn.LogSigmoid)
_activation(aten.hardshrink.default, stand_in=nn.Hardshrink)
_activation(aten.softshrink.default, stand_in=nn.Softshrink)
_activation(aten.threshold.default, stand_in=lambda: nn.Threshold(0.0, 0.0))

# Parameters of an activation are for a rule to see, as in zennit.
register(
    aten.prelu.default,
    params={"weight": 1},
    stand_in=lambda node: nn.PReLU(device="meta"),
    default=gradient,
)

# Clamps, Mish and functions of analysis have no word in zennit 0.5: relevance passes, as through activations with one.
# That of a logarithm of softmax, too: what it subtracts is the same for all classes, and held constant.
register(aten.clamp.default, aten.clamp.Tensor, default=passed, non_negative=_clips_to_non_negative("min", "max"))
register(aten.clamp_min.default, default=passed, non_negative=_clips_to_non_negative("min", None))
register(aten.clamp_max.default, default=passed, non_negative=_clips_to_non_negative(None, "max"))
register(aten.mish.default, stand_in=lambda node: nn.Mish(), default=passed)
register(
    aten.abs.default,
    aten.exp.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.square.default,
    default=passed,
    non_negative=lambda node, _: True,
)
register(
    aten.erf.default,
    aten.log.default,
    aten.log1p.default,
    aten.log_softmax.int,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.sin.default,
    aten.cos.default,
    default=passed,
)
