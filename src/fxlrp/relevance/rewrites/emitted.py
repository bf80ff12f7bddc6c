"""The emitted pass as rewrites see it: its steps, and their rules to be replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import fx

from ...rules.base import Rule, Site
from ...rules.zennit.basic import BasicRule
from ..emit import Written
from ..seeds import seed_relevance
from ..step import Step

__all__ = ["Emitted"]


@dataclass(frozen=True)
class Emitted:
    """A relevance pass, written into a graph.

    Attributes
    ----------
    graph_module : fx.GraphModule
        The graph.
    written : sequence of Written
        Its steps.
    constant : bool
        Whether parameters are constants.
    """

    graph_module: fx.GraphModule
    written: Sequence[Written]
    constant: bool

    @property
    def explained(self) -> fx.Node:
        """The value that relevance starts from."""
        seed = next(node for node in self.graph_module.graph.nodes if node.target is seed_relevance)
        return cast(fx.Node, seed.args[2 if len(seed.args) > 2 else 0])

    def calls(self) -> Iterator[tuple[Written, fx.Node, Step]]:
        """The steps that are called."""
        for written in self.written:
            if written.call is not None:
                yield written, written.call, self.step(written.call)

    def basic_rules(self) -> Iterator[tuple[Written, fx.Node, Step, BasicRule]]:
        """The steps whose rule is data."""
        for written, call, step in self.calls():
            if isinstance(step.rule, BasicRule):
                yield written, call, step, step.rule

    def step(self, call: fx.Node) -> Step:
        """The step that a node calls."""
        return cast(Step, self.graph_module.get_submodule(str(call.target)))

    def replace_rule(self, written: Written, call: fx.Node, rule: Rule) -> None:
        """Have another rule in a step, and the op's value beside it if the rule reads that."""
        self.step(call).rule = rule
        relevance, _, *args = call.args
        call.args = (relevance, written.value if rule.needs_output else None, *args)

    def replace_site(self, call: fx.Node, site: Site) -> None:
        """Have more known of the place where a step's rule serves."""
        self.graph_module.add_submodule(str(call.target), Step(self.step(call).rule, site))
