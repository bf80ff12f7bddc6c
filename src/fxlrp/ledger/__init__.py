"""The ledger: where every unit of relevance went, node by node, each share by a formula of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..conversion import check_finite
from ..errors import InputError, TargetError
from ..given import inputs_of
from ..relevance.program import Program
from ..relevance.relevance_pass import RelevancePass
from ..relevance.seeds import Target, seed_relevance
from ..rules.base import total
from ..twin import Twin
from ..wording import columns
from .books import Books, Row, relative

__all__ = ["Ledger", "Row", "audit"]

SHOWN = 20


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
        """The largest rest of a node, or what is misplaced there, relative to the relevance that came in."""
        return max((row.leak for row in self.rows), default=0.0)

    @property
    def unconserved(self) -> float:
        """The largest share by definition of a node, relative to the relevance that came in there."""
        return max((row.unconserved for row in self.rows), default=0.0)

    @property
    def worst(self) -> list[Row]:
        """The rows, those with the largest leak first, then those that drop or add most, then those that lose most."""

        def badness(row: Row) -> tuple[float, ...]:
            lost = relative(abs(row.bias) + abs(row.stabilizer), row.scale)
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

        Returns
        -------
        str
            Lines of equal columns.
        """
        names = ("module", "op", "rule", "in", "to inputs", "bias", "stabilizer", "definition", "rest", "misplaced")
        cells = [
            (row.path or "-", row.op, row.rule, *map("{:.4g}".format, _amounts(row)), f"{row.rest:.1e}", _place(row))
            for row in self.worst[:limit]
        ]
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
        return "\n".join([*head, *columns(names, cells, left=3), *foot])


def _amounts(row: Row) -> tuple[float, ...]:
    return row.received, sum(row.to.values()), row.bias, row.stabilizer, row.definition


def _place(row: Row) -> str:
    return "not checked" if row.misplaced is None else f"{row.misplaced:.1e}"


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
    if not all(value.numel() for value in inputs):
        raise InputError("an audit needs at least one sample, and the batch is empty")
    program = twin.capture(inputs)
    with torch.inference_mode(False), torch.no_grad():
        values = _values(twin, program, tuple(value.clone() for value in inputs), target)
        return _account(program.pass_for(target), values)


class _Values(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.extra_traceback = False  # An error's message is to stay what it is.

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the graph has it; a seed has to be one."""
        found = super().call_function(target, args, kwargs)
        if target is seed_relevance and found.ndim > args[0].ndim:
            raise TargetError(f"an audit is of one seed: give it one of the {len(found)}")
        return found


def _values(twin: Twin, program: Program, inputs: tuple[Tensor, ...], target: Target) -> dict[fx.Node, Any]:
    """The value of every node of the program's graph. The model's buffers are left as they were."""

    buffers = {buffer: buffer.clone() for buffer in twin.model.buffers()}
    run = _Values(program.pass_for(target).whole)
    try:
        run.run(*inputs, target)
    finally:
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return run.env


def _account(of: RelevancePass, values: Mapping[fx.Node, Any]) -> Ledger:
    nodes = list(of.whole.graph.nodes)
    result: Any = nodes[-1].args[0]
    _, relevances, _ = result
    seed = values[of.seed]
    books = Books(values)
    books.receive(of.explained, seed)
    rows = [books.step(written) for written in of.written]
    inputs = [node for node in nodes if node.op == "placeholder" and node.target != "target"]
    arrived = {node: values[share] for node, share in zip(inputs, relevances, strict=True) if share is not None}
    rows += [books.arrived(node, found) for node, found in arrived.items()]
    rows += books.left()
    return Ledger(tuple(rows), total(seed), {node.name: total(found) for node, found in arrived.items()})
