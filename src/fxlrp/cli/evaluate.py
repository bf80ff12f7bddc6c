"""`fxlrp evaluate`: composites compared on a folder of images."""

from __future__ import annotations

from pathlib import Path

import click

from ..io.console import make_console, say
from .measuring import Measured, about_a_folder, interruptible, output_folder
from .options import NAMES

__all__ = ["BASELINES", "METRICS", "evaluate"]

BASELINES = ("random", "gradient_times_input")
COMPOSITES = ("epsilon_plus_flat", "epsilon_plus", "epsilon_gamma_box", "gradient_times_input", "random")

LOCALIZATION = (
    "inside_total_ratio",
    "inside_total_ratio_weighted",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
)
METRICS = (
    "flipping",
    "sparseness",
    *LOCALIZATION,
    "faithfulness_correlation",
    "random_logit",
    "sensitivity_max",
    "sensitivity_mean",
)

ROWS, CSV, PICTURE = "rows.jsonl", "table.csv", "heatmaps.png"


@click.command(
    epilog="Example: fxlrp evaluate photos --model torchvision:resnet50 --boxes annotations --composite epsilon_plus "
    "--composite tutorial -o compared"
)
@about_a_folder
@click.option(
    "--composite",
    "composites",
    multiple=True,
    metavar="NAME",
    default=COMPOSITES,
    show_default=True,
    help=f"What is compared, once for each: {NAMES}; {', '.join(BASELINES)}.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help=f"By what, once for each: {', '.join(METRICS)}. Without: flipping and sparseness, and with masks or boxes "
    "inside_total_ratio, relevance_mass_accuracy and relevance_rank_accuracy.",
)
@click.option("--not-canonized", is_flag=True, help="Compare with zennit's heatmaps of the model as it is, too.")
@click.option("--target", metavar="CLASS", help="What to explain in all images, instead of their own classes.")
@output_folder("compared")
def evaluate(
    asked: Measured,
    *,
    composites: tuple[str, ...],
    metrics: tuple[str, ...],
    not_canonized: bool,
    target: str | None,
    output: Path,
) -> None:
    """Measure which composite's heatmaps are best on the images in FOLDER.

    Images lie in sub-folders named by their classes, or anywhere: then the class that the model sees is explained.
    Prints a table of means with 95 % intervals, and how far the best is from the next; writes table.csv, heatmaps.png,
    and rows.jsonl, from which the same command goes on where it was interrupted.

    Needs the packages of the extra: pip install 'fxlrp[evaluate]'
    """
    console = make_console()
    with interruptible(output, (ROWS, CSV, PICTURE), console):
        from ..composites import resolve
        from ..evaluation import compare
        from ..evaluation.measures import measures_of
        from ..zoo import find_class
        from .tables import comparison

        metrics = metrics or (*METRICS[:2], *((LOCALIZATION[0], *LOCALIZATION[2:]) if asked.has_masks else ()))
        for name in composites:
            if name not in BASELINES:
                resolve(name)
        measures_of(metrics, {"flipping": {"fill": asked.fill}} if "flipping" in metrics else {})
        asked.check_masks(metrics)
        loaded, images = asked.load(console)
        table = compare(
            loaded.model,
            images,
            composites,
            metrics,
            canonize=(True, False) if not_canonized else (True,),
            options=asked.options(loaded, metrics),
            target=None if target is None else find_class(loaded.classes, target),
            storage=output / ROWS,
            batch_size=asked.batch_size,
            bounds=loaded.bounds,
        )
        table.to_csv(output / CSV)
        table.save(output / PICTURE)
        say(console, f"\n{comparison(table)}\n\n{output} holds {CSV}, {PICTURE} and {ROWS}.")
