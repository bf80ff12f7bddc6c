"""`fxlrp models`: which models are converted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..io.console import make_console, progress_bar, say, walk
from ..io.files import check_output, write_file

if TYPE_CHECKING:
    from rich.console import Console

    from ..zoo import Sweep

__all__ = ["models"]


@click.command(epilog="Example: fxlrp models timm --jobs 2 -o timm.json")
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
    written = output.with_suffix(".md")
    check_output(output, [".json"])
    check_output(written)
    from ..composites import resolve
    from ..zoo import Sweep
    from ..zoo.sweep import table

    resolve(composite)
    # Functions of one's own are found where one stands, as by python -m.
    sys.path.insert(0, os.getcwd())
    console = make_console()
    sweep = Sweep(output, composite, restart=restart)
    looking = lambda names: walk(console, names, "Looking for the smallest")
    wanted = [name for each in what for name in sweep.names(each, every=every, progress=looking)]
    if retry:
        sweep.forget(lambda trial: trial.name in wanted and not trial.passed)
    _run(console, sweep, wanted, jobs, seconds)
    write_file(written, lambda file: file.write(f"{table([*sweep.trials.values()])}\n".encode()))
    passed = sum(sweep.trials[name].passed for name in wanted)
    say(console, f"{passed} of {len(wanted)} models pass; the table is {written}.")
    if passed < len(wanted):
        raise SystemExit(1)


def _run(console: Console, sweep: Sweep, wanted: Sequence[str], jobs: int, seconds: float) -> None:
    """Try the models that were not tried yet, and say of each that fails why."""
    with progress_bar(console) as progress:
        task = progress.add_task("Trying", total=len(wanted), completed=sum(name in sweep.trials for name in wanted))
        for trial in sweep.run(wanted, jobs=jobs, seconds=seconds):
            progress.advance(task)
            if not trial.passed:
                say(progress.console, f"{trial.name}: {trial.failure}")
