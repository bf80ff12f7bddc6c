"""A training from its beginning to its end, or from where it was interrupted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from ..errors import InputError, MissingExtraError
from ..io.console import printable, progress_bar, say, walk
from ..io.files import check_output, write_file
from ..io.lock import alone_in
from ..isnet import calibrate
from ..isnet.ranges import Ranges
from ..zoo import INITIAL, RANDOM, LoadedModel, load
from .checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from .data import Folder, read_folder, split
from .heatmaps import draw, shown
from .log import HEADER, Row, described, line, summary, table
from .run import CLIP, Run
from .settings import PRETRAINED, TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.progress import Progress

__all__ = ["train"]

LOG, SETTINGS, MODEL, HEATMAPS = "log.csv", "settings.json", "model.pt", "heatmaps.png"
WRITTEN = (CHECKPOINT, LOG, SETTINGS, MODEL, HEATMAPS)


def train(
    images: Path, masks: Path, output: Path, settings: TrainSettings, console: Console, *, restart: bool = False
) -> None:
    """Train a model on a folder of images and masks, or continue to; write what comes of it to another folder.

    Parameters
    ----------
    images, masks : Path
        As of `fxlrp.training.data.read_folder`.
    output : Path
        Gets ``checkpoint.pt``, ``log.csv`` and ``settings.json``, after each epoch; at the end ``model.pt``, the
        model's state dict, and ``heatmaps.png``.
    settings : TrainSettings
        How.
    console : rich.console.Console
        Where to print. Of several processes, the first one does.
    restart : bool
        Begin anew: the checkpoint, if there is one, is deleted.

    Raises
    ------
    MissingExtraError
        If accelerate or matplotlib is not installed.
    InputError
        If the images, or a setting, are of no use; the checkpoint is broken, or was made with other settings; the
        output cannot be written, or another process trains there.
    MaskError
        If the masks are of no use.
    ModelError, VariantError
        As of `fxlrp.zoo.load`, `fxlrp.ISNet`, `fxlrp.ISNetLoss` and `fxlrp.calibrate`.
    FxlrpError
        If the loss or a weight is not finite any more.
    """
    accelerator = _accelerator(settings.precision)
    console.quiet = not accelerator.is_main_process
    with alone_in(output) if accelerator.is_main_process else nullcontext():
        _train(images, masks, output, settings, console, accelerator, restart)
    accelerator.end_training()


def _train(
    images: Path,
    masks: Path,
    output: Path,
    settings: TrainSettings,
    console: Console,
    accelerator: Accelerator,
    restart: bool,
) -> None:
    """As `train`, when nobody else writes to the output."""
    main = accelerator.is_main_process
    if main:
        _prepare(output)
    folder = read_folder(images, masks, progress=lambda steps: walk(console, steps, "reading"))
    say(console, described(folder))
    checkpoint = output / CHECKPOINT
    conditions = _conditions(settings, folder, accelerator.num_processes)
    saved = None if restart or not checkpoint.exists() else read_checkpoint(checkpoint, conditions)
    torch.manual_seed(settings.seed)
    loaded = _initial_model(settings, folder.classes)
    run = Run(accelerator, loaded, settings, *split(folder.samples, settings.validation, settings.seed))
    examples = shown(run.validation_samples or run.training_samples)
    before = run.explained(examples) if main else []
    if saved is None:
        if main:
            checkpoint.unlink(missing_ok=True)
        ranges = _calibrated(run, console, progress=main)
        rows: list[Row] = []
    else:
        ranges, rows = saved["ranges"], saved["rows"]
        run.load(saved, checkpoint)
        say(console, f"Continuing after epoch {len(rows)}, from {checkpoint}.")

    def save() -> None:
        if main:
            _save(output, loaded, {"ranges": ranges, "rows": rows, "conditions": conditions, **run.state()})

    run.start(ranges)
    save()
    if len(rows) < settings.epochs:
        say(console, HEADER)
    with progress_bar(console, transient=True) as progress:
        for epoch in range(len(rows), settings.epochs):
            row = _epoch(run, epoch, progress)
            run.check(row, checkpoint)
            rows.append(row)
            save()
            say(console, line(row))
    if main:
        state = {name: value.cpu() for name, value in run.model.state_dict().items()}
        write_file(output / MODEL, lambda file: torch.save(state, file))
        draw(output / HEATMAPS, loaded, examples, before, run.explained(examples))
    say(console, f"The model is {output / MODEL}, with {LOG} and {HEATMAPS}.")


def _epoch(run: Run, epoch: int, progress: Progress) -> Row:
    """Train for an epoch, with a bar for its batches."""
    task = progress.add_task(f"epoch {epoch + 1} of {run.settings.epochs}", total=len(run.loader))
    row = run.epoch(epoch, lambda: progress.advance(task))
    progress.remove_task(task)
    return row


def _prepare(output: Path) -> None:
    """See that all can be written there, and clear away what a process left that was killed."""
    for name in WRITTEN:
        check_output(output / name)
        for left in output.glob(f".{name}.*.tmp"):
            left.unlink()


def _save(output: Path, loaded: LoadedModel, state: Checkpoint) -> None:
    """Write what comes of an epoch."""
    settings = summary(state["conditions"], loaded, state["ranges"])
    write_file(output / CHECKPOINT, lambda file: torch.save(state, file))
    write_file(output / LOG, lambda file: file.write(table(state["rows"]).encode()))
    write_file(output / SETTINGS, lambda file: file.write(settings.encode()))


def _calibrated(run: Run, console: Console, *, progress: bool) -> Ranges:
    """The natural ranges of the heatmaps, of a plain copy that is trained."""
    settings = run.settings
    say(console, "Calibrating: a plain copy is trained, to see how large its heatmaps are.")
    return calibrate(
        run.isnet,
        run.loader,
        epochs=settings.calibration_epochs,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum),
        clip=CLIP,
        progress=progress,
    )


def _accelerator(precision: str) -> Accelerator:
    try:
        import matplotlib  # noqa: F401  # It is needed last: better known before.
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError("training", error.name or "accelerate", "train") from error
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise InputError(f"--precision {precision} cannot be had: {error}") from error


def _conditions(settings: TrainSettings, folder: Folder, processes: int) -> dict[str, object]:
    """What a training that is continued must not differ in, and what may."""
    with_mask = sum(sample.mask is not None for sample in folder.samples)
    found = {"classes": folder.classes, "images": len(folder.samples), "masks": with_mask, "processes": processes}
    return asdict(settings) | found


def _initial_model(settings: TrainSettings, classes: list[str]) -> LoadedModel:
    # What the command calls random is what training begins with.
    weights = INITIAL if settings.weights in (RANDOM, PRETRAINED) else settings.weights
    loaded = load(settings.model, weights, classes=len(classes))
    if settings.weights == PRETRAINED:
        theirs = load(settings.model)
        own = loaded.model.state_dict()
        # The last layer is for other classes: it stays a new one.
        fitting = {k: v for k, v in theirs.model.state_dict().items() if k in own and v.shape == own[k].shape}
        loaded.model.load_state_dict(fitting, strict=False)
        loaded = replace(theirs, model=loaded.model)
    return replace(loaded, classes=[printable(name) for name in classes])
