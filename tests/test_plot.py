"""Pictures of relevance: scales, zeros, what is drawn, and that joined rows of a ledger still add up."""

import random
import sys
from itertools import combinations

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError, MissingExtraError
from fxlrp.ledger import Ledger, Row
from fxlrp.plot import Panel, clip, figure, flow, heatmap, save, write
from fxlrp.plot.canvas import canvas
from fxlrp.plot.groups import SHARES, flow_graph


def test_heatmap_sums_channels_and_scales_each_sample():
    relevance = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-20, 1.0, 1e3, 1e20]
    ).reshape(4, 1, 1, 1)
    heat = heatmap(relevance)
    assert heat.shape == (4, 5, 6)
    torch.testing.assert_close(heat.abs().amax((1, 2)), torch.ones(4))
    torch.testing.assert_close(heat[1] * relevance[1].sum(0).abs().max(), relevance[1].sum(0))
    torch.testing.assert_close(heatmap(relevance[2]), heat[2])
    torch.testing.assert_close(heatmap(-relevance), -heat)


def test_zero_relevance_stays_zero():
    relevance = torch.zeros(2, 3, 4, 4)
    relevance[1, 0, 0, 0] = -2.0
    heat = heatmap(relevance)
    assert heat[0].eq(0).all()
    assert heat[1, 0, 0] == -1
    assert clip(heat[0]).eq(0).all()


def test_heatmap_of_something_else():
    with pytest.raises(InputError, match=r"\(5, 6\)"):
        heatmap(torch.zeros(5, 6))


def test_clip_is_symmetric_and_not_ruled_by_one_pixel():
    heat = torch.linspace(-1, 1, 1001).reshape(7, 143)
    heat[0, 0] = 100.0
    clipped = clip(heat, 99)
    assert clipped.abs().max() == 1
    assert clipped[0, 0] == 1
    assert clipped[-1, -1] == 1
    torch.testing.assert_close(clip(-heat, 99), -clipped)
    torch.testing.assert_close(clip(heat * 1e-8, 99), clipped)


def test_clip_keeps_single_pixels_of_an_otherwise_empty_map():
    heat = torch.zeros(100, 100)
    heat[3, 4] = -0.5
    assert clip(heat)[3, 4] == -1


@pytest.mark.parametrize("percentile", [0, -1, 101])
def test_clip_out_of_range(percentile):
    with pytest.raises(InputError, match="percentile"):
        clip(torch.zeros(2, 2), percentile)


