"""Canonization: rewrite a captured graph into a form that LRP can be applied to, without changing f(x).

A pass is a function that edits a graph module in place. To add one: write it in a file of its own here, and name it in
`PASSES`, which are run in their order.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from ..graph import drop_dead_code
from .batch_norm import fold_batch_norms, read_batch_norms_as_affine, write_statistics_in_place
from .constants import fold_constants
from .padding import join_padding_to_its_convolution
from .simplify import read_copies_as_written, read_dropout_as_product, remove_no_ops

__all__ = ["PASSES", "canonize_graph", "fold_constants"]

PASSES: tuple[Callable[[fx.GraphModule], None], ...] = (
    remove_no_ops,
    read_copies_as_written,
    read_dropout_as_product,
    join_padding_to_its_convolution,
    write_statistics_in_place,
    read_batch_norms_as_affine,
    fold_batch_norms,
)


def canonize_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Run all passes on a captured graph, in place.

    Returns
    -------
    fx.GraphModule
        The same object, recompiled.
    """
    for run in PASSES:
        run(graph_module)
        drop_dead_code(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module
