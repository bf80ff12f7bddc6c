"""Expressions of parameters alone are computed once."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ..graph import dependents, drop_dead_code
from ..marks import FOLDED

__all__ = ["fold_constants"]


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute every expression that depends on no input, and put its value into the graph as a buffer, in place.

    Parameters that stand alone stay what they are: the module's own.
    """
    graph = graph_module.graph
    written = [node.args[0] for node in graph.nodes if node.target is torch.ops.aten.copy_.default]
    varying = dependents([node for node in graph.nodes if node.op == "placeholder"] + written)
    values: dict[fx.Node, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for node in graph.nodes:
            if node in varying:
                continue
            if node.op == "get_attr":
                values[node] = attrgetter(node.target)(graph_module)
            elif node.op == "call_function" and all(n in values for n in node.all_input_nodes) and _is_pure(node):
                args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        computed = node.op == "call_function" and isinstance(value, torch.Tensor)
        if computed and any(user not in values for user in node.users):
            _replace(graph_module, node, value)
    drop_dead_code(graph)


def _is_pure(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _replace(graph_module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    name = f"{node.name}_folded"
    graph_module.register_buffer(name, value, persistent=False)
    with node.graph.inserting_before(node):
        constant = node.graph.get_attr(name)
    constant.meta = {**node.meta}
    FOLDED.put(constant, True)
    node.replace_all_uses_with(constant)
