"""Steps of ISNet training: forward, loss, backward, gradient clipping, SGD with momentum, in training mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn

import fxlrp

from .measuring import Run, interleaved, ratio, seconds
from .section import Row, Section, Settings, verdict

__all__ = ["TRAINING", "VARIANTS", "Batch", "batch_of", "step_of"]

VARIANTS = ("stochastic", "selective", "dual", "original")
NETWORKS = ("resnet18", "resnet50", "densenet121")
TARGETS = {"stochastic": 2.3, "selective": 2.3, "dual": 4.3, "original": 10.5}

Batch = tuple[Tensor, Tensor, Tensor]


def batch_of(batch: int, size: int, device: str = "cpu") -> Batch:
    """Images, classes and masks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    masks = torch.zeros(batch, size, size)
    masks[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    return x.to(device), labels.to(device), masks.to(device)


def step_of(
    network: str,
    variant: str | None,
    batch: Batch,
    *,
    classes: int = 10,
    lds: bool = False,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
    recompute: bool = False,
) -> Run:
    """A training step, of the plain classifier if there is no variant, under autocast if there is a dtype."""
    torch.manual_seed(0)
    x, labels, masks = batch
    model = torchvision.models.get_model(network, num_classes=classes).to(x.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    module, loss = model, None
    if variant is not None:
        module = fxlrp.ISNet(model, variant, deep_supervision=lds, recompute=recompute)
        pairs = [(1.0, 25.0)] * (2 if variant == "dual" else 1)
        loss = fxlrp.ISNetLoss(ranges=dict.fromkeys(module(x).heatmaps, pairs))
    if compiled:
        module = torch.compile(module)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            out = module(x)
            total = nn.functional.cross_entropy(out, labels) if loss is None else loss(out, labels, masks).total
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def rows(settings: Settings) -> Iterator[Row]:
    for network in settings.networks or NETWORKS:
        batch = batch_of(8, settings.size or 64)
        runs = {"plain": step_of(network, None, batch)}
        for variant in VARIANTS:
            runs |= {f"{variant} {lds}": step_of(network, variant, batch, lds=lds) for lds in (False, True)}
            if variant != "original":
                runs[f"{variant} many"] = step_of(network, variant, batch, classes=1000)
        times = interleaved(runs, settings.rounds)
        for variant in VARIANTS:
            step, many = times[f"{variant} False"], times.get(f"{variant} many")
            grown = None if many is None else ratio(many, step)
            yield {
                "network": network,
                "variant": variant,
                "unit, s": seconds(times["plain"]),
                "step": ratio(step, times["plain"]),
                "must reach": verdict(ratio(step, times["plain"]), TARGETS[variant]),
                "with LDS": ratio(times[f"{variant} True"], times["plain"]),
                "1000 classes / 10": grown,
                "must reach, classes": verdict(grown, 1.05),
            }


TRAINING = Section(
    name="training",
    text="""One training step of an ISNet: forward, loss, backward, clipping, SGD; the unit is the plain classifier's.
LDS is deep supervision. Batch 8, 64 x 64, 10 classes; the original has a map for each of these.""",
    rows=rows,
    unchecked=("unit, s",),
)
