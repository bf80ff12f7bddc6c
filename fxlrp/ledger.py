"""The ledger: where every unit of relevance went, node by node, each share by a formula of its own."""

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

from .emit import Written
from .errors import InputError, TargetError
from .given import inputs_of
from .graph import module_path, name_of_target, unwrap
from .program import Program
from .rules.base import Account, total
from .seeds import Target, seed_relevance
from .twin import Twin, check_finite
from .vocabulary import Call

__all__ = ["Ledger", "Row", "audit"]

SHOWN = 20


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

    @property
    def rest(self) -> float:
        """What is accounted for by nothing: a mistake, but for rounding."""
        return self.received - sum(self.to.values()) - self.bias - self.stabilizer - self.definition

    @property
    def leak(self) -> float:
        """The size of the rest, relative to `scale`."""
        return _relative(self.rest, self.scale)

    @property
    def unconserved(self) -> float:
        """The size of the share by definition, relative to `scale`."""
        return _relative(self.definition, self.scale)


def _relative(part: float, scale: float) -> float:
    """`part` relative to `scale`; infinite if there is no telling, so that a NaN is never the smallest of all."""
    found = abs(part) / scale if scale else (0.0 if part == 0 else math.inf)
    return math.inf if math.isnan(found) else found


@dataclass(frozen=True)
class Ledger:
    """Where relevance went; made by `audit`. Printed, it is a table, with the worst rows first.

    Attributes
    ----------
    rows : tuple of Row
        One for each op that relevance goes through, in the order of the relevance pass.
    seed : float
        The relevance that was put on the output.
    inputs : dict of str to float
        What arrived at each input, by its name.
    """

    rows: tuple[Row, ...]
    seed: float
    inputs: Mapping[str, float]

    @property
    def leak(self) -> float:
        """The largest rest of a node, relative to the relevance that came in there (absolute values summed)."""
        return max((row.leak for row in self.rows), default=0.0)

    @property
    def unconserved(self) -> float:
        """The largest share by definition of a node, relative to the relevance that came in there."""
        return max((row.unconserved for row in self.rows), default=0.0)

    @property
    def worst(self) -> list[Row]:
        """The rows, those with the largest leak first, then those that drop or add most, then those that lose most."""

        def badness(row: Row) -> tuple[float, ...]:
            lost = _relative(abs(row.bias) + abs(row.stabilizer), row.scale)
            # Rounding is no leak.
            return (row.leak if row.leak > 1e-6 else 0.0, row.unconserved, lost)

        return sorted(self.rows, key=badness, reverse=True)

    def __str__(self) -> str:
        return self.table()

    def table(self, limit: int | None = SHOWN) -> str:
        """The ledger as text.

        Parameters
        ----------
        limit : int or None
            How many rows to show, the worst ones; None for all.
        """
        names = ("module", "op", "rule", "in", "to inputs", "bias", "stabilizer", "definition", "rest")
        cells = [
            (row.path or "-", row.op, row.rule, *map("{:.4g}".format, _amounts(row)), f"{row.rest:.1e}")
            for row in self.worst[:limit]
        ]
        widths = [max(len(row[i]) for row in (names, *cells)) for i in range(len(names))]
        layout = "  ".join(f"{{:{'<' if i < 3 else '>'}{width}}}" for i, width in enumerate(widths))
        lines = [layout.format(*row) for row in (names, *cells)]
        arrived = ", ".join(f"{value:.4g} at {name}" for name, value in self.inputs.items())
        taken = {
            name: sum(getattr(row, name) for row in self.rows) for name in ("bias", "stabilizer", "definition", "rest")
        }
        head = [
            f"{self.seed:.4g} put on the output; {arrived or 'nothing at the inputs'}; "
            + ", ".join(f"{name} {value:.4g}" for name, value in taken.items()),
            f"leak {self.leak:.1e}, unconserved {self.unconserved:.1e} (largest of a node, relative to what came in)",
            "",
        ]
        more = len(self.rows) - len(cells)
        foot = [f"... and {more} more rows: table(None), or --rows 0, shows them"] if more else []
        return "\n".join([*head, lines[0], "-" * len(lines[0]), *lines[1:], *foot])


def _amounts(row: Row) -> tuple[float, ...]:
    return row.received, sum(row.to.values()), row.bias, row.stabilizer, row.definition


