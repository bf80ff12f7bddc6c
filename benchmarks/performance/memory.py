"""What a heatmap needs at a time, beside what must live."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import fxlrp
from fxlrp.testing.memory import Peak

from .measuring import Figure, Run, interleaved, ratio
from .networks import CLASS, NETWORKS, RULES, composite, images, model_of
from .section import Row, Section, Settings

__all__ = ["MEMORY"]


def peak_of(run: Run) -> Figure:
    with Peak() as peak, torch.no_grad():
        run()
    return Figure(peak.bytes / 2**20)


def rows(settings: Settings) -> Iterator[Row]:
    x = images(1, settings.size or 224)
    for network in settings.networks or NETWORKS:
        model = model_of(network)
        for rule in RULES:
            plain = fxlrp.convert(model, composite(rule), example_inputs=x)
            again = fxlrp.convert(model, composite(rule), example_inputs=x, recompute=True)
            _, values = plain.capture(x).forward((x,))
            stored = (v.untyped_storage() for v in values.values() if isinstance(v, Tensor))
            kept = {storage.data_ptr(): storage.nbytes() for storage in stored}
            runs = {"plain": partial(plain, x, CLASS), "again": partial(again, x, CLASS)}
            times = interleaved(runs, settings.rounds)
            peak, less = peak_of(runs["plain"]), peak_of(runs["again"])
            yield {
                "network": network,
                "composite": rule,
                "must live, MiB": Figure(sum(kept.values()) / 2**20),
                "peak, MiB": peak,
                "peak / must live": Figure(peak.value * 2**20 / sum(kept.values())),
                "recomputed, MiB": less,
                "of the peak": Figure(less.value / peak.value),
                "time": ratio(times["again"], times["plain"]),
            }


MEMORY = Section(
    name="memory",
    text="""The bytes of all tensors that a call has at a time (`fxlrp.testing.memory.Peak`), beside what must live:
the values that the relevance pass reads, when it begins. Then the same with `recompute=True`, and what that takes in
time.""",
    rows=rows,
)
