"""Sums, products, means, interpolations and other maps between activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..signature import Target
from .op import Call, Op
from .sign import always, as_inputs, keeps_sign

__all__ = ["LINEAR_MAPS", "OPS"]

aten = torch.ops.aten


def _sum_vjp(sign: int) -> Callable[[Call, Tensor], tuple[Tensor, ...]]:
    def vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        factors = {0: 1, 1: sign * call.kwargs.get("alpha", 1)}
        return tuple(
            (relevance if factors[position] == 1 else relevance * factors[position]).sum_to_size(x.shape)
            for (position, _), x in zip(call.slots, call.inputs, strict=True)
        )

    return vjp


def _reduction_vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
    x, dims = call.args[0], call["dim"] or range(call.args[0].ndim)
    if not call["keepdim"]:
        for dim in sorted(d % x.ndim for d in dims):
            relevance = relevance.unsqueeze(dim)
    return (relevance.expand(x.shape),)


def _mean_vjp(call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
    # Of an empty batch, neither has numbers.
    return _reduction_vjp(call, relevance * (relevance.numel() / max(1, call.args[0].numel())))


_BOTH = (0, 1)

LINEAR_MAPS: tuple[Target, ...] = (
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
)
"""Interpolations, and sums over what moves."""

OPS: dict[Target, Op] = {
    **dict.fromkeys(
        (aten.add.Tensor, aten.add.Scalar),
        Op(inputs=_BOTH, vjp=_sum_vjp(1), linear=True, non_negative=keeps_sign("other", "alpha")),
    ),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), Op(inputs=_BOTH, vjp=_sum_vjp(-1), linear=True)),
    **dict.fromkeys((aten.rsub.Tensor, aten.rsub.Scalar), Op(inputs=_BOTH, linear=True)),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), Op(inputs=_BOTH, non_negative=keeps_sign("other"))),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), Op(inputs=_BOTH)),
    aten.neg.default: Op(),
    aten.sum.dim_IntList: Op(linear=True, vjp=_reduction_vjp, non_negative=as_inputs),
    aten.mean.dim: Op(linear=True, vjp=_mean_vjp, non_negative=as_inputs),
    aten.linalg_vector_norm.default: Op(non_negative=always),
    **dict.fromkeys(LINEAR_MAPS, Op(linear=True)),
}
