"""Slices of the whole are removed; writes into slices, dropout, pooling and instance norms are read as other ops."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..graph import call, parameter_expressions, replace_reads
from ..marks import UNBATCHED
from ..ops.linear import CONVOLUTIONS, TRANSPOSED
from ..ops.structure import added, dropped, written
from ..place import module_calls
from ..reading import argument, read_as
from .constant_maps import PRODUCTS, SUMS

__all__ = [
    "give_single_samples_a_batch",
    "read_copies_as_written",
    "read_dropout_as_product",
    "read_instance_norms",
    "remove_no_ops",
]

aten = torch.ops.aten
_SPATIAL = {
    target: n
    for n in (1, 2, 3)
    for target in (
        *(*CONVOLUTIONS[2 * n - 2 : 2 * n], TRANSPOSED[n - 1]),
        *(getattr(aten, f"{kind}_pool{n}d").default for kind in ("max", "avg", "adaptive_max", "adaptive_avg")),
        getattr(aten, f"max_pool{n}d_with_indices").default,
    )
}
"""How many spatial dimensions an op has."""
_ALONG = (*SUMS, *PRODUCTS, aten.pad.default, aten.constant_pad_nd.default, aten.mean.dim)
_WHOLE = 2**63 - 1

READS = (
    aten.copy.default,
    aten.instance_norm.default,
    aten.native_dropout.default,
)
"""Ops that are looked for here, and that the vocabulary does not have."""


def _does_nothing(node: fx.Node) -> bool:
    if node.target is aten.alias.default:
        return True
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = node.args[2:]
    return start in (0, None) and end in (_WHOLE, None) and step in (1, None)


def remove_no_ops(graph_module: fx.GraphModule) -> None:
    """Remove ops whose value is their input: slices of the whole, which may also be named so."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def give_single_samples_a_batch(graph_module: fx.GraphModule) -> None:
    """Give ops that are called with one sample, without a batch, a batch of one: convolutions, pools.

    Where this is how the model's inputs are, the graph is marked `UNBATCHED`, and so is done with what is
    read along with these: paddings, means, sums and products with constants.
    """
    graph, parameters = graph_module.graph, parameter_expressions(graph_module.graph)
    rank_of = lambda node: node.meta["val"].ndim
    ranks = {rank_of(n) for n in graph.nodes if n.op == "placeholder" and n.meta["val"].is_floating_point()}
    single = {n for n in graph.nodes if n.target in _SPATIAL and rank_of(n.args[0]) == _SPATIAL[n.target] + 1}
    of_inputs = {rank_of(n.args[0]) for n in single} & (ranks if len(ranks) == 1 else set())
    if of_inputs:
        UNBATCHED.put(graph_module, True)
    batches: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node not in single and node.target not in _ALONG:
            continue
        x: Any = node.args[0]
        others = set(node.all_input_nodes) - {x}
        if node not in single and (x in parameters or rank_of(x) not in of_inputs or not others <= parameters):
            continue
        with graph.inserting_before(node):
            # What a module is given has no batch, for whoever asks for its relevance.
            batch = batches.get(x) if module_calls(x) == module_calls(node) else None
            batch = batch or call(node, aten.unsqueeze.default, x, 0)
            args: Any = node.args[1:]
            if node.target is aten.mean.dim and args and args[0] is not None:
                args = ([d - rank_of(x) if d >= 0 else d for d in args[0]], *args[1:])
            new = call(node, node.target, batch, *args, name=node.name, **node.kwargs)
        if isinstance(new.meta["val"], torch.Tensor):
            _without_batch(node, new, batches)
            continue
        for item in list(node.users):
            with graph.inserting_before(item):
                value = call(node, operator.getitem, new, item.args[1], name=item.name)
            _without_batch(item, value, batches)


def _without_batch(node: fx.Node, new: fx.Node, batches: dict[fx.Node, fx.Node]) -> None:
    """Put the value of `new` in the place of that of `node`, which has no batch."""
    with node.graph.inserting_before(node):
        value = call(node, aten.squeeze.dim, new, 0)
    node.replace_all_uses_with(value)
    batches[value] = new


def read_copies_as_written(graph_module: fx.GraphModule) -> None:
    """Replace ``aten.copy``, to which functionalization turns a write into a slice, by what it writes.

    A write by indices that adds is a sum, and no write.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is aten.copy.default:
            target, args = written, node.args[:2]
        elif node.target is aten.index_put.default and argument(node, "accumulate"):
            target, args = added, node.args[:3]
        else:
            continue
        with graph_module.graph.inserting_before(node):
            new = call(node, target, *args, name=node.name)
        node.replace_all_uses_with(new)


def read_dropout_as_product(graph_module: fx.GraphModule) -> None:
    """Read dropout, where it drops, as `dropped`: an elementwise product whose mask is a constant."""
    graph = graph_module.graph
    for value in list(graph.nodes):
        if value.target is not operator.getitem or value.args[1] != 0:
            continue
        node = value.args[0]
        if node.target is not aten.native_dropout.default:
            continue
        x, p = node.args[0], node.args[1]
        with graph.inserting_after(value):
            mask = call(node, operator.getitem, node, 1)
        with graph.inserting_after(mask):
            product = read_as(value, dropped, x, mask, p, like=node, name=value.name)
        replace_reads(value, product)


def read_instance_norms(graph_module: fx.GraphModule) -> None:
    """Replace instance norms: by a group norm with a group for each channel, by a batch norm if they have statistics.

    One that is still gathering statistics stays as it is, without a rule.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is not aten.instance_norm.default:
            continue
        x, weight, bias, mean, var, by_input, momentum, eps, _ = node.args
        if by_input and mean is not None:
            continue
        with graph.inserting_before(node):
            if by_input:
                channels = int(x.meta["val"].shape[1])
                new = call(node, aten.group_norm.default, x, channels, weight, bias, eps, name=node.name)
            else:
                operands = (x, weight, bias, mean, var, momentum, eps)
                both = call(node, aten._native_batch_norm_legit_no_training.default, *operands)
                new = call(node, operator.getitem, both, 0, name=node.name)
        node.replace_all_uses_with(new)
