"""Activations: elementwise nonlinearities of one input. With no rule, the plain gradient, as in zennit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import unwrap
from ..rules.defaults import gradient, passed, transpose
from ..vocabulary import Call, register

__all__ = ["thresholded_relu"]

aten = torch.ops.aten


def _activation(
    *targets: Any,
    stand_in: Callable[[], nn.Module],
    non_negative: bool | Callable[[fx.Node], bool] = False,
    vjp: Any = None,
) -> None:
    register(
        *targets,
        stand_in=lambda node: stand_in(),
        default=gradient,
        non_negative=lambda node, _: non_negative(node) if callable(non_negative) else non_negative,
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
        where it is negative, the other way round.
    """
    return x.clamp(low, high)


def _thresholded_relu_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    # At the threshold itself a ReLU is shut, as at zero; a clamp is not.
    x, low, high = call.args
    return (gradient * ((x > low) & (x < high)),)


def _clips_at_zero(node: fx.Node) -> bool:
    args = unwrap(node)[1]
    return len(args) > 1 and isinstance(args[1], int | float) and args[1] >= 0


_activation(aten.relu.default, stand_in=nn.ReLU, non_negative=True, vjp=_relu_vjp)
register(
    thresholded_relu,
    stand_in=lambda node: nn.ReLU(),
    default=transpose,
    clips=True,
    vjp=_thresholded_relu_vjp,
)
_activation(aten.relu6.default, stand_in=nn.ReLU6, non_negative=True)
_activation(aten.hardtanh.default, stand_in=nn.Hardtanh, non_negative=_clips_at_zero)
_activation(aten.sigmoid.default, stand_in=nn.Sigmoid, non_negative=True)
_activation(aten.hardsigmoid.default, stand_in=nn.Hardsigmoid, non_negative=True)
_activation(aten.softplus.default, stand_in=nn.Softplus, non_negative=True)
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
register(aten.clamp.default, aten.clamp_min.default, default=passed, non_negative=lambda node, _: _clips_at_zero(node))
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
    aten.clamp_max.default,
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
