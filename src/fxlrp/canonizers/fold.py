"""Affine maps are folded into the linear layer in front of them.

Equation (A.5) of Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search, supplement:
``w_new = w * gamma / sqrt(var + eps)``, ``b_new = (b - mean) * gamma / sqrt(var + eps) + beta``. The new weights are
expressions of the old ones in the graph, so that the relevance can be differentiated with respect to them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..graph import call, constant, parameter_expressions, replace_reads
from ..marks import SIZE_BOUND, Fold
from ..ops import lookup, slots_of
from ..ops.affine import affine, constant_map
from ..ops.linear import LINEAR, TRANSPOSED, layer_of, scaled_weight, with_bias_map
from ..place import module_path
from ..reading import is_known, read_as, unwrap
from .report import mark
from .sample import NONE, Sample, moved, run_on, spread

__all__ = ["fold_affine_maps", "groups_of"]


def folded_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The bias of a linear layer with an affine map behind it, (A.5).

    Parameters
    ----------
    bias : Tensor or None
        The layer's.
    scale, shift : Tensor
        The map's, shape (C_out,); where bias or shift is a feature map, all of the rank of the layer's value.
    """
    return shift if bias is None else bias * scale + shift


def mapped(value: Tensor, scale: Tensor, shift: Tensor, behind: int) -> Tensor:
    """A linear layer's value under an affine map along its channels, which have `behind` dimensions behind them."""
    per_channel = (-1, *(1,) * behind)
    return value * scale.reshape(per_channel) + shift.reshape(per_channel)


def fold_affine_maps(graph_module: fx.GraphModule) -> None:
    """Fold each affine map into the linear layer in front of it, (A.5), also where elements are moved in between.

    A constant that is no vector along the layer's channels, and directly behind it, becomes a bias map.
    Where the layer's value is read by others too, or the statistics are the batch's, the layer is not computed twice:
    its value stays, and is read as the folded layer's.
    """
    graph = graph_module.graph
    parameters = parameter_expressions(graph)
    sample = Sample(graph_module)
    for node in list(graph.nodes):
        if node.op != "call_function" or unwrap(node)[0] not in (affine, constant_map):
            continue
        front = _front(node, parameters, sample)
        if front is None:
            continue
        layer, between, order, along = front
        _, scale, shift = unwrap(node)[1]
        target, operands, _ = unwrap(layer)
        kind = layer_of(target)
        x, weight, *options = operands
        bias, *options = options or (None,)
        with graph.inserting_before(node):
            if unwrap(node)[0] is constant_map:
                count, by_channel = int(node.meta["val"].shape[along]), _lies_along(shift, along)
                scale = call(node, of_channels, scale, count)
                shift = call(node, of_channels, shift, count) if by_channel else shift
            if order is not None:
                index = constant(graph_module, node, order, f"{node.name}_order")
                scale, shift = (call(node, spread, each, index, other) for each, other in ((scale, 1.0), (shift, 0.0)))
            new_weight = call(
                layer, scaled_weight, weight, scale, groups_of(layer), kind in TRANSPOSED, name=f"{layer.name}_weight"
            )
            factor, added = scale, shift
            if target is not kind or added.meta["val"].ndim > 1:
                target = with_bias_map[kind]
                bias, factor, added = (_of_rank(layer, each) for each in (bias, scale, shift))
            new_bias = call(layer, folded_bias, bias, factor, added, name=f"{layer.name}_bias")
        with graph.inserting_before(node.next):
            if is_known(node) or is_known(layer) or any(len(each.users) > 1 for each in (layer, *between)):
                behind = weight.meta["val"].ndim - 2
                value = call(layer, mapped, layer, scale, shift, behind) if between else node
                new = read_as(value, target, x, new_weight, new_bias, *options, like=layer, name=layer.name)
            else:
                new = call(layer, target, x, new_weight, new_bias, *options, name=layer.name)
                parameters.add(new_weight)
            if between:
                # Of another spatial size, elements may be moved elsewhere.
                SIZE_BOUND.put(graph_module, True)
            end, replaced = new, {layer: new}
            for each in between:
                end = replaced[each] = graph.node_copy(each, lambda n, replaced=replaced: replaced.get(n, n))
        name = module_path(node) or node.name
        how = "linear -> BN (A.5)" if target is kind else "linear -> BN (A.5), bias map"
        mark(new, layer, [Fold(name, module_path(layer) or layer.name, how)])
        replace_reads(node, end, but_of=new)


