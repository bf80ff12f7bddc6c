"""Write the relevance pass into the graph: plain calls, one for each op, in the reverse order of the forward pass."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ..errors import ModulePathError
from ..ops import Op, Slot, lookup
from ..place import module_calls
from ..reading import unwrap
from .assign import Assignment
from .seeds import seed_relevance
from .step import Step

__all__ = ["Written", "emit"]


@dataclass(frozen=True)
class Written:
    """A step as it stands in the graph.

    Attributes
    ----------
    assignment : Assignment
        The node, its rule, and the operands.
    call : fx.Node or None
        The call of the rule's `Step`; None where relevance passes unchanged, or goes nowhere.
    value : fx.Node
        The value of the step's op.
    relevance : fx.Node or list
        The relevance that the rule takes on; a list for an op with several outputs (None where there is none).
    sent : dict of Slot to fx.Node
        What it hands on to each operand.
    """

    assignment: Assignment
    call: fx.Node | None
    value: fx.Node
    relevance: fx.Node | list[fx.Node | None]
    sent: Mapping[Slot, fx.Node]


def emit(
    graph_module: fx.GraphModule,
    assigned: Sequence[Assignment],
    *,
    record: Sequence[str] = (),
    times_input: bool = False,
    logits: fx.Node | None = None,
    batched: bool = True,
) -> list[Written]:
    """Add the relevance pass to a canonical graph, in place.

    Afterwards the graph takes the inputs and ``target``, and returns the output, the relevance of each input (None
    for one that carries none), and the relevance at the input of each module in `record`.

    Parameters
    ----------
    graph_module : fx.GraphModule
        The canonical forward pass.
    assigned : sequence of Assignment
        The rules.
    record : sequence of str
        Module paths whose input's relevance is wanted.
    times_input : bool
        Whether what the rules propagate is to be multiplied with the value where it arrives, and where it is recorded.
    logits : fx.Node or None
        The value that relevance starts from, if it is not the output (`fxlrp.logits.logits_of`).
    batched : bool
        As of `fxlrp.seed_relevance`.

    Returns
    -------
    list of Written
        The steps, in the order of the relevance pass.

    Raises
    ------
    ModulePathError
        If a module in `record` has no ops that relevance goes through.
    """
    graph = graph_module.graph
    end = next(node for node in graph.nodes if node.op == "output")
    (output,) = end.args
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        target = graph.placeholder("target", default_value=None)
    with graph.inserting_before(end):
        writer = _Writer(graph_module, assigned, times_input)
        start = (output, target) if logits is None else (output, target, logits)
        options: dict[str, Any] = {} if batched else {"batched": False}
        seed = graph.create_node("call_function", seed_relevance, start, options, name="seed")
        writer.add(logits or output, None, seed)
        for assignment in reversed(assigned):
            writer.take_on(assignment)
        relevance = [writer.arrived(node) for node in inputs]
        recorded = {path: writer.at_input_of(path) for path in record}
        graph.output((output, tuple(relevance), recorded))
    graph.erase_node(end)
    return writer.written


class _Writer:
    """Keeps, while the pass is written, what relevance each node has received, and from which step."""

    def __init__(self, graph_module: fx.GraphModule, assigned: Sequence[Assignment], times_input: bool) -> None:
        self._times_input = times_input
        self._module, self._graph = graph_module, graph_module.graph
        self._givers = Counter(operand for each in assigned for operand in each.operands.values())
        self._received: dict[fx.Node, list[tuple[fx.Node | None, fx.Node]]] = defaultdict(list)
        self._totals: dict[fx.Node, fx.Node] = {}
        self.written: list[Written] = []

    def add(self, node: fx.Node, consumer: fx.Node | None, relevance: fx.Node) -> None:
        """`node` receives `relevance` from `consumer`."""
        self._received[node].append((consumer, relevance))

    def total(self, node: fx.Node) -> fx.Node | None:
        """All the relevance that `node` has received, None if there is none."""
        if node not in self._totals and node in self._received:
            self._totals[node] = self._sum([part for _, part in self._received[node]], f"R_{node.name}")
        return self._totals.get(node)

    def arrived(self, node: fx.Node) -> fx.Node | None:
        """The relevance of `node`, an input."""
        total = self.total(node)
        return total if total is None else self._relevance_at(node, total)

    def _relevance_at(self, node: fx.Node, found: fx.Node) -> fx.Node:
        if not self._times_input:
            return found
        return self._graph.create_node("call_function", operator.mul, (found, node), name=f"R_at_{node.name}")

    def _sum(self, parts: Sequence[fx.Node], name: str) -> fx.Node:
        total = parts[0]
        for part in parts[1:]:
            total = self._graph.create_node("call_function", operator.add, (total, part), name=name)
        return total

    def _relevance_of(self, node: fx.Node) -> fx.Node | list[fx.Node | None] | None:
        """The relevance of a step's value: a list of them for an op that moves values to several outputs."""
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return self.total(node)
        parts: dict[object, list[fx.Node]] = defaultdict(list)
        for user in node.users:
            if user.target is operator.getitem and (total := self.total(user)) is not None:
                parts[user.args[1]].append(total)
        items = {index: self._sum(totals, f"R_{node.name}_{index}") for index, totals in parts.items()}
        if not all(isinstance(part, Tensor) for part in value) or not _op_of(node).structural:
            return items.get(0)
        return [items.get(index) for index in range(len(value))]

    def _value_of(self, node: fx.Node) -> fx.Node:
        """The value of a step's op: the first, of an op that gives others beside it."""
        if isinstance(node.meta["val"], Tensor) or _op_of(node).structural:
            return node
        return next(user for user in node.users if user.target is operator.getitem and user.args[1] == 0)

    def take_on(self, assignment: Assignment) -> None:
        """Call the rule of an op, and hand what it gives to the operands."""
        node, operands = assignment.node, assignment.operands
        relevance = self._relevance_of(node)
        if relevance is None:
            return
        called = bool(operands) and not assignment.rule.is_identity
        call = self._called(assignment, relevance) if called else None
        sent: dict[Slot, Any] = dict.fromkeys(operands, relevance) if call is None else self._parts(assignment, call)
        for slot, share in sent.items():
            self.add(operands[slot], node, share)
        self.written.append(Written(assignment, call, self._value_of(node), relevance, sent))

    def _called(self, assignment: Assignment, relevance: fx.Node | list[fx.Node | None]) -> fx.Node:
        """The call of a rule's step."""
        node, rule, operands = assignment.node, assignment.rule, list(assignment.operands.values())
        _, args, kwargs = unwrap(node)
        path = f"{node.name}_{rule.name}"
        self._module.add_submodule(path, Step(rule, assignment.site))
        output = self._value_of(node) if rule.needs_output else None
        name = f"R_{node.name}_inputs" if len(operands) > 1 else self._name(operands[0], node)
        return self._graph.create_node("call_module", path, (relevance, output, *args), dict(kwargs), name=name)

    def _parts(self, assignment: Assignment, call: fx.Node) -> dict[Slot, fx.Node]:
        """What a step hands on to each operand."""
        node, operands = assignment.node, assignment.operands
        if len(operands) == 1:
            return dict.fromkeys(operands, call)
        return {
            slot: self._graph.create_node(
                "call_function", operator.getitem, (call, index), name=self._name(operand, node)
            )
            for index, (slot, operand) in enumerate(operands.items())
        }

    def _name(self, operand: fx.Node, consumer: fx.Node) -> str:
        return f"R_{operand.name}" if self._givers[operand] == 1 else f"R_{operand.name}_from_{consumer.name}"

    def at_input_of(self, path: str) -> fx.Node | tuple[fx.Node, ...]:
        """Relevance at the input of a module: what it gives to values that come from outside of it."""
        shares: dict[str, dict[fx.Node, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
        for operand in self._graph.nodes:
            for consumer, part in self._received.get(operand, ()):
                for call in _calls_of(consumer, path) - _calls_of(operand, path):
                    shares[call][operand].append(part)
        found = [
            self._relevance_at(operand, self._sum(parts, f"R_at_{path}"))
            for operands in shares.values()
            for operand, parts in operands.items()
        ]
        if not found:
            raise ModulePathError(
                f"there is no relevance at the input of '{path}': in the graph, this module has no ops of its own that "
                "relevance goes through (it may do nothing, be folded into another, or not be called)"
            )
        return found[0] if len(found) == 1 else tuple(found)


def _calls_of(node: fx.Node | None, path: str) -> set[str]:
    return {key for at, key in module_calls(node) if at == path} if node is not None else set()


def _op_of(node: fx.Node) -> Op:
    op = lookup(unwrap(node)[0])
    assert op is not None
    return op
