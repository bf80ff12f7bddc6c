"""Affine maps: what a batch norm is to relevance, and scaling and centering by constants of the model's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..signature import Target
from .op import WEIGHT_AND_BIAS, Call, Op

__all__ = ["OPS", "affine", "constant_map", "per_channel"]


def per_channel(param: Tensor, ndim: int) -> Tensor:
    """A vector of the channels, to broadcast with values of `ndim` dimensions that have these in dimension 1."""
    return param.reshape(-1, *(1,) * (ndim - 2))


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight * x + bias`` along the channels (dimension 1): what a batch norm is to relevance.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, ...).
    weight, bias : Tensor
        Shape (C,).
    """
    return torch.addcmul(per_channel(bias, x.ndim), x, per_channel(weight, x.ndim))


def constant_map(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight * x + bias`` by constants of the model's: scaling and centering, an embedding added to pixels.

    Parameters
    ----------
    x : Tensor
        Shape (B, ...).
    weight, bias : Tensor
        Of the same number of dimensions; they broadcast to x.
    """
    return torch.addcmul(bias, x, weight)


def _affine_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (gradient * per_channel(call["weight"], gradient.ndim),)


OPS: dict[Target, Op] = {
    affine: Op(
        params=WEIGHT_AND_BIAS,
        vjp=_affine_vjp,
        at_zero=lambda call: per_channel(call["bias"], call["x"].ndim),
        products=lambda call: call["x"] * per_channel(call["weight"], call["x"].ndim),
    ),
    constant_map: Op(
        params=WEIGHT_AND_BIAS,
        vjp=lambda call, gradient: (gradient * call["weight"].to(gradient.dtype),),
        at_zero=lambda call: call["bias"],
        products=lambda call: call["x"] * call["weight"],
    ),
}
