"""The books that the ledger is kept in: what each value received, and what its rule did, and should do, with it."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..graph import name_of_target
from ..ops import Call, NoDerivative, Slot, lookup
from ..place import module_path
from ..reading import is_known, unwrap
from ..relevance.emit import Written
from ..rules.base import Account, Rule, paired, total

__all__ = ["Books", "Row", "relative"]


@dataclass(frozen=True)
class Row:
    """What became of the relevance of one node's value; sums over all elements and samples.

    Attributes
    ----------
    node, path, op, rule : str
        The node's name in the twin's graph, the module path that it lies in, the op's name and the rule's.
    received : float
        What came in from the nodes that read the value.
    scale : float
        The same in absolute values, summed over elements: what shares are relative to.
    to : dict of str to float
        What went to each input, by the name of its node.
    bias : float
        What constants of the model took: biases, padding, constant operands.
    stabilizer : float
        What the stabilizer took.
    definition : float
        What the rule dropped (positive) or added (negative) by its own definition.
    misplaced : float or None
        How far what went to the inputs is from where the rule says that it lies: the difference of their sums by random
        weights, relative to the root of the sum of squares of what came in, which is the size of such sums. None where
        the rule has no formula for it, and it is not checked.
    """

    node: str
    path: str
    op: str
    rule: str
    received: float
    scale: float
    to: Mapping[str, float]
    bias: float
    stabilizer: float
    definition: float
    misplaced: float | None = None

    @property
    def rest(self) -> float:
        """What is accounted for by nothing: a mistake, but for rounding."""
        return self.received - sum(self.to.values()) - self.bias - self.stabilizer - self.definition

    @property
    def leak(self) -> float:
        """The size of the rest, relative to `scale`, or what is misplaced, whichever is more."""
        return max(relative(self.rest, self.scale), self.misplaced or 0.0)

    @property
    def unconserved(self) -> float:
        """The size of the share by definition, relative to `scale`."""
        return relative(self.definition, self.scale)


def relative(part: float, scale: float) -> float:
    """`part` relative to `scale`; infinite if there is no telling, so that a NaN is never the smallest of all."""
    if not math.isfinite(part) or not math.isfinite(scale):
        return math.inf
    return abs(part) / scale if scale else (0.0 if part == 0 else math.inf)


class Books:
    """What each value has received so far, while the steps of a relevance pass are gone through in their order.

    Parameters
    ----------
    values : dict of fx.Node to Any
        The value of every node, of the forward and the relevance pass.
    """

    def __init__(self, values: Mapping[fx.Node, Any]) -> None:
        self._values = values
        self._received: dict[fx.Node, list[Tensor]] = defaultdict(list)
        self._generator = torch.Generator().manual_seed(0)

    def receive(self, node: fx.Node, relevance: Tensor) -> None:
        """Note what a value received from one of those that read it."""
        self._received[node].append(relevance)

    def step(self, written: Written) -> Row:
        """The row of a step; the op's inputs receive what it sends."""
        node, rule, site = written.assignment.node, written.assignment.rule, written.assignment.site
        _, args, kwargs = unwrap(node)
        # By the op's own arguments: the step may have mixed them up.
        operands: dict[Slot, Any] = {(p, i): args[p] if i is None else args[p][i] for p, i in written.sent}
        shares = {slot: self._values[share] for slot, share in written.sent.items()}
        args, kwargs = map_arg((args, kwargs), lambda n: self._values[n])
        call = site.call(args, kwargs)
        came, relevance = self._taken(node)
        account, misplaced = self._checked(rule, call, self._values[written.value], relevance, list(shares.values()))
        if is_known(node):
            misread = _difference(call.run(), self._values[node])
            misplaced = misread if misplaced is None else max(misread, misplaced)
        to: dict[str, float] = defaultdict(float)
        for slot, operand in operands.items():
            self.receive(operand, shares[slot])
            owner = operand.args[0] if operand.target is operator.getitem else operand
            to[owner.name] += total(shares[slot])
        return _row(node, repr(rule).removesuffix("()"), came, to, account, misplaced)

    def arrived(self, node: fx.Node, relevance: Tensor) -> Row:
        """The row of an input: what is handed out is what it received."""
        (came,), _ = self._taken(node)
        (weights,) = self._weights([relevance])
        misplaced = relative(paired(relevance, weights) - paired(came, weights), _norm(came))
        return _row(node, "-", [came], {node.name: total(relevance)}, Account(), misplaced)

    def left(self) -> list[Row]:
        """The rows of the values whose relevance no step took on: all of it is a rest."""
        return [_row(node, "-", self._taken(node)[0], {}, Account(), None) for node in list(self._received)]

    def _taken(self, node: fx.Node) -> tuple[list[Tensor], Any]:
        """What a value received, its parts one by one; and the same as a rule takes it on."""
        if isinstance(node.meta["val"], Tensor):
            came = [self._sum([node])]
            return came, came[0]
        parts = defaultdict(list)
        for user in node.users:
            if user in self._received and user.target is operator.getitem:
                parts[user.args[1]].append(user)
        by_index = {index: self._sum(nodes) for index, nodes in parts.items()}
        op = lookup(unwrap(node)[0])
        if op is None or not op.structural:
            return list(by_index.values()), by_index.get(0)
        return list(by_index.values()), [by_index.get(index) for index in range(len(node.meta["val"]))]

    def _sum(self, nodes: Sequence[fx.Node]) -> Any:
        return sum(part for node in nodes for part in self._received.pop(node))

    def _weights(self, shares: Sequence[Tensor]) -> list[Tensor]:
        """Random numbers, others for each element of each input."""
        # Numbers that every precision has: where a model casts values, moving these about does not round them.
        options: dict[str, Any] = {"generator": self._generator, "dtype": torch.float64, "device": "cpu"}
        return [torch.randn(share.shape, **options).bfloat16().to(share) for share in shares]

    def _checked(
        self, rule: Rule, call: Call, output: Tensor, relevance: Tensor, shares: Sequence[Tensor]
    ) -> tuple[Account, float | None]:
        """Where a rule's relevance goes beside its inputs, and how far what they got is from its place."""
        if not shares:
            # Of an op with no other operands than constants.
            return Account(bias=total(relevance)), 0.0
        weights = self._weights(shares)
        try:
            account = rule.account(call, output, relevance)
            expected = rule.expected(call, output, relevance, weights)
        except NoDerivative:
            account, expected = Rule.account(rule, call, output, relevance), None
        if expected is None:
            return account, None
        return account, relative(paired(shares, weights) - expected, _norm(relevance))


def _row(
    node: fx.Node,
    rule: str,
    came: Sequence[Tensor],
    to: Mapping[str, float],
    account: Account,
    misplaced: float | None,
) -> Row:
    op = "input" if node.op == "placeholder" else name_of_target(unwrap(node)[0]).removeprefix("aten.").split(".")[0]
    return Row(node.name, module_path(node), op, rule, total(came), _size(came), dict(to), *account, misplaced)


def _size(parts: Sequence[Tensor]) -> float:
    return sum(float(part.abs().sum()) for part in parts)


def _norm(relevance: Tensor | Sequence[Tensor | None]) -> float:
    """The root of the sum of squares, of tiny numbers too: what a sum by random weights comes to."""
    parts = [relevance] if isinstance(relevance, Tensor) else relevance
    elements = torch.cat([part.flatten() for part in parts if part is not None])
    largest = elements.abs().max()
    return float(largest * (elements / largest).norm()) if largest else 0.0


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return relative(float((a - b).abs().max()), float(b.abs().max()))
