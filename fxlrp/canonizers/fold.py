"""Affine maps are folded into the linear layer in front of them.

Equation (A.5) of Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search, supplement:
``w_new = w * gamma / sqrt(var + eps)``, ``b_new = (b - mean) * gamma / sqrt(var + eps) + beta``. The new weights are
expressions of the old ones in the graph, so that the relevance can be differentiated with respect to them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..graph import call, constant, is_known, known, module_path, parameter_expressions, unwrap
from ..ops.linear import CONVOLUTIONS, LINEAR, TRANSPOSED, affine, constant_map, scaled_weight
from ..vocabulary import lookup, slots_of
from .report import Fold, mark
from .sample import NONE, Sample, moved, run_on, spread

__all__ = ["fold_affine_maps", "groups_of"]


def folded_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The bias of a linear layer with an affine map behind it, (A.5).

    Parameters
    ----------
    bias : Tensor or None
        The layer's.
    scale, shift : Tensor
        The map's, shape (C_out,).
    """
    return shift if bias is None else bias * scale + shift


def mapped(value: Tensor, scale: Tensor, shift: Tensor, behind: int) -> Tensor:
    """A linear layer's value under an affine map along its channels, which have `behind` dimensions behind them."""
    per_channel = (-1, *(1,) * behind)
    return value * scale.reshape(per_channel) + shift.reshape(per_channel)


def fold_affine_maps(graph_module: fx.GraphModule) -> None:
    """Fold each affine map into the linear layer in front of it, (A.5), also where elements are moved in between.

    Where the layer's value is read by others too, or the statistics are the batch's, the layer is not computed twice:
    its value stays, and is read as the folded layer's.
    """
    graph = graph_module.graph
    parameters = parameter_expressions(graph)
    sample = Sample(graph_module)
    for node in list(graph.nodes):
        if node.op != "call_function" or not _goes_by_channels(node):
            continue
        front = _front(node, parameters, sample)
        if front is None:
            continue
        layer, between, order = front
        _, scale, shift = unwrap(node)[1]
        target, operands, _ = unwrap(layer)
        x, weight, *options = operands
        bias, *options = options or (None,)
        with graph.inserting_before(node):
            if unwrap(node)[0] is constant_map:
                count = int(node.meta["val"].shape[1])
                scale, shift = (call(node, of_channels, each, count) for each in (scale, shift))
            if order is not None:
                index = constant(graph_module, node, order, f"{node.name}_order")
                scale, shift = (call(node, spread, each, index, other) for each, other in ((scale, 1.0), (shift, 0.0)))
            new_weight = call(
                layer, scaled_weight, weight, scale, groups_of(layer), target in TRANSPOSED, name=f"{layer.name}_weight"
            )
            new_bias = call(layer, folded_bias, bias, scale, shift, name=f"{layer.name}_bias")
        with graph.inserting_before(node.next):
            if is_known(node) or is_known(layer) or any(len(each.users) > 1 for each in (layer, *between)):
                if between:
                    value = call(layer, mapped, layer, scale, shift, weight.meta["val"].ndim - 2)
                else:
                    value = node.args[0] if is_known(node) else node
                new = call(layer, known, value, x, new_weight, new_bias, *options, name=layer.name)
                new.meta["stands_for"] = target
            else:
                new = call(layer, target, x, new_weight, new_bias, *options, name=layer.name)
                parameters.add(new_weight)
            if between:
                # Of another spatial size, elements may be moved elsewhere.
                graph_module.meta["size_bound"] = True
            end, replaced = new, {layer: new}
            for each in between:
                end = replaced[each] = graph.node_copy(each, lambda n, replaced=replaced: replaced.get(n, n))
        name = module_path(node) or node.name
        mark(new, layer, [Fold(name, module_path(layer) or layer.name, "linear -> BN (A.5)")])
        node.replace_all_uses_with(end, delete_user_cb=lambda user, new=new: user is not new)


