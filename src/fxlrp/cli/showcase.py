"""What the demo shows: what a trained network looks at in two photographs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import Tensor
from zennit.core import Composite

from ..composites import resolve
from ..conversion import convert
from ..io.console import say
from ..io.files import check_picture
from ..plot import Panel, save
from ..twin import Twin
from ..zoo import LoadedModel, Photo, find_class, load_lite, photographs
from .tables import Explained, spread_table, top_table

__all__ = ["composites", "difference", "run"]

SHOWN = ("epsilon_plus_flat", "epsilon_plus", "epsilon_gamma_box")

LEGEND = """\
[bold]heaviest ninth[/]: the cell of a 3 x 3 grid with most of the relevance in favour (spread evenly: 11% each)
[bold]half of it on[/]: so many of the pixels hold half of the relevance in favour
[bold]in favour[/]: how much of the relevance speaks for the class, the rest speaks against it
[bold]in the pixels[/]: what arrives there of the logit; in each layer, the biases keep their share
"""


def composites(loaded: LoadedModel) -> dict[str, Composite]:
    """The composites that are shown, by their names."""
    return {name: resolve(name, loaded.bounds) for name in SHOWN}


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
        loaded = load_lite()
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
    last = list(twins)[-1]
    contrast = twins[last](x, other).relevance[0]
    rows = [Explained(composite, name, out.relevance[0], output[best]) for composite, out in found.items()]
    rows.append(Explained(last, instead, contrast, output[other]))
    console.print(top_table(output, loaded.classes, title=f"{photo.name}: what the network sees"))
    console.print(spread_table(rows, title=f"{photo.name}: where the relevance went"))
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
