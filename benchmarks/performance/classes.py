"""Several classes of one image in one call."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fxlrp

from .measuring import Figure, growth, interleaved, ratio
from .networks import composite, images, model_of
from .section import Row, Section, Settings, verdict

__all__ = ["CLASSES", "several"]

NETWORKS = ("resnet18", "vgg11", "resnet50")
COUNTS = (10, 100, 1000)


def several(network: str, size: int, count: int) -> fxlrp.testing.Any:
    """A call for the first classes, as a function without arguments."""
    x = images(1, size)
    twin = fxlrp.convert(model_of(network), composite("z+"), example_inputs=x)
    seeds = torch.eye(1000)[:count, None] * twin(x).output
    return lambda: twin(x, seeds)


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.small[1]
    for network in settings.chosen(NETWORKS):
        runs = {count: several(network, size, count) for count in (1, 10, 100)}
        times = interleaved({str(count): run for count, run in runs.items()}, settings.rounds)
        for count in COUNTS:
            time = ratio(times[str(count)], times["1"]) if str(count) in times else None
            yield {
                "network": network,
                "what": f"{count} classes",
                "time / one class": time,
                "must reach": None if time is None or count != 10 else verdict(time, 3.5),
                "memory, MiB": Figure(growth(network=network, size=size, count=count)),
                "of it the result, MiB": Figure(count * 3 * size * size * 4 / 2**20),
            }


CLASSES = Section(
    name="classes",
    text="""K classes of one image in one call, z+, 64 x 64.""",
    rows=rows,
)
