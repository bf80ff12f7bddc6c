"""A program: a capture with its relevance pass written into it, and how it is run for one seed or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from .capture import Capture
from .emit import Written
from .seeds import Target, seed_relevance

__all__ = ["Program"]


@dataclass
class Program:
    """A capture with its relevance pass, and the two halves of it (made when they are needed)."""

    capture: Capture
    fingerprint: tuple[Any, ...]
    graph_module: fx.GraphModule
    written: Sequence[Written]
    _halves: tuple[fx.GraphModule, fx.GraphModule] | None = None

    @property
    def size_bound(self) -> bool:
        """Whether it speaks for one spatial size alone, even if the capture of another one is the same graph."""
        return bool(self.graph_module.meta.get("size_bound"))

    def _two_halves(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Forward half: inputs to (output, values); relevance half: seed and values to (relevances, recorded)."""
        if self._halves is None:
            self._halves = _split(self.graph_module)
        return self._halves

    def run(self, inputs: tuple[Tensor, ...], target: Target) -> tuple[Tensor, tuple[Tensor | None, ...], Any]:
        """Output, relevance of each input, and what was recorded; for K seeds, the relevance half runs for each."""
        rank = self.capture.output.meta["val"].ndim
        given = isinstance(target, Tensor) and target.is_floating_point()
        if not (callable(target) or given) or (isinstance(target, Tensor) and target.ndim == rank):
            return self.graph_module(*inputs, target)
        forward, relevance = self._two_halves()
        output, saved = forward(*inputs)
        start = seed_relevance(output, target)
        if start.ndim == rank:
            return output, *relevance(start, *saved)
        found = torch.vmap(lambda each: relevance(each, *saved), randomness="different")(start)
        return output, *found


def _split(whole: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    nodes = list(whole.graph.nodes)
    start = next(i for i, node in enumerate(nodes) if node.target is seed_relevance)
    before, after = nodes[:start], nodes[start + 1 : -1]
    later = set(after)
    result: Any = nodes[-1].args[0]
    output, relevance, recorded = result
    saved = [node for node in before if node.op != "get_attr" and any(user in later for user in node.users)]
    forward, copies = fx.Graph(), {}
    for node in before:
        if node.target != "target":
            copies[node] = forward.node_copy(node, lambda n: copies[n])
    forward.output((copies[output], tuple(copies[n] for n in saved)))
    backward = fx.Graph()
    copies = {nodes[start]: backward.placeholder("seed")}
    copies |= {node: backward.placeholder(node.name) for node in saved}
    copies |= {n: backward.node_copy(n) for n in before if n.op == "get_attr"}
    for node in after:
        copies[node] = backward.node_copy(node, lambda n: copies[n])
    # An input that no relevance reaches stays without one.
    backward.output(map_arg((relevance, recorded), lambda n: copies[n]))
    return fx.GraphModule(whole, forward, "Forward"), fx.GraphModule(whole, backward, "Relevance")
