"""`fxlrp train`: an ISNet on folders of images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..io.console import make_console, say
from ..training.settings import TrainSettings

__all__ = ["train"]


@click.command(
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
    from ..training.checkpoint import CHECKPOINT
    from ..training.train import train as run

    console = make_console()
    try:
        run(images, masks, output, TrainSettings(**settings), console, restart=restart)
    except KeyboardInterrupt:
        how = "The same command without --restart" if restart else "The same command"
        kept = (output / CHECKPOINT).exists()
        say(console, f"Interrupted. {f'{how} continues after the last full epoch.' if kept else 'Nothing was saved.'}")
        raise SystemExit(130) from None
