"""The natural range of a heatmap's total relevance, from which the foreground loss keeps it (appendix C.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor, nn

from ..errors import InputError, VariantError
from ..models import duplicate
from .loss import Classification
from .module import ISNet

__all__ = ["Welford", "calibrate", "range_of"]

Ranges = dict[str, tuple[float, float] | list[tuple[float, float]]]

Batch = Tensor | Sequence[object] | Mapping[str, object]
"""Images, or values of which the first are the images and the second the labels."""


class Welford:
    """Mean and sample deviation of numbers that come in batches, in one pass (Welford's algorithm, merged by Chan's).

    Parameters
    ----------
    count, mean, squares : Tensor
        How many, their mean, the sum of squared differences from it; what was seen before.
    """

    def __init__(self, count: float = 0.0, mean: float | Tensor = 0.0, squares: float | Tensor = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, values: Tensor) -> None:
        """Take in values, shape (n, ...): of each element of the trailing dimensions on its own."""
        if len(values):
            values = values.double()
            mean = values.mean(0)
            self.merge(Welford(len(values), mean, (values - mean).square().sum(0)))

    def merge(self, other: Welford) -> None:
        """Take in what another one has seen."""
        count = self.count + other.count
        if not count:
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.count / count)
        self.squares = self.squares + other.squares + difference**2 * (self.count * other.count / count)
        self.count = count

    @property
    def deviation(self) -> Tensor:
        """The sample deviation (divided by n - 1)."""
        return torch.as_tensor(self.squares / (self.count - 1)).sqrt()


def range_of(mean: float, deviation: float) -> tuple[float, float]:
    """C1 (40) and C2 (41) of a mean and a deviation: three deviations around the mean, with limits."""
    low = max(mean / 5, mean - 3 * deviation)
    return low, min(25 * low, mean + 3 * deviation)


def calibrate(
    isnet: ISNet,
    loader: Iterable[Batch],
    *,
    epochs: int = 0,
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] | None = None,
    classification: Classification = nn.functional.cross_entropy,
    clip: float | None = 1.0,
    progress: bool = True,
) -> Ranges:
    """The natural range of each heatmap's total absolute relevance, for `fxlrp.ISNetLoss`.

    The paper's heuristic (appendix C.2): train a plain classifier of the same architecture for a few epochs; then, for
    one epoch, measure the total absolute relevance of the maps that the ISNet would make of each image.

    All of it happens to a copy: `isnet` and its model are left as they are.

    Parameters
    ----------
    isnet : ISNet
        In the mode (training, mostly) in which its heatmaps are wanted.
    loader : iterable
        Gives batches: images, or tuples or dicts whose first value is the images and the second the labels. They are
        moved to where the model is. It is walked through ``epochs + 1`` times.
    epochs : int
        How many epochs to train before; the epoch that is measured is trained in as well. 0: the model is one that
        has been trained, and is measured as it is. The paper takes 4.
    optimizer : callable or None
        Parameters to an optimizer. None: the paper's SGD, learning rate 0.001 and momentum 0.9.
    classification : callable
        ``(logits, labels) -> scalar``, the loss of the plain classifier.
    clip : float or None
        Largest norm of the gradient in training.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict
        For each heatmap (C1, C2); one such pair for each of the dual ISNet's two maps. The original ISNet's maps,
        one for each class, have one range. In several processes, all get the ranges of what all have seen.

    Raises
    ------
    InputError
        If the loader gives fewer than two images, or something else.
    VariantError
        If relevance vanishes or explodes, so that there is no range.
    """
    isnet = _copied(isnet)
    steps = (optimizer or _sgd)(isnet.parameters()) if epochs else None
    seen: dict[str, Welford] = {}
    for last, x, labels in _batches(isnet, loader, epochs, progress):
        if last:
            _measure(isnet, x, seen)
        if steps is not None:
            _train(isnet.model, x, labels, steps, classification, clip)
    return _ranges(_of_all_processes(seen))


def _copied(isnet: ISNet) -> ISNet:
    if not isinstance(isnet, ISNet):
        raise InputError(
            f"calibrate takes an ISNet (not wrapped: before accelerate or DDP), not a {type(isnet).__name__}"
        )
    return duplicate(isnet)


def _sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _batches(
    isnet: ISNet, loader: Iterable[Batch], epochs: int, progress: bool
) -> Iterator[tuple[bool, Tensor, object]]:
    """Images and labels, where the model is, in ``epochs + 1`` rounds; and whether the round is the last."""
    device = next(isnet.parameters(), torch.empty(0)).device
    for epoch in range(epochs + 1):
        label = f"calibrating, epoch {epoch + 1} of {epochs + 1}"
        for batch in track(loader, description=label, disable=not progress, transient=True):
            x, labels = _images_and_labels(batch)
            yield epoch == epochs, x.to(device), labels.to(device) if isinstance(labels, Tensor) else labels


def _images_and_labels(batch: Batch) -> tuple[Tensor, object]:
    values = [batch] if isinstance(batch, Tensor) else [*batch.values()] if isinstance(batch, Mapping) else batch
    images, labels = values[0], values[1] if len(values) > 1 else None
    if not isinstance(images, Tensor):
        raise InputError(f"the first value of a batch is a tensor of images, not a {type(images).__name__}")
    return images, labels


def _train(
    model: nn.Module,
    x: Tensor,
    labels: object,
    optimizer: torch.optim.Optimizer,
    classification: Classification,
    clip: float | None,
) -> None:
    optimizer.zero_grad()
    classification(model(x), labels).backward()
    if _several_processes():
        for gradient in [parameter.grad for parameter in model.parameters() if parameter.grad is not None]:
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def _measure(isnet: ISNet, x: Tensor, seen: dict[str, Welford]) -> None:
    """Take the heatmaps of images into what was seen of each."""
    with torch.no_grad():
        maps = isnet(x).heatmaps
    for name, value in maps.items():
        seen.setdefault(name, Welford()).add(_totals(isnet, value))


def _totals(isnet: ISNet, maps: Tensor) -> Tensor:
    """Total absolute relevance of each map: (n, K) of the dual ISNet, whose maps differ in kind; else (n, 1)."""
    if isnet.variant == "dual":
        return maps.abs().flatten(2).sum(2)
    return maps.abs().flatten(2 if isnet.variant == "original" else 1).sum(-1).reshape(-1, 1)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all_processes(seen: dict[str, Welford]) -> dict[str, Welford]:
    if not _several_processes():
        return seen
    found: list[dict[str, tuple[float, Tensor, Tensor]]] = [{}] * dist.get_world_size()
    own = {name: (w.count, torch.as_tensor(w.mean).cpu(), torch.as_tensor(w.squares).cpu()) for name, w in seen.items()}
    dist.all_gather_object(found, own)
    total: dict[str, Welford] = {}
    for each in found:
        for name, statistics in each.items():
            total.setdefault(name, Welford()).merge(Welford(*statistics))
    return total


def _ranges(seen: dict[str, Welford]) -> Ranges:
    if not seen or next(iter(seen.values())).count < 2:
        raise InputError("calibrate needs at least two images, and the loader gave fewer")
    return {name: _range(name, statistics) for name, statistics in seen.items()}


def _range(name: str, statistics: Welford) -> tuple[float, float] | list[tuple[float, float]]:
    mean, deviation = (torch.as_tensor(each).tolist() for each in (statistics.mean, statistics.deviation))
    pairs = list(map(range_of, mean, deviation))
    for low, high in pairs:
        if not 0 < low <= high < float("inf"):
            raise VariantError(
                f"the heatmap '{name}' has no range, its relevance vanishes or explodes: C1 = {low}, C2 = {high}. Use "
                "batch norms, or other initial weights (appendix C.2)"
            )
    return pairs[0] if len(pairs) == 1 else pairs