def of_channels(param: Tensor, count: int) -> Tensor:
    """A constant of each channel, (C,), from one that broadcasts with a value."""
    return param.reshape(-1).expand(count)


def _goes_by_channels(node: fx.Node) -> bool:
    """Whether `node` is an affine map with a scale and a shift of each channel."""
    target, args, _ = unwrap(node)
    if target is not constant_map:
        return target is affine
    return all(n == 1 for param in args[1:] for d, n in enumerate(param.meta["val"].shape) if d != 1)


class _Front(NamedTuple):
    """The linear layer in front of an affine map.

    `between` are the ops from the layer to the map, which move elements and no more. `order` is, for each of the
    layer's channels, the map's channel that it comes to, -1 if to none; None if each comes to its own.
    """

    layer: fx.Node
    between: list[fx.Node]
    order: Tensor | None


def _front(node: fx.Node, parameters: set[fx.Node], sample: Sample) -> _Front | None:
    """What is in front of an affine map; None if there is no layer that it can be folded into.

    The layer's weight must not be an activation.
    """
    layer, between = unwrap(node)[1][0], []
    while (operand := _only_moved(layer)) is not None:
        between.insert(0, layer)
        layer = operand
    if layer.op != "call_function":
        return None
    target, args, _ = unwrap(layer)
    if target not in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR) or not (is_known(layer) or args[1] in parameters):
        return None
    value, rank = layer.meta["val"], args[1].meta["val"].ndim
    along = value.ndim - rank + 1
    if not between:
        return _Front(layer, between, None) if along == 1 else None
    shape = sample.shape(layer)
    if shape is None:
        return None
    count = shape[along]
    found: Tensor | None = torch.arange(count).reshape(-1, *(1,) * (rank - 2)).expand(shape)
    for each in between:
        found = None if found is None else _numbers_behind(each, found, sample)
    channels = None if found is None else _of_each_channel(found)
    if channels is None:
        return None
    own = torch.arange(len(channels))
    order = torch.full((count,), NONE).scatter(0, channels, own)
    return _Front(layer, between, None if torch.equal(order, own) else order)


def _only_moved(node: fx.Node) -> fx.Node | None:
    """What `node` moves the elements of, if this is all that it does."""
    op = lookup(unwrap(node)[0]) if node.op == "call_function" and not is_known(node) else None
    if op is None or not op.structural:
        return None
    operands = list(slots_of(node, op, lambda operand: True).values())
    # Behind a cast, a value has a precision that the layer has not.
    same = all(operand.meta["val"].dtype == node.meta["val"].dtype for operand in operands[:1])
    return operands[0] if len(operands) == 1 and same else None


def _numbers_behind(node: fx.Node, numbers: Tensor, sample: Sample) -> Tensor | None:
    """Where the elements of one sample are behind an op that moves them; None if it does more."""
    op = lookup(unwrap(node)[0])
    assert op is not None
    slots = slots_of(node, op, lambda operand: True)
    settings = sample.settings(node, slots)
    if settings is None:
        return None
    run = run_on(node, slots, settings[0] | settings[1])
    adds = bool(run(torch.zeros(numbers.shape, dtype=torch.float64)).any())
    return None if adds else moved(run, [numbers])


def _of_each_channel(numbers: Tensor) -> Tensor | None:
    """The one number of each channel; None if one has several, or none, or two channels have the same."""
    rows = numbers.movedim(1, -1).flatten(0, -2)
    first = rows[0]
    alone = len(first.unique()) == len(first) and bool((first != NONE).all())
    return first if alone and bool((rows == first).all()) else None


def groups_of(layer: fx.Node) -> int:
    """The groups of a convolution, 1 of any other layer."""
    target, args, _ = unwrap(layer)
    position = 6
    if target in LINEAR or len(args) <= position:
        return 1
    groups = args[position]
    assert isinstance(groups, int)
    return groups
