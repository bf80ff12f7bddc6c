"""Several classes of one image in one call."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fxlrp

from .measuring import Figure, Run, growth, interleaved, ratio
from .networks import composite, images, model_of
from .section import Row, Section, Settings, verdict

__all__ = ["CLASSES", "several"]

NETWORKS = ("resnet18", "vgg11", "resnet50")
TIMED, COUNTS = (1, 10, 100), (10, 100, 1000)


def several(network: str, size: int, count: int) -> Run:
    """A call for the first of the classes, as many as these."""
    x = images(1, size)
    twin = fxlrp.convert(model_of(network), composite("z+"), example_inputs=x)
    seeds = torch.eye(1000)[:count, None] * twin(x).output
    return lambda: twin(x, seeds)


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.size or 64
    for network in settings.networks or NETWORKS:
        times = interleaved({str(count): several(network, size, count) for count in TIMED}, settings.rounds)
        for count in COUNTS:
            time = ratio(times[str(count)], times["1"]) if count in TIMED else None
            yield {
                "network": network,
                "classes": str(count),
                "time / one class": time,
                "must reach": verdict(time, 3.5) if count == 10 else None,
                "memory, MiB": Figure(growth("classes", network, size, count)),
                "of which the result, MiB": Figure(count * 3 * size * size * 4 / 2**20),
            }


CLASSES = Section(
    name="classes",
    text="""K classes of one image in one call, z+, 64 x 64, in the time of one class; memory is the growth of the
process's peak. Seeds stand in the batch of every transpose (`torch.vmap`), as many at a time as take about a
gigabyte.""",
    rows=rows,
    unchecked=("of which the result, MiB",),
)
