"""Runs a graph stretch by stretch, each of which is computed again in the backward pass: autograd keeps less."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from math import isqrt
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils.checkpoint import checkpoint

from ..graph import writes_buffers
from .recompute import is_pure

__all__ = ["in_stretches"]


class Stretch(nn.Module):
    """A part of a graph, of which autograd keeps what goes in alone.

    Parameters
    ----------
    inner : fx.GraphModule
        The part: tensors, and what else it takes, to the values that are read behind it.
    """

    def __init__(self, inner: fx.GraphModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in given):
            return checkpoint(self.inner, *given, use_reentrant=False)
        return self.inner(*given)


def in_stretches(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with its calls in stretches, as many as there are calls in each.

    Parameters and buffers are read outside of them. What writes to the model runs there, once, and so does what reads a
    buffer that is written to, and what is drawn at random.

    Parameters
    ----------
    module : fx.GraphModule
        A graph; it gets the stretches as submodules.

    References
    ----------
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (arXiv 1604.06174).
    """
    nodes = list(module.graph.nodes)
    calls = [node for node in nodes if node.op.startswith("call_")]
    graph = fx.Graph()
    copies = {node: graph.node_copy(node) for node in nodes if node.op in ("placeholder", "get_attr")}
    for number, part in enumerate(_parts(calls, _apart(calls))):
        if len(part) == 1:
            copies[part[0]] = graph.node_copy(part[0], lambda n: copies[n])
            continue
        given, wanted, inner = _alone(module, part)
        module.add_submodule(f"fxlrp_stretch_{number}", Stretch(inner))
        found = graph.call_module(f"fxlrp_stretch_{number}", tuple(copies[node] for node in given))
        for at, node in enumerate(wanted):
            copies[node] = graph.call_function(getitem, (found, at))
    graph.output(map_arg(nodes[-1].args[0], lambda n: copies[n]))
    return fx.GraphModule(module, graph, "Stretches")


def _apart(calls: Sequence[fx.Node]) -> set[fx.Node]:
    """What must not run again, or would read another value then."""
    buffers = lambda node: {str(n.target) for n in node.all_input_nodes if n.op == "get_attr"}
    written = {path for node in calls if writes_buffers(node) for path in buffers(node)}
    return {node for node in calls if not is_pure(node) or written & buffers(node)}


def _parts(calls: Sequence[fx.Node], apart: Container[fx.Node]) -> Iterator[list[fx.Node]]:
    """Calls that run together; one by itself stays as it is."""
    size, part = isqrt(len(calls)), list[fx.Node]()
    for node in calls:
        if part and (len(part) == size or node in apart or part[0] in apart):
            yield part
            part = []
        part.append(node)
    if part:
        yield part


def _alone(module: fx.GraphModule, part: Sequence[fx.Node]) -> tuple[list[fx.Node], list[fx.Node], fx.GraphModule]:
    """What a part takes, what is read of it elsewhere, and itself."""
    inside = set(part)
    given = list(dict.fromkeys(n for node in part for n in node.all_input_nodes if n not in inside))
    wanted = [node for node in part if any(user not in inside for user in node.users)]
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}
    for node in part:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[node] for node in wanted))
    return given, wanted, fx.GraphModule(module, graph, "Stretch")
