"""Structural ops: they move values about; and those that stand near them, masks and signs of constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ..signature import Target
from .op import Call, Op
from .sign import as_inputs, keeps_sign

__all__ = ["CASTS", "OPS", "added", "dropped", "flipped", "written"]

aten = torch.ops.aten

Vjp = Callable[[Call, Tensor], tuple[Tensor, ...]]


def _reshape_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    return (gradient.reshape(call.args[0].shape),)


def _permute_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    order = [d % gradient.ndim for d in call.args[1]]
    return (gradient.permute([order.index(d) for d in range(gradient.ndim)]),)


def _cat_vjp(call: Call, gradient: Tensor) -> tuple[Tensor, ...]:
    dim = call["dim"]
    parts = gradient.split([x.shape[dim] for x in call.args[0]], dim)
    return tuple(parts[i] for _, i in call.slots if i is not None)


def _casts_non_negative(node: fx.Node, inputs: bool) -> bool:
    """To an integer, what is too large for it becomes negative."""
    return inputs and node.meta["val"].is_floating_point()


def written(base: Tensor, values: Tensor) -> Tensor:
    """The values that ``base.copy_(values)`` leaves in `base`: ``aten.copy``, which has no derivative."""
    return values.to(base.dtype).expand(base.shape)


def _of_write(view: Target) -> Vjp:
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


def added(base: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """``aten.index_put`` where it adds: `values` and what `base` has at the indices."""
    return aten.index_put(base, indices, values, True)


def dropped(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Dropout with the mask that was drawn: ``x * mask / (1 - p)``."""
    return x * mask / (1 - p) if p < 1 else torch.zeros_like(x)


def flipped(x: Tensor, signs: Tensor) -> Tensor:
    """``x * signs``, by signs that belong to the model."""
    return x * signs


def _moves(
    inputs: tuple[int, ...] = (0,),
    vjp: Vjp | None = None,
    non_negative: Callable[[fx.Node, bool], bool] = as_inputs,
) -> Op:
    return Op(inputs, vjp=vjp, non_negative=non_negative, structural=True, linear=True)


CASTS: tuple[Target, ...] = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default)

OPS: dict[Target, Op] = {
    **dict.fromkeys(
        (
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
            aten.alias.default,
        ),
        _moves(vjp=_reshape_vjp),
    ),
    aten.permute.default: _moves(vjp=_permute_vjp),
    aten.cat.default: _moves(vjp=_cat_vjp),
    **dict.fromkeys(
        (
            aten.transpose.int,
            aten.t.default,
            aten.movedim.intlist,
            aten.expand.default,
            aten.expand_as.default,
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
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.unsafe_split.Tensor,
            aten.chunk.default,
            aten.unbind.int,
        ),
        _moves(),
    ),
    # Relevance keeps its own precision, which the values' may be below.
    **dict.fromkeys(CASTS, _moves(vjp=lambda call, gradient: (gradient,), non_negative=_casts_non_negative)),
    aten.masked_fill.Scalar: _moves(non_negative=keeps_sign("value")),
    aten.where.self: _moves((1, 2)),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _moves(non_negative=keeps_sign("value"))),
    # Writes into a part of a value, as functions: the written values, and what they leave of the rest. Their transposes
    # are spelled out: torch's own cannot be mapped over several seeds.
    written: _moves((1,), non_negative=_casts_non_negative),
    aten.slice_scatter.default: _moves((0, 1), _of_write(aten.slice.Tensor)),
    aten.select_scatter.default: _moves((0, 1), _of_write(aten.select.int)),
    aten.diagonal_scatter.default: _moves((0, 1), _of_write(aten.diagonal.default)),
    aten.index_put.default: _moves((0, 2), _index_put_vjp),
    aten.scatter.src: _moves((0, 3), _scatter_vjp),
    aten.scatter.value: _moves(vjp=_scatter_vjp, non_negative=keeps_sign("value")),
    # What is added to a part of a value makes a sum of it.
    added: Op((0, 2), vjp=_index_put_vjp, linear=True, non_negative=as_inputs),
    aten.scatter_add.default: Op((0, 3), vjp=_scatter_vjp, linear=True, non_negative=as_inputs),
    aten.detach.default: Op(vjp=lambda call, gradient: (gradient,), non_negative=as_inputs, carries_zeros=True),
    dropped: Op(
        vjp=lambda call, gradient: (dropped(gradient, *call.args[1:]),), non_negative=as_inputs, carries_zeros=True
    ),
    flipped: Op(vjp=lambda call, gradient: (gradient * call["signs"],), carries_zeros=True),
}
