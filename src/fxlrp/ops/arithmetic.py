"""Sums, products and other maps between activations, and those that zennit has no word for among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from zennit.layer import Sum

from ..reading import argument, unwrap
from ..rules.base import Pass, Rule
from ..rules.defaults import Gate, Half, Slots, gradient, passed, proportional
from ..vocabulary import Call, register
from .facts import is_bounded, keeps_sign

aten = torch.ops.aten


def _sum_vjp(sign: int) -> Any:
    def vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        factors = {0: 1, 1: sign * call.kwargs.get("alpha", 1)}
        return tuple(
            (relevance if factors[position] == 1 else relevance * factors[position]).sum_to_size(x.shape)
            for (position, _), x in zip(call.slots, call.inputs, strict=True)
        )

    return vjp


# A sum of several inputs, or of one and a constant, which then is a bias: zennit's word for it is Sum.
register(
    aten.add.Tensor,
    aten.add.Scalar,
    inputs=(0, 1),
    stand_in=lambda node: Sum(),
    default=gradient,
    vjp=_sum_vjp(1),
    linear=True,
    non_negative=keeps_sign("other", "alpha"),
)
register(
    aten.sub.Tensor,
    aten.sub.Scalar,
    inputs=(0, 1),
    stand_in=lambda node: Sum(),
    default=gradient,
    vjp=_sum_vjp(-1),
    linear=True,
)
register(aten.rsub.Tensor, aten.rsub.Scalar, inputs=(0, 1), stand_in=lambda node: Sum(), default=gradient, linear=True)


def _reduction_vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
    x, dims = call.args[0], call.argument(1) or range(call.args[0].ndim)
    if not call.argument(2, False):
        for dim in sorted(d % x.ndim for d in dims):
            relevance = relevance.unsqueeze(dim)
    return (relevance.expand(x.shape),)


def _mean_vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
    return _reduction_vjp(call, relevance * (relevance.numel() / call.args[0].numel()))


register(
    aten.sum.dim_IntList,
    stand_in=lambda node: Sum(dim=unwrap(node)[1][1]),
    default=gradient,
    linear=True,
    vjp=_reduction_vjp,
    non_negative=lambda node, inputs: inputs,
)
register(aten.neg.default, default=passed)


def _same_shape(node: fx.Node, operand: fx.Node) -> bool:
    return node.meta["val"].shape == operand.meta["val"].shape


def _before_expansion(factor: fx.Node) -> fx.Node:
    """A factor as it is before it is expanded by the model itself, which a product would do as well."""
    value: Any = factor
    while value.target in (aten.expand.default, aten.expand_as.default, aten._to_copy.default, aten.to.dtype):
        value = value.args[0]
    return value


def _product(node: fx.Node, slots: Slots) -> Rule:
    """A factor that does not depend on the input scales; a gate gates; two activations share."""
    if len(slots) == 1:
        (operand,) = slots.values()
        return Pass() if _same_shape(node, operand) else proportional(node, slots)
    factors = list(slots.values())
    gates = [is_bounded(factor) for factor in factors]
    if gates[0] == gates[1]:
        gates = [not _same_shape(node, _before_expansion(factor)) for factor in factors]
    return Gate(signal=gates.index(False)) if gates[0] != gates[1] else Half()


def _quotient(node: fx.Node, slots: Slots) -> Rule | None:
    """What is divided by a value is normalized with it: as a normalization's deviation, that value is a constant."""
    if set(slots) == {(0, None)}:
        return _product(node, slots)
    return Gate(signal=0) if (0, None) in slots else None


register(
    aten.mul.Tensor,
    aten.mul.Scalar,
    inputs=(0, 1),
    default=_product,
    non_negative=keeps_sign("other"),
)
register(aten.div.Tensor, aten.div.Scalar, inputs=(0, 1), default=_quotient)


def _mean_stand_in(node: fx.Node) -> nn.Module | None:
    """A mean over all of space, kept or dropped, is a global average pooling."""
    args = unwrap(node)[1]
    rank = args[0].meta["val"].ndim
    kinds = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}
    dims = {d % rank for d in args[1]} if len(args) > 1 and args[1] is not None else set()
    return kinds[rank](1) if rank in kinds and dims == set(range(2, rank)) else None


def _mean(node: fx.Node, slots: Slots) -> Rule:
    return proportional(node, slots) if _mean_stand_in(node) is None else gradient(node, slots)


register(
    aten.mean.dim,
    stand_in=_mean_stand_in,
    default=_mean,
    linear=True,
    vjp=_mean_vjp,
    non_negative=lambda node, inputs: inputs,
)

register(
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten.upsample_linear1d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_trilinear3d.vec,
    aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_nearest_exact2d.vec,
    aten.grid_sampler.default,
    aten.col2im.default,
    aten.cumsum.default,
    default=proportional,
    linear=True,
)


def _vector_norm(node: fx.Node, slots: Slots) -> Rule | None:
    """Homogeneous of degree one: by Euler's theorem x times the gradient sums up to the value, as of a linear map.

    Not so the number of elements that are not zero, as which a norm of order 0 counts.
    """
    return proportional(node, slots) if argument(node, "ord") != 0 else None


register(aten.linalg_vector_norm.default, default=_vector_norm, non_negative=lambda node, inputs: True)
