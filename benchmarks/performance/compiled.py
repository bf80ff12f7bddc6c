"""torch.compile beside eager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

import fxlrp

from .measuring import Figure, interleaved, ratio, seconds
from .networks import CLASS, RULES, composite, images, model_of
from .section import Row, Section, Settings
from .training import VARIANTS, batch_of, step_of

__all__ = ["COMPILED"]

NETWORKS = ("resnet18",)


def rows(settings: Settings) -> Iterator[Row]:
    size = settings.size or 64
    for network in settings.networks or NETWORKS:
        x, batch = images(8, size), batch_of(8, size)
        pairs = {}
        for rule in RULES:
            twin = fxlrp.convert(model_of(network), composite(rule), example_inputs=x)
            pairs[rule] = partial(twin, x, CLASS), partial(torch.compile(twin), x, CLASS)
        for variant in (None, *VARIANTS[:-1]):
            steps = (step_of(network, variant, batch, compiled=compiled) for compiled in (False, True))
            pairs[f"ISNet, {variant}, a step" if variant else "the plain step"] = tuple(steps)
        for what, (eager, compiled) in pairs.items():
            start = time.perf_counter()
            compiled()
            first = time.perf_counter() - start
            times = interleaved({"eager": eager, "compiled": compiled}, settings.rounds)
            found = ratio(times["compiled"], times["eager"])
            yield {
                "network": network,
                "what": what,
                "eager, s": seconds(times["eager"]),
                "compiled / eager": found,
                "the first call, s": Figure(first),
            }


COMPILED = Section(
    name="compiled",
    text="""`torch.compile` by its default backend, batch 8, 64 x 64.""",
    rows=rows,
    unchecked=("eager, s", "the first call, s"),
)
