"""Computes values anew where the relevance pass reads them, stretch by stretch, in place of keeping all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..graph import dependents, writes_buffers
from .seeds import seed_relevance

__all__ = ["is_pure", "recompute"]

STRETCHES = range(2, 33)
"""Into how many stretches a forward pass may be cut: the number that takes least memory is chosen."""


def recompute(graph: fx.Graph) -> None:
    """Have the relevance pass compute the forward pass's values again, in place.

    The forward pass is cut into stretches. What one of them takes from others is kept; what the relevance pass reads of
    its other values is computed again from that, in front of the first step that does. What is drawn at random, or
    comes from a write to the model, is kept, too.

    Parameters
    ----------
    graph : fx.Graph
        Forward and relevance pass.

    References
    ----------
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (arXiv 1604.06174): the same for gradients.
    """
    forward = _Forward(graph)
    if forward.is_empty:
        return
    forward.cut(min((forward.cuts(count) for count in STRETCHES), key=forward.taken))


class _Forward:
    """The forward pass of a graph."""

    def __init__(self, graph: fx.Graph) -> None:
        nodes = list(graph.nodes)
        start = next(i for i, node in enumerate(nodes) if node.target is seed_relevance)
        made = dependents(graph.find_nodes(op="placeholder"))
        self._graph = graph
        self._nodes = [node for node in nodes[:start] if node in made and node.op != "placeholder"]
        self._position = {node: i for i, node in enumerate(self._nodes)}
        self._steps = {node: i for i, node in enumerate(nodes[start:])}
        self._bytes = [_bytes(node) for node in self._nodes]
        self._read = [any(user in self._steps for user in node.users) for node in self._nodes]

    @property
    def is_empty(self) -> bool:
        """Whether the output is the input."""
        return not self._nodes

    def cuts(self, count: int) -> list[int]:
        """Where so many stretches begin, and the end: where little is handed on, and each has about as much to keep."""
        size = len(self._nodes)
        handed_on = [0] * (size + 1)
        for i, node in enumerate(self._nodes):
            last = max((self._position[user] for user in node.users if user in self._position), default=i)
            handed_on[i + 1] += self._bytes[i]
            handed_on[last + 1 if last < size else size] -= self._bytes[i]
        handed_on = list(accumulate(handed_on))
        kept = list(accumulate(b if read else 0 for b, read in zip(self._bytes, self._read, strict=True)))
        found = {0, size}
        for part in range(1, count):
            near = [bisect_left(kept, kept[-1] * (part + off) / count) for off in (-0.5, 0.5)]
            found.add(min(range(near[0] + 1, min(near[1] + 1, size)), key=handed_on.__getitem__, default=0))
        return sorted(found)

    def taken(self, cuts: Sequence[int]) -> int:
        """How many bytes are needed at a time, about: what is kept, and the values of one stretch."""
        kept = self._kept(cuts)
        of_one = [
            sum(self._bytes[i] for i in range(*ends) if self._read[i] and i not in kept) for ends in pairwise(cuts)
        ]
        return sum(self._bytes[i] for i in kept) + max(of_one)

    def _kept(self, cuts: Sequence[int]) -> set[int]:
        """The values that stretches which are computed again take from others, and those that cannot be."""
        stretch = [number for number, ends in enumerate(pairwise(cuts)) for _ in range(*ends)]
        return {
            i
            for i, node in enumerate(self._nodes[: cuts[-2]])
            if not is_pure(node)
            or any(
                stretch[self._position[user]] not in (stretch[i], stretch[-1])
                for user in node.users
                if user in self._position
            )
        }

    def cut(self, cuts: Sequence[int]) -> None:
        """Compute what is read of each stretch again, but for the last: its values are read at once."""
        kept = self._kept(cuts)
        for first, last in pairwise(cuts[:-1]):
            wanted = [i for i in range(first, last) if self._read[i] and i not in kept]
            if wanted:
                self._anew(wanted, kept)

    def _anew(self, wanted: Sequence[int], kept: set[int]) -> None:
        steps = [self._steps[user] for i in wanted for user in self._nodes[i].users if user in self._steps]
        before = list(self._steps)[min(steps)]
        needed, todo = set[int](), list(wanted)
        while todo:
            at = todo.pop()
            if at not in needed and at not in kept:
                needed.add(at)
                todo += [self._position[n] for n in self._nodes[at].all_input_nodes if n in self._position]
        copies: dict[fx.Node, fx.Node] = {}
        with self._graph.inserting_before(before):
            for i in sorted(needed):
                copies[self._nodes[i]] = self._graph.node_copy(self._nodes[i], lambda n: copies.get(n, n))
        for i in wanted:
            self._nodes[i].replace_all_uses_with(copies[self._nodes[i]], lambda user: user in self._steps)


def _bytes(node: fx.Node) -> int:
    """Of a batch whose size is free, those of the batch that it was captured with."""
    sizes = [
        prod(size if isinstance(size, int) else size.node.hint or 1 for size in value.shape) * value.element_size()
        for value in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    ]
    return sum(sizes)


def is_pure(node: fx.Node) -> bool:
    """Whether a node can be run again: it writes nothing, and draws nothing at random."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and not writes_buffers(node)
