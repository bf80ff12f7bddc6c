"""The exported graph as the rest of fxlrp has it: named by module paths, its calls written out, without guards."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..graph import name_of_target
from ..signature import normal

__all__ = ["copied"]

aten = torch.ops.aten

_FOR_ANY_STRIDES = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}
"""Ops that torch.export took for the strides of its example: at others, these do the same."""


def copied(
    module: fx.GraphModule, traces: Mapping[str, str | None], choose: Callable[[list[fx.Node]], fx.Node]
) -> tuple[fx.Graph, nn.Module | None]:
    """A copy of the exported graph: named by module paths, with its source lines, its one output and no guard."""
    graph, copies, guard = fx.Graph(), {}, None
    for node in module.graph.nodes:
        if node.op == "call_module":
            guard = module.get_submodule(node.target)
            continue
        if node.op == "output":
            flat = list(pytree.tree_leaves(node.args[0]))
            graph.output(copies[choose(flat)])
            continue
        if node.target is aten.copy_.default and node.args[0].op == "placeholder":
            continue  # A write to the caller's own input is not an effect to repeat.
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: copies[n])
        target: Any = node.name if node.op == "placeholder" else _FOR_ANY_STRIDES.get(node.target, node.target)
        if node.op == "call_function":
            args, kwargs = normal(target, args, kwargs)
        new = graph.create_node(node.op, target, args, kwargs, name=_name(node))
        new.meta = copy.copy(node.meta)
        origin = node.meta.get("from_node")
        if "stack_trace" not in new.meta and origin and (trace := traces.get(origin[0].name)):
            new.meta["stack_trace"] = trace
        copies[node] = new
    return graph, guard


def _name(node: fx.Node) -> str:
    """``layer1_0_conv1`` for the op of a module, ``layer1_0_add`` for a functional one in it."""
    if node.op != "call_function" or node.target in (operator.getitem, aten.sym_size.int):
        return node.name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    path = re.sub(r"\W+", "_", path)
    op = name_of_target(node.target).removeprefix("aten.").split(".")[0].strip("_")
    if path and op in str(kind).lower():
        return path
    return f"{path}_{op}".strip("_")
