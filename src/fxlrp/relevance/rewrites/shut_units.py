"""In front of a ReLU, the relevance of units that it shuts is zero: a branch for these is not computed."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from torch import fx

from ...rules.base import Site
from ...rules.plain import Gradient, Transpose
from ...rules.zennit import probe
from ...rules.zennit.basic import BasicRule
from ..assign import Assignment
from .emitted import Emitted

__all__ = ["leave_out_shut_units"]


def leave_out_shut_units(emitted: Emitted) -> None:
    """Find the layers whose relevance is zero where their value is not positive, and what their rules then do not read.

    That is so in front of a ReLU of which all readers give relevance in proportion to its value, as most rules do
    (not flat, not w-square, nor a gradient).
    """
    shut = _Shut(emitted)
    for written, call, step, rule in emitted.basic_rules():
        if shut.units_of(written.value):
            site = replace(step.site, shut=True)
            emitted.replace_site(call, site)
            emitted.replace_rule(written, call, _without_unread(rule, site))


def _without_unread(rule: BasicRule, site: Site) -> BasicRule:
    reading = rule.reading(site)
    if reading is None:
        return rule
    values, gradients = {i for each in reading.sums for i in each}, {i for each in reading.alike for i, _ in each}
    branches = tuple(
        replace(branch, reads_output=i in values, reads_gradient=branch.reads_gradient and i in gradients)
        for i, branch in enumerate(rule.branches)
    )
    return replace(rule, branches=branches)


class _Shut:
    """Which values have no relevance where they are zero, or not positive."""

    def __init__(self, emitted: Emitted) -> None:
        self._readers: dict[fx.Node, list[Assignment]] = defaultdict(list)
        for written in emitted.written:
            for operand in written.assignment.operands.values():
                self._readers[operand].append(written.assignment)
        self._explained = emitted.explained
        self._found: dict[fx.Node, bool] = {}

    def units_of(self, value: fx.Node) -> bool:
        """Whether a value's relevance is zero where it is not positive."""
        return self._all(value, self._shuts)

    def _all(self, value: fx.Node, holds: Callable[[Assignment], bool]) -> bool:
        """Whether it holds of all that gives relevance to a value: a seed may be anything."""
        return value is not self._explained and all(holds(each) for each in self._readers[value])

    def _shuts(self, reader: Assignment) -> bool:
        op = reader.site.op
        if not op.shuts(reader.node):
            return False
        return type(reader.rule) is Gradient or (reader.rule.is_identity and self._zeros(reader.node))

    def _zeros(self, node: fx.Node) -> bool:
        """Whether the relevance of an op's value, or of each of them, is zero where the value is."""
        if node not in self._found:
            items = [user for user in node.users if user.target is operator.getitem]
            self._found[node] = all(self._all(item, self._keeps_zeros) for item in (node, *items))
        return self._found[node]

    def _keeps_zeros(self, reader: Assignment) -> bool:
        """Whether what an op hands on to inputs that are zero is zero."""
        rule, op = reader.rule, reader.site.op
        if isinstance(rule, BasicRule):
            return _is_proportional(rule, reader.site)
        moves = rule.is_identity or type(rule) in (Gradient, Transpose)
        return moves and (op.structural or op.carries_zeros or op.shuts(reader.node)) and self._zeros(reader.node)


def _is_proportional(rule: BasicRule, site: Site) -> bool:
    """Whether a rule multiplies with inputs that are zero where the op's are."""
    factors = probe.coefficients(rule.hook.reducer, len(rule.branches))
    if factors is None or any(factors[1]):
        return False
    read = [branch for branch, factor in zip(rule.branches, factors[0], strict=True) if factor]
    return all(probe.keeps_zero(branch.input_modifier, site.input_shape) for branch in read)