def of_channels(param: Tensor, count: int) -> Tensor:
    """A constant of each channel, (C,), from one that broadcasts with a value."""
    return param.reshape(-1).expand(count)


def _lies_along(param: fx.Node, dim: int) -> bool:
    """Whether a constant, of as many dimensions as the value that it is for, has one number for each index of `dim`."""
    return all(n == 1 for d, n in enumerate(param.meta["val"].shape) if d != dim)


def _of_rank(layer: fx.Node, param: fx.Node | None) -> fx.Node | None:
    """A bias of a layer, or a vector along its channels, with as many dimensions as its value has."""
    rank = layer.meta["val"].ndim
    if param is None or param.meta["val"].ndim == rank:
        return param
    along = _along(layer)
    return call(layer, torch.ops.aten.reshape.default, param, [*[1] * along, -1, *[1] * (rank - 1 - along)])


class _Front(NamedTuple):
    """The linear layer in front of an affine map.

    `between` are the ops from the layer to the map, which move elements and no more. `order` is, for each of the
    layer's channels, the map's channel that it comes to, -1 if to none; None if each comes to its own. `along` is the
    dimension of the map's channels.
    """

    layer: fx.Node
    between: list[fx.Node]
    order: Tensor | None
    along: int


def _along(layer: fx.Node) -> int:
    """The dimension of the channels of a linear layer's value; 0 of a value without a batch."""
    return layer.meta["val"].ndim - unwrap(layer)[1][1].meta["val"].ndim + 1


def _front(node: fx.Node, parameters: set[fx.Node], sample: Sample) -> _Front | None:
    """What is in front of an affine map; None if there is no layer that it can be folded into.

    The layer's weight must not be an activation.
    """
    (layer, *params), between = unwrap(node)[1], []
    while (operand := _only_moved(layer)) is not None:
        between.insert(0, layer)
        layer = operand
    if layer.op != "call_function":
        return None
    target, args, _ = unwrap(layer)
    if layer_of(target) not in with_bias_map or not (is_known(layer) or args[1] in parameters):
        return None
    along, of_each = _along(layer), unwrap(node)[0] is affine
    if not between:
        fits = along == 1 if of_each else along > 0 and _lies_along(params[0], along)
        return _Front(layer, between, None, along) if fits else None
    shape = sample.shape(layer)
    if shape is None or not (of_each or all(_lies_along(param, 1) for param in params)):
        return None
    rank = args[1].meta["val"].ndim
    count = shape[along]
    found: Tensor | None = torch.arange(count).reshape(-1, *(1,) * (rank - 2)).expand(shape)
    for each in between:
        found = None if found is None else _numbers_behind(each, found, sample)
    channels = None if found is None else _of_each_channel(found)
    if channels is None:
        return None
    own = torch.arange(len(channels))
    order = torch.full((count,), NONE).scatter(0, channels, own)
    return _Front(layer, between, None if torch.equal(order, own) else order, 1)


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
    if not len(rows):  # Of an empty batch.
        return None
    first = rows[0]
    alone = len(first.unique()) == len(first) and bool((first != NONE).all())
    return first if alone and bool((rows == first).all()) else None


def groups_of(layer: fx.Node) -> int:
    """The groups of a convolution, 1 of any other layer."""
    target, args, _ = unwrap(layer)
    position = 6
    if layer_of(target) in LINEAR or len(args) <= position:
        return 1
    groups = args[position]
    assert isinstance(groups, int)
    return groups
