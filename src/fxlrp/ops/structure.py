"""Structural ops: they move values about. Relevance goes back to where each value came from: the exact transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from zennit.layer import Sum

from ..rules.defaults import gradient, passed, transpose
from ..vocabulary import Call, register
from .facts import keeps_sign

__all__ = ["CASTS", "added", "dropped", "flipped", "written"]

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


def _of_write(view: Any) -> Any:
    """The transpose of a write into a view of a value: nothing goes back to what was written over."""

    def vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
        kept = gradient.clone()
        view(kept, *call.args[2:]).zero_()
        found = {0: kept, 1: view(gradient, *call.args[2:])}
        return tuple(found[position] for position, _ in call.slots)

    return vjp


def _index_put_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    indices, adds = call.args[1], call.target is added
    found = {0: gradient if adds else aten.index_put(gradient, indices, gradient.new_zeros(()))}
    if any(position == 2 for position, _ in call.slots):
        found[2] = aten.index(gradient, indices).sum_to_size(call.args[2].shape)
    return tuple(found[position] for position, _ in call.slots)


def _scatter_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    dim, index, values = call.args[1:4]
    found = {0: gradient if call.target is aten.scatter_add.default else gradient.scatter(dim, index, 0.0)}
    if isinstance(values, Tensor):
        rest = [n for size, used in zip(values.shape, index.shape, strict=True) for n in (size - used, 0)]
        found[3] = torch.nn.functional.pad(gradient.gather(dim, index), rest[::-1])
    return tuple(found[position] for position, _ in call.slots)


# Writes into a part of a value, as functions: the written values, and what they leave of the rest. Their transposes
# are spelled out: torch's own cannot be mapped over several seeds.
_structural(written, inputs=(1,), non_negative=_casts_non_negative)
_structural(aten.slice_scatter.default, inputs=(0, 1), vjp=_of_write(aten.slice.Tensor))
_structural(aten.select_scatter.default, inputs=(0, 1), vjp=_of_write(aten.select.int))
_structural(aten.diagonal_scatter.default, inputs=(0, 1), vjp=_of_write(aten.diagonal.default))
_structural(aten.index_put.default, inputs=(0, 2), vjp=_index_put_vjp)
_structural(aten.scatter.src, inputs=(0, 3), vjp=_scatter_vjp)
_structural(aten.scatter.value, vjp=_scatter_vjp, non_negative=keeps_sign("value"))


def added(base: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """``aten.index_put`` where it adds: `values` and what `base` has at the indices."""
    return aten.index_put(base, indices, values, True)


# What is added to a part of a value makes a sum of it.
for _op, _inputs, _vjp in ((added, (0, 2), _index_put_vjp), (aten.scatter_add.default, (0, 3), _scatter_vjp)):
    register(
        _op,
        inputs=_inputs,
        stand_in=lambda node: Sum(),
        default=gradient,
        vjp=_vjp,
        linear=True,
        non_negative=lambda node, inputs: inputs,
    )


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
