"""The parts of a model that a picture of its ledger shows: rows joined until they are few enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import networkx as nx

from ..errors import InputError
from ..ledger import Ledger, Row

__all__ = ["SHARES", "Group", "flow_graph", "join"]

SHARES = ("bias", "stabilizer", "definition", "rest")
"""What takes relevance, beside the inputs of an op."""

LAYERS = ("conv", "linear", "mm", "matmul", "norm", "attention")
"""What the names of ops have in them that are drawn as parts of their own if there is room."""

INPUT = "input"

LONGEST = 40
"""How long a note may be."""

PLAIN = ("-", "Pass", "Transpose")
"""Rules that are not worth a word."""


@dataclass(frozen=True)
class Group:
    """Rows that follow each other in the relevance pass, drawn as one part.

    Attributes
    ----------
    rows : tuple of Row
        In the order of the relevance pass.
    """

    rows: tuple[Row, ...]

    @property
    def received(self) -> float:
        """What came in from outside the group."""
        own = {row.node for row in self.rows if row.op != INPUT}
        inside = sum(amount for row in self.rows for name, amount in row.to.items() if name in own)
        return sum(row.received for row in self.rows) - inside

    @property
    def taken(self) -> Mapping[str, float]:
        """What each of `SHARES` took."""
        return {share: sum(getattr(row, share) for row in self.rows) for share in SHARES}

    @property
    def is_input(self) -> bool:
        return self.rows[0].op == INPUT

    @property
    def name(self) -> str:
        """The module path, or what there is instead."""
        *small, last = self.rows
        if self.is_input:
            return last.node
        if all(map(_is_small, small)):
            return last.path or last.node
        levels = zip(*(_parts(row.path) for row in self.rows), strict=False)
        shared = ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
        return shared or f"{self.rows[0].path or self.rows[0].node} … {last.path or last.node}"

    @property
    def note(self) -> str:
        """Which ops, in the order of the forward pass, and under which rules."""
        if self.is_input:
            return INPUT
        rows = list(reversed(self.rows))
        ops = [", ".join(row.op for row in rows), *([f"{len(rows)} ops"] if len(rows) > 1 else [])]
        words = dict.fromkeys(row.rule.partition("(")[0] for row in rows if row.rule not in PLAIN)
        rules = [" · " + ", ".join(words), ""] if words else [""]
        notes = [what + rule for rule in rules for what in ops]
        return next((note for note in notes if len(note) <= LONGEST), notes[-1])


def flow_graph(ledger: Ledger, limit: int) -> nx.DiGraph:
    """The graph of relevance between the parts of a model.

    Parameters
    ----------
    ledger : Ledger
        Made by `fxlrp.audit`.
    limit : int
        How many parts there may be. The model's inputs are always parts of their own.

    Returns
    -------
    networkx.DiGraph
        Nodes are 0, 1, ... in the order of the relevance pass, each with its `Group` as "group". Edges have the
        "amount" that went from one to the other.
    """
    parts = join(ledger.rows, limit)
    graph = nx.DiGraph()
    home = {}
    for index, group in enumerate(parts):
        graph.add_node(index, group=group)
        home |= {row.node: index for row in group.rows}
    for index, group in enumerate(parts):
        for row in group.rows:
            for name, amount in row.to.items():
                if home[name] != index:
                    before = graph.get_edge_data(index, home[name], {"amount": 0.0})["amount"]
                    graph.add_edge(index, home[name], amount=before + amount)
    return graph


def join(rows: Sequence[Row], limit: int) -> list[Group]:
    """Join rows with their neighbours until there are at most so many groups.

    The finest of these is taken that is few enough: every row alone; activations, pools and the like with the layer
    before them; also the rows of each module at the deepest level of the module tree, first where they follow each
    other without a branch, then all of them; the same one level up, and so on to the children of the model. If these
    are still too many, neighbours are joined evenly.

    Raises
    ------
    InputError
        If the limit is too low.
    """
    inputs = sum(row.op == INPUT for row in rows)
    if limit <= inputs:
        raise InputError(
            f"a flow needs at least {inputs + 1} groups, not {limit}: one for each input, one for the model"
        )
    groups: list[Group] = []
    for joined in _levels(rows):
        groups = _split(rows, joined)
        if len(groups) <= limit:
            return groups
    size = -(-(len(groups) - inputs) // (limit - inputs))
    model, given = [[group for group in groups if group.is_input is kind] for kind in (False, True)]
    chunks = [model[i : i + size] for i in range(0, len(model), size)]
    return [*(Group(tuple(row for group in chunk for row in group.rows)) for chunk in chunks), *given]


Joined = Callable[[Row, Row], bool]


def _levels(rows: Sequence[Row]) -> Iterator[Joined]:
    """Whether two neighbours are joined, from the finest level to the coarsest."""
    blocks = {".".join(_parts(row.path)[:depth]) for row in rows for depth in range(len(_parts(row.path)))}

    def block(row: Row) -> str:
        return row.path if row.path in blocks else row.path.rpartition(".")[0]

    def small(a: Row, b: Row) -> bool:
        return _is_small(a) and _leads_to(a, b) and block(a) == block(b)

    yield lambda a, b: False
    yield small
    for depth in range(max(len(_parts(row.path)) for row in rows), 0, -1):
        yield lambda a, b, depth=depth: small(a, b) or (_leads_to(a, b) and _shares(a, b, depth))
        yield lambda a, b, depth=depth: small(a, b) or _shares(a, b, depth)


def _split(rows: Sequence[Row], joined: Joined) -> list[Group]:
    groups = [[rows[0]]]
    for before, row in pairwise(rows):
        if row.op != INPUT and joined(before, row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [Group(tuple(group)) for group in groups]


def _is_small(row: Row) -> bool:
    return len(row.to) == 1 and not any(word in row.op for word in LAYERS)


def _leads_to(row: Row, other: Row) -> bool:
    return list(row.to) == [other.node]


def _shares(row: Row, other: Row, depth: int) -> bool:
    prefix = _parts(row.path)[:depth]
    return bool(prefix) and prefix == _parts(other.path)[:depth]


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []
