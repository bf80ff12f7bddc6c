"""`fxlrp search`: the rules that suit a model best, on a folder of images."""

from __future__ import annotations

from pathlib import Path

import click

from ..io.console import make_console, say
from .measuring import Measured, about_a_folder, interruptible, output_folder

__all__ = ["SPACES", "search"]

SPACES = ("tutorial", "decreasing_gamma", "strong_epsilon")
TRIALS, PICTURE = "study.log", "contour.png"


@click.command(
    epilog="Example: fxlrp search photos --model torchvision:vgg16 --boxes annotations --space tutorial --metric "
    "inside_total_ratio --sampler grid -o found"
)
@about_a_folder
@click.option("--space", default="tutorial", show_default=True, metavar="NAME", help=f"What: {', '.join(SPACES)}.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    default=("flipping_auc_morf",),
    show_default=True,
    help="By what; the first decides, all are printed. print(fxlrp.metrics.ABOUT) says what each is.",
)
@click.option(
    "--sampler",
    default="tpe",
    show_default=True,
    type=click.Choice(["grid", "tpe", "random", "gradient"]),
    help="16 x 16 values; Optuna's estimator; by chance; down the gradient of a smooth form of the metric.",
)
@click.option("--trials", type=click.IntRange(1), help="How many, those before among them. Without: 64, or the grid.")
@click.option("--timeout", type=float, help="Seconds, after which no other trial begins; then there may be any number.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the sampler.")
@output_folder("found")
def search(
    asked: Measured,
    *,
    space: str,
    metrics: tuple[str, ...],
    sampler: str,
    trials: int | None,
    timeout: float | None,
    seed: int,
    output: Path,
) -> None:
    """Search for the rules whose heatmaps of the images in FOLDER are best.

    Prints the best of all trials, and the line of Python that makes it; writes contour.png, and study.log, from which
    the same command goes on where it was interrupted. Search on other images than you evaluate on.

    Needs the packages of the extra: pip install 'fxlrp[evaluate]'
    """
    console = make_console()
    with interruptible(output, (TRIALS, PICTURE), console):
        from ..evaluation import search as find
        from ..evaluation.objective import directions_of
        from ..evaluation.space import space_of

        space_of(space, (-1.0, 1.0))
        directions_of(metrics)
        asked.check_masks(metrics)
        loaded, images = asked.load(console)
        study = find(
            loaded.model,
            images,
            space,
            metrics,
            sampler=sampler,
            trials=trials,
            timeout=timeout,
            storage=output / TRIALS,
            options=asked.options(loaded, ("flipping", "faithfulness_correlation")),
            seed=seed,
            batch_size=asked.batch_size,
            bounds=loaded.bounds,
        )
        study.save(output / PICTURE)
        held = [name for name in (PICTURE, TRIALS) if (output / name).exists()]
        say(console, f"{study}\n{output} holds {' and '.join(held)}.")
