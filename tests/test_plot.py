"""Pictures of relevance: scales, zeros, and what is drawn."""

import pytest
import torch

from fxlrp.errors import InputError
from fxlrp.plot import Panel, clip, heatmap, save


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
