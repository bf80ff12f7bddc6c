"""Structural ops: they move values about. Relevance goes back to where each value came from: the exact transpose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..rules.defaults import passed, transpose
from ..vocabulary import Call, register
from .facts import keeps_sign

__all__ = ["CASTS", "dropped", "flipped", "written"]

aten = torch.ops.aten


def _structural(*targets: Any, inputs: tuple[int, ...] = (0,), vjp: Any = None, non_negative: Any = None) -> None:
    register(
        *targets,
        inputs=inputs,
        default=transpose,
        vjp=vjp,
        non_negative=non_negative or (lambda node, inputs: inputs),
        structural=True,
        linear=True,
    )


def _reshape_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (gradient.reshape(call.args[0].shape),)


def _permute_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    order = [d % gradient.ndim for d in call.args[1]]
    return (gradient.permute([order.index(d) for d in range(gradient.ndim)]),)


def _cat_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    dim = call.argument(1, 0)
    parts = gradient.split([x.shape[dim] for x in call.args[0]], dim)
    return tuple(parts[i] for _, i in call.slots if i is not None)


def _casts_non_negative(node: fx.Node, inputs: bool) -> bool:
    """To an integer, what is too large for it becomes negative."""
    return inputs and node.meta["val"].is_floating_point()


_structural(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.contiguous.default,
    aten.reshape_as.default,
    aten.clone.default,
    vjp=_reshape_vjp,
)
_structural(aten.permute.default, vjp=_permute_vjp)
_structural(aten.cat.default, vjp=_cat_vjp)
_structural(
    aten.transpose.int,
    aten.t.default,
    aten.movedim.intlist,
    aten.expand.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.slice.Tensor,
    aten.select.int,
    aten.narrow.default,
    aten.roll.default,
    aten.flip.default,
    aten.unfold.default,
    aten.stack.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.diagonal.default,
    aten.gather.default,
    aten.index_select.default,
    aten.index.Tensor,
    aten.im2col.default,
)
CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default)
# Relevance keeps its own precision, which the values' may be below.
_structural(
    *CASTS,
    vjp=lambda call, gradient: (gradient,),
    non_negative=_casts_non_negative,
)
_structural(aten.expand_as.default)
_structural(aten.masked_fill.Scalar, non_negative=keeps_sign("value"))
_structural(aten.where.self, inputs=(1, 2))
_structural(aten.pad.default, aten.constant_pad_nd.default, non_negative=keeps_sign("value"))
_structural(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsafe_split.Tensor,
    aten.chunk.default,
    aten.unbind.int,
)


def written(base: Tensor, values: Tensor) -> Tensor:
    """The values that ``base.copy_(values)`` leaves in `base`: ``aten.copy``, which has no derivative."""
    return values.to(base.dtype).expand(base.shape)


# Writes into a slice, as functions: the written values, and what they leave of the rest.
_structural(written, inputs=(1,), non_negative=_casts_non_negative)
_structural(aten.slice_scatter.default, aten.select_scatter.default, inputs=(0, 1))


# Stops the gradients of training, which is no reason for relevance to stop: the value is the input's.
register(
    aten.detach.default,
    default=passed,
    vjp=lambda call, gradient: (gradient,),
    non_negative=lambda node, inputs: inputs,
)


def dropped(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Dropout with the mask that was drawn: ``x * mask / (1 - p)``."""
    return x * mask / (1 - p) if p < 1 else torch.zeros_like(x)


# A scale that is constant, and zero where a unit was dropped: relevance passes.
register(
    dropped,
    default=passed,
    vjp=lambda call, gradient: (dropped(gradient, *call.args[1:]),),
    non_negative=lambda node, inputs: inputs,
)


def flipped(x: Tensor, signs: Tensor) -> Tensor:
    """``x * signs``, by signs that belong to the model."""
    return x * signs


register(flipped, default=passed, vjp=lambda call, gradient: (gradient * call.args[1],))
