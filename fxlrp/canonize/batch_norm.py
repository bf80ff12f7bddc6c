"""Batch norms: each is an affine map along the channels, folded into the linear layer in front of it.

Equations (A.1)-(A.5) of Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search,
supplement: ``w_new = w * gamma / sqrt(var + eps)``, ``b_new = (b - mean) * gamma / sqrt(var + eps) + beta``.

The new weights are expressions of the old ones in the graph, so that the relevance can be differentiated with respect
to them. In training mode the statistics are the batch's: the layer is the one that they define (no relevance goes to
other samples through them), with the biased variance as batch norm uses it, and gradients do flow through them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import call, is_known, known, unwrap
from ..ops.linear import affine, padded_convolution

__all__ = ["fold_batch_norms", "read_batch_norms_as_affine", "write_statistics_in_place"]

aten = torch.ops.aten

_EVAL = aten._native_batch_norm_legit_no_training.default
_TRAIN = aten._native_batch_norm_legit_functional.default
_NO_STATS = aten._native_batch_norm_legit.no_stats

_CONVOLUTION = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    padded_convolution,
)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_LINEAR = (aten.linear.default,)


def batch_norm_affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the affine map that a batch norm with these statistics is.

    Parameters
    ----------
    mean, var : Tensor
        Statistics, shape (C,).
    weight, bias : Tensor or None
        The batch norm's own parameters, shape (C,).
    eps : float
        Added to the variance.
    """
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def batch_statistics_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The same with the batch's own statistics (the biased variance), for training mode.

    Parameters
    ----------
    x : Tensor
        The batch norm's input, shape (B, C, ...).
    """
    var, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    return batch_norm_affine(mean, var, weight, bias, eps)


def write_statistics_in_place(graph_module: fx.GraphModule) -> None:
    """Let a batch norm in training mode update its running statistics itself, as the model's does.

    The functional form, which gives the new statistics out to be copied, keeps the old ones for the backward pass.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is not _TRAIN:
            continue
        items = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        x, weight, bias, mean, var, training, momentum, eps = node.args
        with graph.inserting_before(node):
            new = call(node, aten.batch_norm.default, x, weight, bias, mean, var, training, momentum, eps, True)
        for index, statistic in ((3, mean), (4, var)):
            for user in list(items[index].users):
                if user.target is aten.copy_.default:
                    graph.erase_node(user)
            # A batch norm that is called again goes on from the updated ones.
            items[index].replace_all_uses_with(statistic)
        if 0 in items:
            items[0].replace_all_uses_with(new)


def read_batch_norms_as_affine(graph_module: fx.GraphModule) -> None:
    """Replace each batch norm by `affine`; in training mode its value stays, read as `affine`."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target not in (_EVAL, _NO_STATS, aten.batch_norm.default):
            continue
        value = node
        if node.target is not aten.batch_norm.default:
            value = next((user for user in node.users if user.target is operator.getitem and user.args[1] == 0), None)
        if value is None:
            continue
        x, weight, bias = node.args[:3]
        eps = node.args[7] if value is node else node.args[-1]
        with graph.inserting_after(value):
            if node.target is _EVAL:
                pair = call(node, batch_norm_affine, node.args[3], node.args[4], weight, bias, eps)
            else:
                pair = call(node, batch_statistics_affine, x, weight, bias, eps)
        scale, shift = _both(pair, f"{value.name}_scale", f"{value.name}_shift")
        with graph.inserting_after(shift):
            if node.target is _EVAL:
                new = call(node, affine, x, scale, shift, name=value.name)
            else:
                new = call(node, known, value, x, scale, shift, name=value.name)
                new.meta["stands_for"] = affine
        value.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)


def _both(pair: fx.Node, *names: str) -> list[fx.Node]:
    """The two values of `pair`, under these names."""
    found, last = [], pair
    for index, name in enumerate(names):
        with pair.graph.inserting_after(last):
            last = call(pair, operator.getitem, pair, index, name=name)
        found.append(last)
    return found


def _scaled_weight(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    if not transposed:
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    # (C_in, C_out / groups, ...): a group's output channels stand side by side in dimension 1.
    per_group = weight.unflatten(0, (groups, -1))
    return (per_group * scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).flatten(0, 1)


def folded(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, groups: int, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer with an affine map behind it, (A.5).

    Parameters
    ----------
    weight, bias : Tensor
        The layer's, ``bias`` may be None.
    scale, shift : Tensor
        The map's, shape (C_out,).
    groups : int
        The convolution's groups.
    transposed : bool
        Whether it is a transposed convolution, whose weight has its output channels in dimension 1.
    """
    new_bias = shift if bias is None else bias * scale + shift
    return _scaled_weight(weight, scale, groups, transposed), new_bias


def _foldable(node: fx.Node, parameters: set[fx.Node]) -> bool:
    """Whether `node` is a linear layer with constant weights and its output channels in dimension 1."""
    if node.op != "call_function" or is_known(node):
        return False
    if node.target in _LINEAR and node.meta["val"].ndim != 2:
        return False
    return node.target in (*_CONVOLUTION, *_TRANSPOSED, *_LINEAR) and node.args[1] in parameters


def fold_batch_norms(graph_module: fx.GraphModule) -> None:
    """Fold each affine map into the linear layer in front of it, (A.5).

    Where the layer's value is read by others too, or the statistics are the batch's, the value is not computed twice:
    it stays what it is, and is read as the folded layer's.
    """
    graph = graph_module.graph
    parameters = _parameter_expressions(graph)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        target, args, _ = unwrap(node)
        if target is not affine or not _foldable(args[0], parameters):
            continue
        layer, scale, shift = args
        transposed = layer.target in _TRANSPOSED
        groups = _groups(layer)
        bias = layer.args[2] if len(layer.args) > 2 else None
        with graph.inserting_before(node):
            pair = call(layer, folded, layer.args[1], bias, scale, shift, groups, transposed)
        weight, bias = _both(pair, f"{layer.name}_weight", f"{layer.name}_bias")
        operands: list[Any] = [layer.args[0], weight, bias, *layer.args[3:]]
        with graph.inserting_before(node):
            if is_known(node) or len(layer.users) > 1:
                new = call(layer, known, node.args[0] if is_known(node) else node, *operands, name=layer.name)
                new.meta["stands_for"] = layer.target
            else:
                new = call(layer, layer.target, *operands, name=layer.name)
        if new.args[0] is node:
            node.append(new)
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)


def _groups(layer: fx.Node) -> int:
    position = 6
    if layer.target in _LINEAR or len(layer.args) <= position:
        return 1
    groups = layer.args[position]
    assert isinstance(groups, int)
    return groups


def _parameter_expressions(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node.all_input_nodes and all(n in found for n in node.all_input_nodes)
        ):
            found.add(node)
    return found
