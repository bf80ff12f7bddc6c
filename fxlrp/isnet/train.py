"""The training behind `fxlrp train`: folders of images and masks in, a model that looks at the foreground out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from .. import zoo
from ..errors import FxlrpError, InputError, MissingExtraError
from ..plot import Panel, figure, write
from ..twin import convert
from .data import Folder, MaskedImages, Sample, read_folder, split
from .loss import ISNetLoss
from .module import ISNet
from .ranges import calibrate
from .variants import Settings, epsilon_composite

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["CHECKPOINT", "COLUMNS", "PRETRAINED", "TrainSettings", "background_share", "train"]

CHECKPOINT = "checkpoint.pt"
PRETRAINED = "pretrained"
"""What stands for a file of weights where the library's pretrained ones are wanted."""

LOSSES = ("total", "classification", "heatmap", "background", "foreground")
COLUMNS = ("epoch", "seconds", *LOSSES, "accuracy", "validation_accuracy", "validation_background")
"""Of the log."""

FREE = ("epochs", "workers")
"""Settings that may be changed when a training is continued."""

CLIP = 1.0
"""Largest norm of the gradient (appendix F)."""

PICTURES = 6


@dataclass(frozen=True)
class TrainSettings:
    """The options of `fxlrp train`, where they are described and have their defaults."""

    model: str
    weights: str
    variant: str
    deep_supervision: bool
    first_layer: str | None
    epsilon: float
    size: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    p: float
    d: float
    w1: float
    w2: float
    calibration_epochs: int
    validation: float
    seed: int
    workers: int
    precision: str


def train(
    images: Path, masks: Path, output: Path, settings: TrainSettings, console: Console, *, restart: bool = False
) -> None:
    """Train a model on a folder of images and masks, or continue to; write what comes of it to another folder.

    Parameters
    ----------
    images, masks : Path
        As of `fxlrp.isnet.data.read_folder`.
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
        If the images, or a setting, are of no use; or the checkpoint was made with other settings.
    MaskError
        If the masks are of no use.
    ModelError, VariantError
        As of `fxlrp.zoo.load`, `fxlrp.ISNet`, `fxlrp.ISNetLoss` and `fxlrp.calibrate`.
    FxlrpError
        If the loss is not finite any more.
    """
    accelerator = _accelerator(settings.precision)
    main = accelerator.is_main_process
    console.quiet = not main
    folder = read_folder(images, masks)
    console.print(_described(folder), soft_wrap=True)
    checkpoint = output / CHECKPOINT
    conditions = _conditions(settings, folder, accelerator.num_processes)
    if restart and main:
        checkpoint.unlink(missing_ok=True)
    saved = None if restart or not checkpoint.exists() else _read(checkpoint, conditions)
    torch.manual_seed(settings.seed)
    loaded = _initial_model(settings, folder.classes)
    run = _Run(accelerator, loaded, settings, *split(folder.samples, settings.validation, settings.seed))
    shown = _shown(run.validation_samples or run.training_samples)
    before = run.explained(shown) if main else []
    if saved is None:
        ranges = run.calibrated(console, progress=main)
        rows: list[dict[str, Any]] = []
    else:
        ranges, rows = saved["ranges"], saved["rows"]
        run.load(saved)
        console.print(f"Continuing after epoch {len(rows)}, from {checkpoint}.", soft_wrap=True)

    def save() -> None:
        if main:
            state = {"ranges": ranges, "rows": rows, "conditions": conditions, **run.state()}
            _write(checkpoint, lambda path: torch.save(state, path))
            _write(output / "log.csv", lambda path: path.write_text(_table(rows)))
            _write(output / "settings.json", lambda path: path.write_text(_summary(conditions, loaded, ranges)))

    run.start(ranges)
    save()
    if len(rows) < settings.epochs:
        console.print(_HEADER, soft_wrap=True)
    with _progress(console) as progress:
        for epoch in range(len(rows), settings.epochs):
            task = progress.add_task(f"epoch {epoch + 1} of {settings.epochs}", total=len(run.loader))
            row = {"epoch": epoch + 1, **run.epoch(epoch, lambda task=task: progress.advance(task))}
            progress.remove_task(task)
            if not math.isfinite(row["total"]):
                raise FxlrpError(
                    f"the loss is {row['total']} in epoch {epoch + 1}: lower --lr, or raise --epsilon. {checkpoint} is "
                    "of the epoch before"
                )
            rows.append(row)
            save()
            console.print(_line(row), soft_wrap=True)
    if main:
        state = {name: value.cpu() for name, value in run.model.state_dict().items()}
        _write(output / "model.pt", lambda path: torch.save(state, path))
        _draw(output / "heatmaps.png", loaded, shown, before, run.explained(shown))
    console.print(f"The model is [bold]{output / 'model.pt'}[/], with log.csv and heatmaps.png.", soft_wrap=True)
    accelerator.end_training()


