"""Max pooling gives its winners out, so that the relevance pass need not look for them again."""

from __future__ import annotations

import torch
from torch import fx

from ...graph import call, unpack
from ...ops.linear import of_each_dimension
from ...ops.pooling import max_pooled
from ...reading import read_as
from ...signature import Target

__all__ = ["keep_winners_of_max_pooling"]

aten = torch.ops.aten

_WITH_WINNERS: dict[object, Target] = {
    aten.max_pool1d.default: aten.max_pool1d_with_indices.default,
    aten.max_pool2d.default: aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default: aten.max_pool3d_with_indices.default,
}


def keep_winners_of_max_pooling(graph_module: fx.GraphModule) -> None:
    """Let max pooling give its winners out, and read its value as the choice of these."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target not in _WITH_WINNERS:
            continue
        x, kernel, stride, padding, dilation, ceil_mode = node.args
        window = [of_each_dimension(size, len(kernel)) for size in (kernel, stride or kernel, padding, dilation)]
        with graph.inserting_before(node):
            both = call(node, _WITH_WINNERS[node.target], x, *window, ceil_mode)
        value, winners = unpack(both, f"{node.name}_value", f"{node.name}_winners")
        with graph.inserting_after(winners):
            new = read_as(value, max_pooled, x, *window, ceil_mode, winners, like=node, name=node.name)
        node.replace_all_uses_with(new)
