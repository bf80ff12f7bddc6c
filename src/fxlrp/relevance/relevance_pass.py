"""A forward pass with the relevance pass of one method behind it, and the relevance pass by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from ..graph import drop_dead_code
from ..marks import NUMBER
from ..reading import is_known
from ..rules.zennit.held import is_tuned
from .emit import Written
from .recompute import recompute
from .seeds import seed_relevance
from .stretches import in_stretches

__all__ = ["RelevancePass", "without_readings"]


class RelevancePass:
    """A forward pass with the relevance pass of one method behind it.

    Parameters
    ----------
    whole : fx.GraphModule
        The canonical graph with the relevance pass. It holds values in several readings (`fxlrp.graph.known`): the
        ledger speaks of these.
    written : sequence of Written
        The steps, as nodes of `whole`.
    recomputed : bool
        Whether values are computed anew where the relevance pass reads them.
    stretched : bool
        Whether it runs in stretches, of which autograd keeps what goes in alone.

    Attributes
    ----------
    graph_module : fx.GraphModule
        The same without the other readings, and without what only these would need.
    run : fx.GraphModule
        What runs: this, perhaps in stretches.
    out_dims : tuple
        Where several seeds stand in what the relevance half gives, as of `torch.vmap`: an input that no relevance
        reaches has none.
    stretched : bool
        As given.
    tuned : bool
        Whether a rule holds a tensor that requires a gradient: relevance then has one with respect to it.
    """

    def __init__(
        self,
        whole: fx.GraphModule,
        written: Sequence[Written],
        *,
        recomputed: bool = False,
        stretched: bool = False,
    ) -> None:
        self.whole, self.written, self.stretched = whole, written, stretched
        graph = without_readings(whole.graph)
        drop_dead_code(graph)
        if recomputed:
            recompute(graph)
        self.graph_module = fx.GraphModule(whole, graph, "Twin")
        self.run = self.graph_module
        if stretched:
            self.run = in_stretches(fx.GraphModule(self.graph_module, self.graph_module.graph, "Twin"))
        (result,) = next(node for node in graph.nodes if node.op == "output").args
        self.out_dims: Any = tuple(None if each is None else 0 for each in result[1]), 0
        self.tuned = is_tuned(*(getattr(each.assignment.rule, "hook", None) for each in written))

    @property
    def seed(self) -> fx.Node:
        """The node of `whole` that is the seed."""
        return next(node for node in self.whole.graph.nodes if node.target is seed_relevance)

    @property
    def of_logits(self) -> bool:
        """Whether it starts from the logits in front of a final activation, and not from the output."""
        return len(self.seed.args) > 2

    @property
    def explained(self) -> fx.Node:
        """The value of `whole` that relevance starts from."""
        found = self.seed.args[2 if self.of_logits else 0]
        assert isinstance(found, fx.Node)
        return found

    @cached_property
    def relevance_half(self) -> tuple[fx.GraphModule, list[int]]:
        """Seed and values to (relevances, recorded); and the numbers of these values in the canonical graph."""
        nodes = list(self.graph_module.graph.nodes)
        start = next(i for i, node in enumerate(nodes) if node.target is seed_relevance)
        before, after = nodes[:start], nodes[start + 1 : -1]
        later = set(after)
        result: Any = nodes[-1].args[0]
        _, relevance, recorded = result
        saved = [node for node in before if node.op != "get_attr" and any(user in later for user in node.users)]
        graph, copies = fx.Graph(), {}
        copies[nodes[start]] = graph.placeholder("seed")
        copies |= {node: graph.placeholder(node.name) for node in saved}
        copies |= {node: graph.node_copy(node) for node in before if node.op == "get_attr"}
        for node in after:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
        # An input that no relevance reaches stays without one.
        graph.output(map_arg((relevance, recorded), lambda n: copies[n]))
        drop_dead_code(graph)
        half = fx.GraphModule(self.graph_module, graph, "Relevance")
        return in_stretches(half) if self.stretched else half, [NUMBER.of(node) for node in saved]


def without_readings(whole: fx.Graph) -> fx.Graph:
    """A copy in which each value is read as itself."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in whole.nodes:
        copies[node] = copies[node.args[0]] if is_known(node) else graph.node_copy(node, lambda n: copies[n])
    return graph
