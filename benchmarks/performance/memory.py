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
from .training import batch_of, step_of

__all__ = ["MEMORY"]


STEPS = {"resnet50": ("selective", "dual"), "densenet121": ("selective", "dual")}
"""Variants of ISNets whose training steps are looked at, too: batch 4."""


def peak_of(run: Run) -> Figure:
    with Peak() as peak:
        run()
    return Figure(peak.bytes / 2**20)


def of_steps(network: str, size: int, rounds: int) -> Iterator[Row]:
    """ISNet's training steps, with the gradients that they leave."""
    for variant in STEPS.get(network, ()):
        steps = {again: step_of(network, variant, batch_of(4, size), recompute=again) for again in (False, True)}
        times = interleaved({str(again): step for again, step in steps.items()}, rounds)
        peak, less = (peak_of(step) for step in steps.values())
        yield {
            "network": network,
            "composite": f"ISNet, {variant}, a step",
            "peak, MiB": peak,
            "recomputed, MiB": less,
            "of the peak": Figure(less.value / peak.value),
            "time": ratio(times["True"], times["False"]),
        }


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
            with torch.no_grad():
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
        yield from of_steps(network, settings.size or 224, settings.rounds)


MEMORY = Section(
    name="memory",
    text="""The bytes of all tensors that a call has at a time (`fxlrp.testing.memory.Peak`), beside what must live:
the values that the relevance pass reads, when it begins. Then the same with `recompute=True`, and what that takes in
time. Of training steps of ISNets (batch 4), with all that autograd keeps, and gradients.""",
    rows=rows,
)