class _Run:
    """A model in training: what happens to it, and what of it is saved."""

    def __init__(
        self,
        accelerator: Accelerator,
        loaded: zoo.LoadedModel,
        settings: TrainSettings,
        training: list[Sample],
        validation: list[Sample],
    ) -> None:
        self.accelerator, self.settings, self.loaded = accelerator, settings, loaded
        self.training_samples, self.validation_samples = training, validation
        model = loaded.model.to(accelerator.device).train()
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        low, high = (bound.to(accelerator.device) for bound in loaded.bounds)
        self.isnet: nn.Module = ISNet(
            model,
            settings.variant,
            settings.epsilon,
            settings.first_layer,
            (low, high),
            settings.deep_supervision,
        )
        self.optimizer: Any = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
        # Whatever the variant, relevance is looked at in the same way.
        rules = Settings(settings.epsilon, settings.first_layer, (low, high), "bounded", 1e-2, flex=False)
        self.twin = convert(model, epsilon_composite(rules), trainable=True)
        size = min(settings.batch_size, len(training) // accelerator.num_processes)
        self.loader = self._loader(training, size, shuffled=True)
        self.validation_loader = self._loader(validation, size, shuffled=False) if validation else None

    def _loader(self, samples: Sequence[Sample], batch_size: int, *, shuffled: bool) -> Any:
        data = MaskedImages(samples, self.settings.size, self.loaded.mean, self.loaded.std)
        # In the order of the seed and the epoch alone. One replica: accelerate gives each process its batches.
        order = DistributedSampler(data, num_replicas=1, rank=0, seed=self.settings.seed) if shuffled else None
        workers = self.settings.workers
        loader = DataLoader(
            data, batch_size, sampler=order, drop_last=shuffled, num_workers=workers, persistent_workers=workers > 0
        )
        return self.accelerator.prepare(loader)

    def calibrated(self, console: Console, *, progress: bool) -> Any:
        """The natural ranges of the heatmaps, of a plain copy that is trained."""
        settings = self.settings
        console.print("Calibrating: a plain copy is trained, to see how large its heatmaps are.")
        return calibrate(
            self.isnet,  # pyright: ignore[reportArgumentType]
            self.loader,
            epochs=settings.calibration_epochs,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum),
            clip=CLIP,
            progress=progress,
        )

    def start(self, ranges: Any) -> None:
        """Get ready to train."""
        settings = self.settings
        self.loss = ISNetLoss(settings.p, settings.d, settings.w1, settings.w2, ranges)
        self.isnet, self.optimizer = self.accelerator.prepare(self.isnet, self.optimizer)

    def epoch(self, epoch: int, advance: Callable[[], None]) -> dict[str, Any]:
        """Train for one epoch, and validate."""
        accelerator, began = self.accelerator, time.perf_counter()
        # Random numbers of an epoch do not depend on whether there was an interruption before.
        torch.manual_seed(self.settings.seed + epoch * accelerator.num_processes + accelerator.process_index)
        self.loader.set_epoch(epoch)
        sums = torch.zeros(len(LOSSES) + 2, device=accelerator.device)
        for x, labels, masks, has_mask in self.loader:
            with accelerator.autocast():
                out = self.isnet(x)
                losses = self.loss(out, labels, masks, has_mask)
            accelerator.backward(losses.total)
            accelerator.clip_grad_norm_(self.isnet.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            hits = (out.logits.argmax(1) == labels).sum()
            sums += torch.stack([*(part.detach() * len(x) for part in losses), hits, torch.full_like(hits, len(x))])
            advance()
        total: Any = accelerator.reduce(sums, "sum")
        *means, count = total.tolist()
        figures = [mean / count for mean in means]
        found = [time.perf_counter() - began, *figures, *self._validated()]
        return dict(zip(COLUMNS[1:], found, strict=True))

    def _validated(self) -> tuple[float | None, float | None]:
        """Accuracy, and the share of relevance in the background; None where there is nothing to take it of."""
        if self.validation_loader is None:
            return None, None
        from accelerate.utils import broadcast

        # Each process has running statistics of its own batches; those of the first are written.
        broadcast(list(self.model.buffers()))
        found = []
        for x, labels, masks, has_mask in self.validation_loader:
            output, relevance = self._explain(x, labels)
            counts = has_mask & masks.flatten(1).any(1)
            share = torch.where(counts, background_share(relevance, masks), 0.0)
            table = torch.stack([(output.argmax(1) == labels).float(), share, counts.float()], 1)
            found.append(self.accelerator.gather_for_metrics(table))
        hits, share, counts = torch.cat(found).mean(0).tolist()
        return hits, share / counts if counts else None

    def _explain(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and LRP-epsilon of the true classes, in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            out = self.twin(x, labels)
        self.model.train()
        return out.output, out.relevance

    def explained(self, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
        """Probabilities and relevance of each sample."""
        data = MaskedImages(samples, self.settings.size, self.loaded.mean, self.loaded.std)
        device = self.accelerator.device
        x = torch.stack([data[i][0] for i in range(len(data))]).to(device)
        output, relevance = self._explain(x, torch.tensor([sample.label for sample in samples], device=device))
        return list(zip(output.softmax(1).cpu(), relevance.cpu(), strict=True))

    def state(self) -> dict[str, Any]:
        """What it takes to go on."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there. To be called before `start`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def background_share(relevance: Tensor, masks: Tensor) -> Tensor:
    """How much of an image's absolute relevance lies outside of its mask.

    Parameters
    ----------
    relevance : Tensor
        (B, C, h, w).
    masks : Tensor
        (B, h, w), bool.

    Returns
    -------
    Tensor
        (B,), in [0, 1]; 0 where there is no relevance.
    """
    size = relevance.abs().sum(1)
    total = size.sum((1, 2))
    return (size * ~masks).sum((1, 2)) / torch.where(total > 0, total, 1.0)


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


def _conditions(settings: TrainSettings, folder: Folder, processes: int) -> dict[str, Any]:
    """What a training that is continued must not differ in, and what may."""
    with_mask = sum(sample.mask is not None for sample in folder.samples)
    found = {"classes": folder.classes, "images": len(folder.samples), "masks": with_mask, "processes": processes}
    return asdict(settings) | found


def _read(checkpoint: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    theirs = saved["conditions"]
    changed = [
        f"{name} was {theirs[name]}, is {value}"
        for name, value in conditions.items()
        if name not in FREE and theirs[name] != value
    ]
    if changed:
        raise InputError(
            f"{checkpoint} is of a training with other settings: {'; '.join(changed)}. Repeat those to continue, write "
            "to another --output, or begin anew with --restart"
        )
    return saved


def _initial_model(settings: TrainSettings, classes: list[str]) -> zoo.LoadedModel:
    # What the command calls random is what training begins with.
    weights = zoo.INITIAL if settings.weights in (zoo.RANDOM, PRETRAINED) else settings.weights
    loaded = zoo.load(settings.model, weights, classes=len(classes))
    if settings.weights == PRETRAINED:
        theirs = zoo.load(settings.model)
        own = loaded.model.state_dict()
        # The last layer is for other classes: it stays a new one.
        fitting = {k: v for k, v in theirs.model.state_dict().items() if k in own and v.shape == own[k].shape}
        loaded.model.load_state_dict(fitting, strict=False)
        loaded = replace(theirs, model=loaded.model)
    return replace(loaded, classes=classes)


def _shown(samples: Sequence[Sample]) -> list[Sample]:
    """A few samples, of all classes in turn, with a mask if there are any."""
    samples = [sample for sample in samples if sample.mask is not None] or list(samples)
    labels = [sample.label for sample in samples]
    in_turn = sorted(range(len(samples)), key=lambda i: labels[:i].count(labels[i]))
    return [samples[i] for i in in_turn[:PICTURES]]


def _draw(
    path: Path,
    loaded: zoo.LoadedModel,
    samples: Sequence[Sample],
    before: Sequence[tuple[Tensor, Tensor]],
    after: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Images, and their heatmaps before and after, one below the other, with the outlines of the masks."""
    size = after[0][1].shape[-1]
    data = MaskedImages(samples, size, loaded.mean, loaded.std)
    photos = [loaded.photo(data[i][0])[0] for i in range(len(data))]
    masks = [data[i][2] for i in range(len(data))]

    def panels(found: Sequence[tuple[Tensor, Tensor]]) -> list[Panel]:
        made = []
        for sample, photo, mask, (chances, relevance) in zip(samples, photos, masks, found, strict=True):
            title = f"“{loaded.classes[sample.label]}” at {chances[sample.label]:.0%}"
            if mask.any():
                title += f"\n{background_share(relevance[None], mask[None]).item():.0%} in the background"
            made.append(Panel(title, photo, relevance))
        return made

    first = [Panel(loaded.classes[sample.label], photo) for sample, photo in zip(samples, photos, strict=True)]
    drawing = figure([first, panels(before), panels(after)], names=["image", "before", "after"])
    for axes, mask in zip(drawing.axes, masks * 3, strict=False):
        if mask.any() and not mask.all():
            axes.contour(mask.float().numpy(), levels=[0.5], colors="#1b9e77", linewidths=1.2)
    _write(path, lambda temporary: write(drawing, temporary))


def _write(path: Path, writing: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: an interruption leaves the one before."""
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
    return text.getvalue()


def _summary(conditions: dict[str, Any], loaded: zoo.LoadedModel, ranges: Any) -> str:
    mean, std = ([round(number, 6) for number in value.flatten().tolist()] for value in (loaded.mean, loaded.std))
    return json.dumps(conditions | {"mean": mean, "std": std, "ranges": ranges}, indent=2) + "\n"


def _described(folder: Folder) -> str:
    with_mask = sum(sample.mask is not None for sample in folder.samples)
    unused = f"; {folder.unused} masks of no image" if folder.unused else ""
    return f"{len(folder.samples)} images of {len(folder.classes)} classes, {with_mask} with a mask{unused}."


_HEADER = "epoch  seconds  total  classification  heatmap  accuracy  validation  background"


def _line(row: dict[str, Any]) -> str:
    accuracy, validation, background = (
        "-" if row[name] is None else f"{row[name]:.1%}"
        for name in ("accuracy", "validation_accuracy", "validation_background")
    )
    return (
        f"{row['epoch']:5}  {row['seconds']:7.1f}  {row['total']:5.3f}  {row['classification']:14.3f}  "
        f"{row['heatmap']:7.3f}  {accuracy:>8}  {validation:>10}  {background:>10}"
    )


def _progress(console: Console) -> Any:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
