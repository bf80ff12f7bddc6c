"""A picture of a ledger: where relevance goes, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import networkx as nx

from ..ledger import Ledger
from .amounts import MANY, percent, short, tick, times
from .canvas import canvas
from .groups import SHARES, Group, flow_graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["flow"]

SAME, OTHER = "#c1373b", "#2f78b4"
COLORS = {
    "same": SAME,
    "other": OTHER,
    "bias": "#f0a30a",
    "stabilizer": "#1b9e77",
    "definition": "#8e5bb5",
    "rest": "#111111",
}
"""What each kind of relevance is drawn in; the first two are of the seed's sign and of the other one."""

NAMES = {
    "bias": "taken by biases",
    "stabilizer": "by stabilizers",
    "definition": "by the rule's definition",
    "rest": "by nothing: a leak",
}

ROW_INCHES = 0.23
HEAD_INCHES = 1.05
FOOT_INCHES = 0.72
ARCS_INCHES, LINE_INCHES = 1.5, 0.2
BARS_INCHES = 1.75
NUMBER_INCHES = 0.55
GAP_INCHES = 0.2
FONT = {"family": "DejaVu Sans Mono", "fontsize": 7.5}
CHARACTER_INCHES = 10 / 150  # Of this font, hinted.
LONGEST = 44
THICKEST = 11.0  # points
NARROWEST = 0.02  # of the seed


@dataclass(frozen=True)
class _Column:
    """One column of bars: what is stacked in each row, by kind, and the number that is written beside it."""

    title: str
    parts: Sequence[Mapping[str, float]]
    numbers: Sequence[float]
    height: float = 0.62
    least: float = 0.0  # Numbers below it are not written.

    @property
    def write(self) -> Callable[[float], str]:
        """How its numbers are written: all in percent, or all as multiples."""
        return times if max(map(abs, self.numbers), default=0.0) >= MANY else percent


def flow(ledger: Ledger, *, groups: int = 40, title: str = "Where relevance goes") -> Figure:
    """Draw how relevance flows from the output, above, to the inputs, below, and what takes it on the way.

    Each line is a part of the model. To the left, lines and arcs are as thick as what goes from part to part. To the
    right: what arrives at the part, what is taken there, and what has become of the seed after it. All of it is
    relative to the seed, and signed.

    Parameters
    ----------
    ledger : Ledger
        Made by `fxlrp.audit`.
    groups : int
        How many parts are drawn at most. A model with more ops is drawn by layers, by branches of modules, or by
        modules, in the finest way that fits.
    title : str
        Written above, before a summary.

    Returns
    -------
    matplotlib.figure.Figure
        Made without pyplot: it belongs to the caller alone. `fxlrp.plot.write` writes it to a file.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If there are not even groups enough for the inputs and the model.
    """
    graph = flow_graph(ledger, groups)
    parts: list[Group] = [graph.nodes[index]["group"] for index in graph]
    unit, meaning = _unit(ledger)
    labels = [(_cut(part.name), _cut(part.note)) for part in parts]
    wide = [CHARACTER_INCHES * (max(map(len, texts)) + 2) for texts in zip(*labels, strict=True)]
    arcs = ARCS_INCHES if any(j > i + 1 for i, j in graph.edges) else LINE_INCHES
    sheet = _Sheet([arcs, sum(wide), *[NUMBER_INCHES + BARS_INCHES] * 3], len(parts))
    _stripes(sheet.axes(0, sheet.width), len(parts))
    _arcs(sheet.axes(sheet.starts[0], arcs), graph, unit)
    _labels(sheet.axes(sheet.starts[1], sum(wide)), labels, sum(wide), wide[0])
    for x, column in zip(sheet.starts[2:], _columns(parts, ledger.seed, unit), strict=True):
        _numbers(sheet.axes(x, NUMBER_INCHES), column)
        _bars(sheet.axes(x + NUMBER_INCHES, BARS_INCHES), column)
        sheet.write(x, 0.9, column.title, weight="bold")
    sheet.write(sheet.starts[1], 0.9, "output first", weight="bold")
    sheet.write(GAP_INCHES, 0.28, title, size=13, weight="bold")
    sheet.write(GAP_INCHES, 0.52, _summary(ledger, unit, meaning))
    _legend(sheet.figure, unit)
    return sheet.figure


class _Sheet:
    """A figure of columns that share their rows, below a head, measured in inches.

    Parameters
    ----------
    widths : sequence of float
        Of the columns.
    rows : int
        How many.

    Attributes
    ----------
    starts : list of float
        Where each column begins.
    """

    def __init__(self, widths: Sequence[float], rows: int) -> None:
        self.rows = rows
        self.starts = [GAP_INCHES * (i + 1) + sum(widths[:i]) for i in range(len(widths))]
        self.width = sum(widths) + GAP_INCHES * (len(widths) + 1)
        self.height = HEAD_INCHES + rows * ROW_INCHES + FOOT_INCHES
        self.figure = canvas(self.width, self.height)

    def axes(self, x: float, width: float) -> Axes:
        """Room for all rows; that of row i is around i, counted from above."""
        rows = 1 - (HEAD_INCHES + FOOT_INCHES) / self.height
        made = self.figure.add_axes((x / self.width, FOOT_INCHES / self.height, width / self.width, rows))
        made.set_ylim(self.rows - 0.5, -0.5)
        made.patch.set_visible(False)
        made.set_yticks([])
        made.spines[:].set_visible(False)
        return made

    def write(self, x: float, below: float, text: str, size: float = 9, weight: str = "normal") -> None:
        """Text, so far below the upper edge."""
        at = (x / self.width, 1 - below / self.height)
        self.figure.text(*at, text, fontsize=size, weight=weight, parse_math=False)