def test_figure_shows_relevance_in_red_and_blue(tmp_path):
    pytest.importorskip("matplotlib")
    from fxlrp.plot import figure

    relevance = torch.zeros(3, 8, 8)
    relevance[:, :4], relevance[:, 6:] = 1.0, -1.0
    rows = [
        [Panel("photo", photo=torch.rand(3, 8, 8)), Panel("heat", relevance=relevance)],
        [Panel("both", photo=torch.ones(3, 8, 8), relevance=relevance)],
    ]
    drawing = figure(rows, names=["one", "two"])
    shown = {axes.get_title(): axes.images[0].get_array() for axes in drawing.axes if axes.images}
    assert set(shown) == {"photo", "heat", "both"}
    for pixels in (shown["heat"], shown["both"]):
        (red, _, blue) = pixels[0, 0]
        assert red > blue
        (red, _, blue) = pixels[7, 0]
        assert blue > red
        assert pixels[5, 0].min() > 0.9
    save(rows, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_a_file_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [[Panel("heat", relevance=torch.zeros(3, 4, 4))]]
    with pytest.raises(InputError, match="cannot write"):
        save(rows, tmp_path / "no" / "such.png")
    with pytest.raises(InputError, match="cannot write"):
        save(rows, tmp_path / "out.nothing")


def made_up(blocks, *, path="stage{0}.block{1}", leak=0.0, seed=2.0, inputs=("x",)):
    """A ledger of residual blocks: add -> (conv2 -> relu -> conv1) -> the add before, and past them."""
    rng = random.Random(blocks)
    rows, received = [], {"fc": seed}

    def row(name, at, op, *operands):
        came = received.pop(name)
        taken = [rng.uniform(-0.3, 0.5) * came for _ in range(3)]
        parts = [rng.uniform(0.1, 1) for _ in operands]
        left = came - sum(taken) - leak
        to = {operand: left * part / sum(parts) for operand, part in zip(operands, parts, strict=True)}
        for operand, amount in to.items():
            received[operand] = received.get(operand, 0.0) + amount
        rows.append(Row(name, at, op, "Epsilon", came, abs(came), to, *taken))

    row("fc", "fc", "linear", "flatten")
    row("flatten", "", "view", f"add_{blocks - 1}")
    for i in reversed(range(blocks)):
        at = path.format(i // 3, i)
        before = [f"add_{i - 1}"] if i else list(inputs)
        row(f"add_{i}", at, "add", f"conv2_{i}", before[0])
        row(f"conv2_{i}", f"{at}.conv2".strip("."), "conv2d", f"relu_{i}")
        row(f"relu_{i}", f"{at}.relu".strip("."), "relu", f"conv1_{i}")
        row(f"conv1_{i}", f"{at}.conv1".strip("."), "conv2d", *before)
    arrived = {name: received[name] for name in inputs}
    rows += [
        Row(name, "", "input", "-", came, abs(came), {name: came}, 0.0, 0.0, 0.0) for name, came in arrived.items()
    ]
    return Ledger(tuple(rows), seed, arrived)


@pytest.mark.parametrize("limit", [3, 4, 7, 15, 31, 40, 60, 1000])
@pytest.mark.parametrize("path", ["stage{0}.block{1}", "{1}", ""])
def test_groups_add_up_to_the_rows(limit, path):
    ledger = made_up(12, path=path, leak=0.001, inputs=("x", "y"))
    graph = flow_graph(ledger, limit)
    groups = [graph.nodes[i]["group"] for i in graph]
    assert list(graph) == list(range(len(groups)))
    assert 3 <= len(groups) <= limit
    assert [row for group in groups for row in group.rows] == list(ledger.rows)
    for share in SHARES:
        assert sum(group.taken[share] for group in groups) == pytest.approx(sum(getattr(r, share) for r in ledger.rows))

    home = {row.node: i for i, group in enumerate(groups) for row in group.rows}
    between = {}
    for row in ledger.rows:
        for name, amount in row.to.items():
            if home[name] != home[row.node]:
                edge = home[row.node], home[name]
                between[edge] = between.get(edge, 0.0) + amount
    assert {(i, j): amount for i, j, amount in graph.edges(data="amount")} == pytest.approx(between)
    assert all(i < j for i, j in between)

    for i, group in enumerate(groups):
        came = sum(amount for _, _, amount in graph.in_edges(i, data="amount"))
        went = sum(amount for _, _, amount in graph.out_edges(i, data="amount"))
        assert group.received == pytest.approx(came if i else ledger.seed)
        if not group.is_input:
            assert group.received == pytest.approx(went + sum(group.taken.values()))
    # What crosses any line between the groups is what is left of the seed.
    left = ledger.seed
    for cut, group in enumerate(groups[:-2]):
        left -= sum(group.taken.values())
        assert sum(amount for i, j, amount in graph.edges(data="amount") if i <= cut < j) == pytest.approx(left)


def test_groups_follow_the_modules():
    def names(limit):
        graph = flow_graph(made_up(4), limit)
        return [(graph.nodes[i]["group"].name, graph.nodes[i]["group"].note) for i in graph]

    assert len(names(19)) == 19
    assert len(names(18)) == 15
    assert names(18)[2:6] == [
        ("stage1.block3", "add · Epsilon"),
        ("stage1.block3.conv2", "conv2d · Epsilon"),
        ("stage1.block3.conv1", "conv2d, relu · Epsilon"),
        ("stage0.block2", "add · Epsilon"),
    ]
    # The branch of a block stays apart from the sum that it ends in, as long as there is room.
    assert names(11)[2:5] == [
        ("stage1.block3", "add · Epsilon"),
        ("stage1.block3", "conv2d, relu, conv2d · Epsilon"),
        ("stage0.block2", "add · Epsilon"),
    ]
    assert [name for name, _ in names(10)] == ["fc", "flatten", *(f"stage{i // 3}.block{i}" for i in (3, 2, 1, 0)), "x"]
    assert names(6)[2:4] == [("stage1.block3", "conv2d, relu, conv2d, add · Epsilon"), ("stage0", "12 ops · Epsilon")]
    assert [name for name, _ in names(4)] == ["fc … flatten", "stage1.block3 … stage0.block0.conv1", "x"]
    with pytest.raises(InputError, match="at least 2 groups, not 1"):
        names(1)


def test_a_branch_is_an_edge_of_its_own():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x).relu()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), nn.Flatten(), nn.Linear(144, 3)).eval().double()
    ledger = fxlrp.audit(fxlrp.convert(model, "epsilon_plus"), torch.randn(2, 3, 8, 8).double())
    for limit in (40, 9):
        graph = flow_graph(ledger, limit)
        assert sum(j > i + 1 for i, j in graph.edges) == 2
        assert graph.nodes[len(graph) - 1]["group"].received == pytest.approx(sum(ledger.inputs.values()))
    assert flow_graph(ledger, 6).number_of_nodes() == 6


