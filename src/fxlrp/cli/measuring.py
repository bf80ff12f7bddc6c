"""What `evaluate` and `search` have in common: a folder of images with masks, a model, how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MaskError
from ..io.console import say
from ..io.files import check_output, check_picture
from ..io.lock import alone_in
from .options import MODEL

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation import ImageFolder
    from ..zoo import LoadedModel

__all__ = ["Measured", "about_a_folder", "interruptible", "output_folder"]

FILLS = ("inpaint", "mean", "black", "grey", "blur", "random")


@dataclass(frozen=True)
class Measured:
    """Which images of what model are measured and how, as it was typed."""

    folder: Path
    model: str
    weights: str | None
    classes: int
    masks: Path | None
    boxes: Path | None
    limit: int | None
    batch_size: int
    fill: str
    patch: int

    def load(self, console: Console) -> tuple[LoadedModel, ImageFolder]:
        """The model and its images; says how many there are and what is explained."""
        from ..evaluation import ImageFolder
        from ..zoo import load

        with console.status("Loading the model …"):
            loaded = load(self.model, self.weights, classes=self.classes)
        where = {"masks": self.masks, "boxes": self.boxes}
        images = ImageFolder(self.folder, loaded.transform, classes=loaded.classes, limit=self.limit, **where)
        say(console, _said(images, loaded.classes, masked=self.has_masks))
        return loaded, images

    @property
    def has_masks(self) -> bool:
        """Whether it is known where objects are."""
        return (self.masks or self.boxes) is not None

    def check_masks(self, metrics: Sequence[str]) -> None:
        """Raise a `MaskError` if a metric needs masks, and there are none."""
        from ..metrics import ABOUT

        needing = [name for name in metrics if name in ABOUT and ABOUT[name].needs == "mask"]
        if needing and not self.has_masks:
            raise MaskError(f"{needing[0]} compares heatmaps with masks: give --masks or --boxes")

    def options(self, loaded: LoadedModel, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Keyword arguments of metrics."""
        bounds = tuple(bound.flatten() for bound in loaded.bounds)
        known = {
            "flipping": {"fill": self.fill, "patch": self.patch, "bounds": bounds},
            "faithfulness_correlation": {"bounds": bounds, "patch": self.patch},
        }
        return {name: known[name] for name in metrics if name in known}


OPTIONS = (
    click.argument("folder", type=click.Path(path_type=Path)),
    *MODEL,
    click.option(
        "--masks",
        type=click.Path(path_type=Path),
        help="Where objects are: a folder of mask images of the same names, or a COCO file's segmentations.",
    ),
    click.option(
        "--boxes",
        type=click.Path(path_type=Path),
        help="The same as boxes: a folder of Pascal VOC's files of XML, or a COCO file.",
    ),
    click.option("--limit", type=click.IntRange(1), help="So many of the images, evenly spread. Without: all."),
    click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Images at a time."),
    click.option(
        "--fill",
        default="inpaint",
        show_default=True,
        type=click.Choice(FILLS),
        help="Of pixel flipping: what stands where a patch was.",
    ),
    click.option(
        "--patch", default=8, show_default=True, type=click.IntRange(1), help="Of pixel flipping: a patch's side."
    ),
)


def about_a_folder(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the argument and options of `Measured`, which the command gets as its first argument."""
    names = Measured.__dataclass_fields__

    @wraps(command)
    def asked(**given: Any) -> None:
        command(Measured(**{name: given.pop(name) for name in names}), **given)

    for option in reversed(OPTIONS):
        asked = option(asked)
    return asked


def output_folder(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the option that says which folder to write to."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        help="The folder to write to. The same command again goes on there.",
    )


@contextmanager
def interruptible(output: Path, files: Sequence[str], console: Console) -> Iterator[None]:
    """Keep the folder to this process, see that all can be written there, and say what an interruption leaves."""
    with alone_in(output):
        for name in files:
            (check_picture if name.endswith(".png") else check_output)(output / name)
        try:
            yield
        except KeyboardInterrupt:
            say(console, f"Interrupted. The same command goes on with what is in {output}.")
            raise SystemExit(130) from None


def _said(images: ImageFolder, classes: Sequence[str], *, masked: bool) -> str:
    known = sorted({label for label in images.labels if label is not None})
    named = [f"{classes[label]} ({label})" for label in known]
    own = sum(label is None for label in images.labels)
    parts = [f"{len(images)} image{'s' if len(images) > 1 else ''}"]
    if masked:
        parts.append(f"{images.masked} with masks")
    if named:
        parts.append(f"of {', '.join(named[:4])}{f' and {len(named) - 4} more classes' if len(named) > 4 else ''}")
    if own:
        parts.append(f"{'all' if own == len(images) else own} explained for the class that the model sees")
    return ", ".join(parts)