def _unit(ledger: Ledger) -> tuple[float, str]:
    """What amounts are divided by, and how it is called."""
    scale = ledger.rows[0].scale
    if abs(ledger.seed) > 1e-6 * scale:
        return ledger.seed, "the seed"
    return scale or 1.0, "the seed's absolute values"


def _columns(parts: Sequence[Group], seed: float, unit: float) -> list[_Column]:
    arrived = [part.received / unit for part in parts]
    taken = [{share: amount / unit for share, amount in part.taken.items()} for part in parts]
    so_far = list(accumulate(taken, lambda a, b: {share: a[share] + b[share] for share in SHARES}))
    left = [seed / unit - sum(shares.values()) for shares in so_far]
    return [
        _Column("arrives", [_signed(amount) for amount in arrived], arrived),
        _Column("is taken; < 0: added", taken, [sum(shares.values()) for shares in taken], least=5e-4),
        _Column(
            "is left, and taken so far",
            [_signed(amount) | shares for amount, shares in zip(left, so_far, strict=True)],
            left,
            height=1.02,  # One area: no gaps between lines.
        ),
    ]


def _signed(amount: float) -> dict[str, float]:
    return {"same" if amount >= 0 else "other": amount}


def _stripes(axes: Axes, count: int) -> None:
    axes.set_axis_off()
    for row in range(0, count, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0)


def _arcs(axes: Axes, graph: nx.DiGraph, unit: float) -> None:
    """Every part a dot, what goes to the next one a line, and what goes further an arc."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    axes.set_axis_off()
    axes.set_xlim(-1, 0.08)
    edges = [(i, j, data["amount"] / unit) for i, j, data in graph.edges(data=True)]
    largest = max((abs(amount) for *_, amount in edges), default=0.0) or 1.0
    furthest = max((j - i for i, j, _ in edges), default=1)
    for i, j, amount in sorted(edges, key=lambda edge: -abs(edge[2])):
        # A cubic curve reaches out to 3/4 of its control points.
        reach = 0.0 if j == i + 1 else -4 / 3 * (0.18 + 0.7 * (j - i) / furthest)
        axes.add_patch(
            PathPatch(
                Path([(0, i), (reach, i), (reach, j), (0, j)], [Path.MOVETO, *[Path.CURVE4] * 3]),
                facecolor="none",
                edgecolor=SAME if amount >= 0 else OTHER,
                linewidth=max(0.6, THICKEST * abs(amount) / largest),
                alpha=0.6,
                capstyle="butt",
                clip_on=False,
            )
        )
    axes.plot([0] * len(graph), list(graph), "o", color="white", markeredgecolor="#222222", markersize=5, clip_on=False)


def _labels(axes: Axes, labels: Sequence[tuple[str, str]], width: float, second: float) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, width)
    for row, (name, note) in enumerate(labels):
        axes.text(0, row, name, va="center", parse_math=False, **FONT)
        axes.text(second, row, note, va="center", color="#777777", parse_math=False, **FONT)


def _numbers(axes: Axes, column: _Column) -> None:
    axes.set_axis_off()
    for row, number in enumerate(column.numbers):
        if abs(number) >= column.least:
            axes.text(0.85, row, column.write(number), ha="right", va="center", **FONT)


def _bars(axes: Axes, column: _Column) -> None:
    """Positive parts are stacked to the right of zero, negative ones to the left."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for kind, color in COLORS.items():
        for sign in (1, -1):
            lengths = [max(0.0, sign * part.get(kind, 0.0)) * sign for part in column.parts]
            before = [_stacked(part, kind, sign) for part in column.parts]
            axes.barh(range(len(lengths)), lengths, column.height, left=before, color=color, linewidth=0)
    axes.axvline(0, color="#222222", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(high, NARROWEST))  # So that what is next to nothing looks so.
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.tick_params(labelsize=7.5, length=2)
    axes.grid(axis="x", color="#cccccc", linewidth=0.5)
    axes.set_axisbelow(True)


def _stacked(part: Mapping[str, float], kind: str, sign: int) -> float:
    """Where the bar of a kind begins: behind those of the same sign that come before it."""
    kinds = list(COLORS)[: list(COLORS).index(kind)]
    return sum(max(0.0, sign * part.get(other, 0.0)) for other in kinds) * sign


def _legend(drawing: Figure, unit: float) -> None:
    from matplotlib.patches import Patch

    signs = ("positive", "negative") if unit > 0 else ("negative", "positive")
    names = {kind: f"{sign} relevance" for kind, sign in zip(COLORS, signs, strict=False)} | NAMES
    drawing.legend(
        handles=[Patch(color=color, label=names[kind]) for kind, color in COLORS.items()],
        loc="lower center",
        ncols=len(COLORS),
        frameon=False,
        fontsize=9,
        handlelength=1,
        columnspacing=1.6,
    )


def _summary(ledger: Ledger, unit: float, meaning: str) -> str:
    arrived = ", ".join(f"{short(amount / unit)} arrives at {name}" for name, amount in ledger.inputs.items())
    taken = {share: sum(getattr(row, share) for row in ledger.rows) / unit for share in SHARES}
    shares = ", ".join(f"{share} {short(amount)}" for share, amount in taken.items())
    return (
        f"{ledger.seed:.4g} put on the output; of {meaning}, {arrived or 'nothing arrives at the inputs'}; "
        f"taken: {shares}; largest leak of a node {ledger.leak:.0e}"
    )


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
