"""Write the relevance pass into the graph: plain calls, one for each op, in the reverse order of the forward pass."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, fx

from .assign import Step
from .errors import ModulePathError
from .ops.linear import scaled_weight
from .place import module_calls
from .reading import unwrap
from .rules.basic import BasicRule
from .seeds import seed_relevance
from .vocabulary import Op, Slot, lookup

__all__ = ["Written", "emit"]


@dataclass(frozen=True)
class Written:
    """A step as it stands in the graph.

    Attributes
    ----------
    step : Step
        The node, its rule, and the operands.
    value : fx.Node
        The value of the step's op.
    relevance : fx.Node or list
        The relevance that the rule takes on; a list for an op with several outputs (None where there is none).
    sent : dict of Slot to fx.Node
        What it hands on to each operand.
    """

    step: Step
    value: fx.Node
    relevance: Any
    sent: Mapping[Slot, fx.Node]


def emit(
    graph_module: fx.GraphModule,
    steps: Sequence[Step],
    *,
    record: Sequence[str] = (),
    constant: bool,
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
    steps : sequence of Step
        The rules.
    record : sequence of str
        Module paths whose input's relevance is wanted.
    constant : bool
        Whether parameters are constants, so that rules can modify them once.
    times_input : bool
        Whether what the rules propagate is to be multiplied with the value where it arrives, and where it is recorded.
    logits : fx.Node or None
        The value that relevance starts from, if it is not the output (`fxlrp.logits.logits_of`).
    batched : bool
        As of `fxlrp.seed_relevance`.

    Raises
    ------
    ModulePathError
        If a module in `record` has no ops that relevance goes through.

    Returns
    -------
    list of Written
        The steps, in the order of the relevance pass.
    """
    graph = graph_module.graph
    end = next(node for node in graph.nodes if node.op == "output")
    (output,) = end.args
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        target = graph.placeholder("target", default_value=None)
    with graph.inserting_before(end):
        writer = _Writer(graph_module, steps, constant, times_input)
        start = (output, target) if logits is None else (output, target, logits)
        options: dict[str, Any] = {} if batched else {"batched": False}
        seed = graph.create_node("call_function", seed_relevance, start, options, name="seed")
        writer.add(logits or output, None, seed)
        for step in reversed(steps):
            writer.take_on(step)
        relevance = [writer.arrived(node) for node in inputs]
        recorded = {path: writer.at_input_of(path) for path in record}
        graph.output((output, tuple(relevance), recorded))
    graph.erase_node(end)
    return writer.written


class _Writer:
    """Keeps, while the pass is written, what relevance each node has received, and from which step."""

    def __init__(self, graph_module: fx.GraphModule, steps: Sequence[Step], constant: bool, times_input: bool) -> None:
        self._times_input = times_input
        self._module, self._graph, self._constant = graph_module, graph_module.graph, constant
        self._givers = Counter(operand for step in steps for operand in step.operands.values())
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

    def _relevance_of(self, node: fx.Node) -> Any:
        """The relevance of a step's value: a list of them for an op that moves values to several outputs."""
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return self.total(node)
        parts: dict[Any, list[fx.Node]] = defaultdict(list)
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

    def take_on(self, step: Step) -> None:
        """Call the step's rule, and hand what it gives to the operands."""
        relevance = self._relevance_of(step.node)
        if relevance is None:
            return
        sent = self._sent(step, relevance) if step.operands else {}
        for slot, share in sent.items():
            self.add(step.operands[slot], step.node, share)
        self.written.append(Written(step, self._value_of(step.node), relevance, sent))

    def _sent(self, step: Step, relevance: Any) -> dict[Slot, fx.Node]:
        """What the step's rule hands on to each operand."""
        node, rule = step.node, step.rule
        slots, operands = list(step.operands), list(step.operands.values())
        if rule.passes:
            return {slots[0]: relevance}
        _, args, kwargs = unwrap(node)
        if rule.takes_scale and not self._constant:
            args, kwargs = _with_scale_outside(rule.op, args, kwargs)
        path = f"{node.name}_{rule.name}"
        self._module.add_submodule(path, rule)
        if isinstance(rule, BasicRule):
            self._bind(rule, args)
        output = self._value_of(node) if rule.needs_output else None
        name = f"R_{node.name}_inputs" if len(operands) > 1 else self._name(operands[0], node)
        found = self._graph.create_node("call_module", path, (relevance, output, *args), dict(kwargs), name=name)
        if len(operands) == 1:
            return {slots[0]: found}
        return {
            slot: self._graph.create_node(
                "call_function", operator.getitem, (found, index), name=self._name(operand, node)
            )
            for index, (slot, operand) in enumerate(step.operands.items())
        }

    def _bind(self, rule: BasicRule, args: tuple[Any, ...]) -> None:
        """Let a rule modify its op's parameters once, if they are constants (a batch's statistics make none)."""
        params = {name: args[p] for name, p in rule.op.params.items() if p < len(args) and args[p] is not None}
        if self._constant and all(param.op == "get_attr" for param in params.values()):
            rule.bind({name: attrgetter(param.target)(self._module) for name, param in params.items()})

    def _name(self, operand: fx.Node, consumer: fx.Node) -> str:
        return f"R_{operand.name}" if self._givers[operand] == 1 else f"R_{operand.name}_from_{consumer.name}"

    def at_input_of(self, path: str) -> Any:
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


def _with_scale_outside(
    op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a linear layer that a batch norm was folded into, with the weight as it was before."""
    position = op.params.get("weight", len(args))
    weight = args[position] if position < len(args) else None
    if not isinstance(weight, fx.Node) or weight.target is not scaled_weight:
        return args, kwargs
    inner, scale, *_ = weight.args
    return (*args[:position], inner, *args[position + 1 :]), kwargs | {"channel_scale": scale}


def _calls_of(node: fx.Node | None, path: str) -> set[str]:
    return {key for at, key in module_calls(node) if at == path} if node is not None else set()


def _op_of(node: fx.Node) -> Op:
    op = lookup(unwrap(node)[0])
    assert op is not None
    return op
