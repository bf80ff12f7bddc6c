"""What each rewrite of the relevance pass is worth: the operations without it."""

from __future__ import annotations

from collections.abc import Iterator

import fxlrp
from fxlrp.relevance.rewrites import FORWARD, REWRITES

from .measuring import Figure, counted, interleaved, ratio
from .methods import gradient_times_input
from .networks import CLASS, RULES, composite, images, model_of
from .section import Row, Section, Settings

__all__ = ["REWRITTEN"]

NETWORKS = ("resnet50", "densenet121")


def rows(settings: Settings) -> Iterator[Row]:
    x, every = images(1, settings.size or 128), (*FORWARD, *REWRITES)
    chosen = {"none left out": every, "all left out": ()}
    chosen |= {name: tuple(each for each in every if each != name) for name in every}
    for network in settings.networks or NETWORKS:
        model = model_of(network)
        unit = counted(gradient_times_input(model, x))
        runs, operations = {}, {}
        for left_out, names in chosen.items():
            for rule in RULES:
                twin = fxlrp.convert(model, composite(rule), optimize=names, example_inputs=x)
                run = lambda twin=twin: twin(x, CLASS)
                operations[left_out, rule] = counted(run)
                runs[f"{left_out} {rule}"] = run
        times = interleaved(runs, settings.rounds)
        for left_out in chosen:
            yield {
                "network": network,
                "left out": left_out,
                **{f"operations, {rule}": Figure(operations[left_out, rule] / unit) for rule in RULES},
                **{
                    f"time, {rule}": ratio(times[f"{left_out} {rule}"], times[f"none left out {rule}"])
                    for rule in RULES
                    if left_out != "none left out"
                },
            }


REWRITTEN = Section(
    name="rewrites",
    text="""Each rewrite left out by itself (`convert(..., optimize=)`), 128 x 128: operations in units of gradient x
input, and time in that of the pass with all of them.""",
    rows=rows,
)