def texts(drawing):
    for axes in drawing.axes:
        yield from (text for text in axes.texts if text.get_text())
        low, high = axes.get_xlim()
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        yield from (label for place, label in ticks if axes.axison and low <= place <= high)
    yield from (text for text in drawing.texts if text.get_text())
    for legend in drawing.legends:
        yield from legend.get_texts()


@pytest.mark.parametrize(
    "ledger",
    [
        made_up(1),
        made_up(9, path="a_long_name_of_a_module.another_one.{0}.and_still_one_more.{1}"),
        made_up(30, seed=-1e-30),
        made_up(5, leak=0.2, inputs=("x", "another_input")),
        made_up(3, leak=900.0),
    ],
    ids=["tiny", "long", "deep", "leak", "huge"],
)
def test_flow_is_legible(ledger, tmp_path):
    pytest.importorskip("matplotlib")
    drawing = flow(ledger, title="A model")
    drawing.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(drawing)]
    assert {"A model", "arrives", "input"} <= {text for text, _ in boxes}
    for (one, box), (other, another) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(another.padded(-1)), (one, other)
    for text, box in boxes:
        assert drawing.bbox.padded(1).containsx(box.x0), text
        assert drawing.bbox.padded(1).containsx(box.x1), text
        assert drawing.bbox.padded(1).containsy(box.y0), text
    write(drawing, tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10000


@pytest.mark.parametrize("seed", [2.0, -2.0, 0.0])
def test_flow_draws_what_the_ledger_says(seed):
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    from fxlrp.plot.flow import COLORS

    rows = (
        Row("fc", "fc", "linear", "Epsilon", seed, 2.0, {"x": 1.5 * seed}, -0.75 * seed, 0.0, 0.0),
        Row("x", "", "input", "-", 1.5 * seed, 4.0, {"x": 1.5 * seed}, 0.0, 0.0, 0.0),
    )
    drawing = flow(Ledger(rows, seed, {"x": 1.5 * seed}))
    bars = [axes for axes in drawing.axes if axes.containers]

    def drawn(axes):
        """The signed length of each line's bars, by colour."""
        found = {}
        for bar in (bar for container in axes.containers for bar in container if bar.get_width()):
            found[to_hex(bar.get_facecolor()), round(bar.get_y() + bar.get_height() / 2)] = bar.get_width()
        return found

    arrives, taken, left = map(drawn, bars)
    if not seed:
        assert not arrives
        assert not taken
        assert not left
        return
    red, bias, rest = (COLORS[kind] for kind in ("same", "bias", "rest"))
    assert arrives == {(red, 0): 1.0, (red, 1): 1.5}
    assert taken == {(bias, 0): -0.75, (rest, 0): 0.25}
    assert left == {(color, i): size for i in (0, 1) for color, size in ((red, 1.5), (bias, -0.75), (rest, 0.25))}


def test_flow_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fxlrp\[plot\]"):
        flow(made_up(1))


def test_a_flow_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="cannot write"):
        write(flow(made_up(1)), tmp_path / "no" / "such.png")


NAME = "$5_{$ [x]"


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "pdf", "svg"])
def test_names_are_no_formulas(tmp_path, ending):
    panels = [[Panel(NAME, torch.zeros(3, 4, 4))]]
    save(panels, tmp_path / f"picture.{ending}", names=[NAME])
    grid, account = figure(panels, names=[NAME]), flow(made_up(2), title=NAME)
    assert grid.axes[0].get_title() == NAME
    assert NAME in [text.get_text() for text in grid.texts]
    assert NAME in [text.get_text() for text in account.texts]
    write(account, tmp_path / f"flow.{ending}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"flow.{ending}", f"picture.{ending}"]


@pytest.mark.parametrize(
    ("name", "words"), [("picture", "no ending"), ("picture.txt", r"\.png"), ("no/x.png", "folder")]
)
def test_a_picture_is_written_where_it_was_wanted_or_not_at_all(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        save([[Panel("", torch.zeros(3, 4, 4))]], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_too_large(tmp_path):
    with pytest.raises(InputError, match=r"^cannot write .*x\.png: Image size .* is too large"):
        write(canvas(100_000, 0.01), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
