"""What each rewrite of the relevance pass is worth: the operations without it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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
        run_of = lambda rule, names, model=model: partial(
            fxlrp.convert(model, composite(rule), optimize=names, example_inputs=x), x, CLASS
        )
        whole = {rule: run_of(rule, every) for rule in RULES}
        for left_out, names in chosen.items():
            times, operations = dict[str, Figure](), dict[str, int]()
            for rule in RULES:
                # Beside the pass with all of them, and not half a minute later: a shared machine changes.
                run = run_of(rule, names)
                taken = interleaved({"without": run, "with": whole[rule]}, settings.rounds)
                times[rule], operations[rule] = ratio(taken["without"], taken["with"]), counted(run)
            yield {
                "network": network,
                "left out": left_out,
                **{f"operations, {rule}": Figure(operations[rule] / unit) for rule in RULES},
                **{f"time, {rule}": each for rule, each in times.items()},
            }


REWRITTEN = Section(
    name="rewrites",
    text="""Each rewrite left out by itself (`convert(..., optimize=)`), 128 x 128: operations in units of gradient x
input, and time in that of the pass with all of them.""",
    rows=rows,
)
