"""Batch norms are read as what each is, an affine map along the channels.

Equations (A.1)-(A.4) of Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search,
supplement. In training mode the statistics are the batch's: the map is the one that they define (no relevance goes to
other samples through them), with the biased variance as batch norm uses it, and gradients do flow through them.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from ..graph import call, replace_reads, unpack
from ..marks import PROCESS_GROUP, SYNCHRONIZED
from ..ops.affine import affine
from ..reading import read_as
from .statistics import batch_norm_with_statistics, synchronized_batch_norm_with_statistics

__all__ = ["give_statistics_out", "read_batch_norms_as_affine"]

aten = torch.ops.aten

_EVAL = aten._native_batch_norm_legit_no_training.default
_TRAIN = aten._native_batch_norm_legit_functional.default
_NO_STATS = aten._native_batch_norm_legit.no_stats

READS = (_EVAL, _TRAIN, _NO_STATS)
"""Ops that are looked for here, and that the vocabulary does not have."""


def batch_norm_affine(
    mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the affine map that a batch norm with these statistics is.

    Parameters
    ----------
    mean, inverse : Tensor
        Statistics, shape (C,); the second is ``(var + eps)^(-1/2)``.
    weight, bias : Tensor or None
        The batch norm's own parameters, shape (C,).
    dtype : torch.dtype
        Of the value that is normalized, whose precision may be below that of the parameters.
    """
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale
    return scale.to(dtype), (shift if bias is None else shift + bias).to(dtype)


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """``(var + eps)^(-1/2)``."""
    return (var + eps).rsqrt()


def give_statistics_out(graph_module: fx.GraphModule) -> None:
    """Write a batch norm in training mode as one op that gives its statistics out and updates the running ones itself.

    The functional form, which gives new running statistics out to be copied, keeps the old ones for the backward pass.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is _TRAIN:
            x, weight, bias, running_mean, running_var, _, momentum, eps = node.args
        elif node.target is _NO_STATS:
            x, weight, bias, _, momentum, eps = node.args
            running_mean = running_var = None
        else:
            continue
        items = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        with graph.inserting_before(node):
            operands = (x, weight, bias, running_mean, running_var, momentum, eps)
            if SYNCHRONIZED.of(node):
                new = call(node, synchronized_batch_norm_with_statistics, *operands, PROCESS_GROUP.of(node))
            else:
                new = call(node, batch_norm_with_statistics, *operands)
        for index, statistic in ((3, running_mean), (4, running_var)):
            if index not in items or statistic is None:
                continue
            for user in list(items[index].users):
                if user.target is aten.copy_.default:
                    graph.erase_node(user)
            # A batch norm that is called again goes on from the updated ones.
            items[index].replace_all_uses_with(statistic)
        for index in set(items) & {0, 1, 2}:
            items[index].replace_input_with(node, new)


def read_batch_norms_as_affine(graph_module: fx.GraphModule) -> None:
    """Replace each batch norm by `affine`; in training mode or mixed precision its value stays, read as `affine`."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target not in (_EVAL, batch_norm_with_statistics, synchronized_batch_norm_with_statistics):
            continue
        value = next((user for user in node.users if user.target is operator.getitem and user.args[1] == 0), None)
        if value is None:
            continue
        x, weight, bias = node.args[:3]
        dtype = x.meta["val"].dtype
        if node.target is _EVAL:
            with graph.inserting_after(value):
                inverse = call(node, inverse_deviation, node.args[4], node.args[-1])
            mean, last = node.args[3], inverse
        else:
            _, mean, inverse = unpack(node, f"{value.name}_value", f"{value.name}_mean", f"{value.name}_inverse")
            last = value
        with graph.inserting_after(last):
            pair = call(node, batch_norm_affine, mean, inverse, weight, bias, dtype)
        scale, shift = unpack(pair, f"{value.name}_scale", f"{value.name}_shift")
        with graph.inserting_after(shift):
            if node.target is _EVAL and mean.meta["val"].dtype == dtype:
                new = call(node, affine, x, scale, shift, name=value.name)
            else:
                new = read_as(value, affine, x, scale, shift, like=node, name=value.name)
        replace_reads(value, new)