def audit(twin: Twin, x: Tensor | tuple[Tensor, ...], target: Target = None) -> Ledger:
    """Account for every unit of relevance of one call of a twin, node by node.

    What a node's value received is the sum of what its readers sent. What its rule should do with it is computed from
    the rule's formulas, apart from the relevance pass itself: what the bias takes, what the stabilizer takes, what the
    rule drops or adds by its own definition. What is left beside what did go to the inputs is the rest, a leak.

    Parameters
    ----------
    twin : Twin
        Made by `fxlrp.convert`. In float64, a leak above 1e-9 is a mistake; in float32, one above about 1e-4.
    x : Tensor or tuple of Tensor
        The input, or inputs. All values of the forward and the relevance pass are kept in memory at once.
    target : int, sequence of int, array, Tensor, callable or None
        What to explain, see `fxlrp.seed_relevance`; one seed.

    Returns
    -------
    Ledger
        ``print(ledger)`` shows a table; ``ledger.leak`` and ``ledger.unconserved`` are its two figures.

    Raises
    ------
    TargetError
        If the target does not fit the output, or gives several seeds.
    InputError
        If the input has values that are not finite.
    FxlrpError
        What the twin's call raises.
    """
    if not isinstance(twin, Twin):
        raise InputError(f"audit takes a twin, as fxlrp.convert(model) makes it, not a {type(twin).__name__}")
    check_finite(x)
    inputs = inputs_of(x)
    program = twin.capture(inputs)
    with torch.inference_mode(False), torch.no_grad():
        values = _values(twin, program, tuple(value.clone() for value in inputs), target)
        return _account(program, values)


class _Values(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.extra_traceback = False  # An error's message is to stay what it is.


def _values(twin: Twin, program: Program, inputs: tuple[Tensor, ...], target: Target) -> dict[fx.Node, Any]:
    """The value of every node of the program's graph. The model's buffers are left as they were."""

    def one_seed(output: Tensor) -> Tensor:
        seed = seed_relevance(output, target)
        if seed.ndim > output.ndim:
            raise TargetError(f"an audit is of one seed: give it one of the {len(seed)}")
        return seed

    buffers = {buffer: buffer.clone() for buffer in twin.model.buffers()}
    run = _Values(program.passes[0].whole)
    try:
        run.run(*inputs, one_seed)
    finally:
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return run.env


def _account(program: Program, values: Mapping[fx.Node, Any]) -> Ledger:
    nodes = list(program.passes[0].whole.graph.nodes)
    result: Any = nodes[-1].args[0]
    output, relevances, _ = result
    seed = values[next(node for node in nodes if node.target is seed_relevance)]
    received: dict[fx.Node, list[Tensor]] = defaultdict(list)
    received[output].append(seed)
    rows = []
    for written in program.passes[0].written:
        rows.append(_row(written, values, received))
        for slot, share in written.sent.items():
            received[written.step.operands[slot]].append(values[share])
    inputs = [node for node in nodes if node.op == "placeholder" and node.target != "target"]
    arrived = {
        node.name: total(values[relevance])
        for node, relevance in zip(inputs, relevances, strict=True)
        if relevance is not None
    }
    for node in inputs:
        if node.name in arrived:
            came = sum(received[node])
            share = {node.name: arrived[node.name]}
            rows.append(Row(node.name, "", "input", "-", total(came), _size(came), share, *Account()))
    return Ledger(tuple(rows), total(seed), arrived)


def _row(written: Written, values: Mapping[fx.Node, Any], received: Mapping[fx.Node, Sequence[Tensor]]) -> Row:
    node, rule = written.step.node, written.step.rule
    several = not isinstance(node.meta["val"], Tensor)
    parts = [user for user in node.users if user.target is operator.getitem] if several else [node]
    came = [sum(received[part]) for part in parts if part in received]
    target, args, kwargs = unwrap(node)
    args, kwargs = map_arg((args, kwargs), lambda n: values[n])
    relevance = map_arg(written.relevance, lambda n: values[n])
    account = Account(bias=total(relevance))  # Of an op with no other operands than constants.
    if written.sent:
        account = rule.account(Call(rule.op, target, args, kwargs, rule.slots), values[written.value], relevance)
    to: dict[str, float] = defaultdict(float)
    for slot, share in written.sent.items():
        operand: Any = written.step.operands[slot]
        owner = operand.args[0] if operand.target is operator.getitem else operand
        to[owner.name] += total(values[share])
    size = sum(_size(part) for part in came)
    op = name_of_target(target).removeprefix("aten.").split(".")[0]
    return Row(node.name, module_path(node), op, repr(rule).removesuffix("()"), total(came), size, dict(to), *account)


def _size(value: Any) -> float:
    return float(value.abs().sum())
