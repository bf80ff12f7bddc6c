"""Heatmaps: networks x composites, beside peers, with the operations that they take and that they should."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from .by_hand import derived
from .measuring import Figure, counted, growth, interleaved, ratio
from .methods import METHODS, gradient_times_input, method_of
from .networks import RULES, images, model_of
from .section import Row, Section, Settings, verdict

__all__ = ["HEATMAPS"]

TARGETS = {"epsilon": 1.15, "z+": 1.6, "gamma": 1.8, "alpha2-beta1": 2.2}


def target(network: str, rule: str) -> float:
    return 1.65 if (network, rule) == ("vgg16", "gamma") else TARGETS[rule]


def rows(settings: Settings) -> Iterator[Row]:
    for network in settings.networks:
        x = images(settings.batch, settings.size)
        model = model_of(network)
        runs = {"unit": gradient_times_input(model, x)}
        operations = {"unit": counted(runs["unit"])}
        for rule in RULES:
            for name in METHODS:
                run = method_of(name, network, x, rule)
                if run is not None:
                    runs[f"{rule} {name}"] = run
            operations[rule] = counted(runs[f"{rule} fxlrp"])
        times = interleaved(runs, settings.rounds)
        for rule in RULES:
            ours = times[f"{rule} fxlrp"]
            memory = {
                name: growth(network=network, method=name, rule=rule, batch=settings.batch, size=settings.size)
                for name in ("fxlrp", "zennit")
            }
            found = {
                name: ratio(times[f"{rule} {name}"], times["unit"]) for name in METHODS if f"{rule} {name}" in times
            }
            faster, grown = ratio(times[f"{rule} zennit"], ours), memory["fxlrp"] / memory["zennit"]
            yield {
                "network": network,
                "composite": rule,
                "gradient x input, s": f"{statistics.median(times['unit']):.2f}",
                "operations": Figure(operations[rule] / operations["unit"]),
                "by hand": Figure(derived(network, model, x, rule) / operations["unit"]),
                "fxlrp": found["fxlrp"],
                "must reach": verdict(found["fxlrp"], target(network, rule)),
                "zennit": found.get("zennit"),
                "captum": found.get("captum"),
                "autolrp": found.get("autolrp"),
                "zennit / fxlrp": faster,
                "memory, fxlrp / zennit": Figure(grown),
                "faster, less": verdict(faster, 2.5, at_least=True) + ", " + verdict(Figure(grown), 0.5),
            }


HEATMAPS = Section(
    name="heatmaps",
    text="""Gradient x input = 1. *Operations* are counted while the heatmap is made, *by hand* derived as above; then times,
± half the range over the rounds; memory is the growth of the process's peak in one call. Zennit has a canonizer for ResNets and
VGGs, and merges batch norms of EfficientNet; captum can do VGG alone; autolrp takes 1 as its seed, and has no alpha2-beta1.""",
    rows=rows,
    better={"zennit / fxlrp": "more"},
    unchecked=("zennit", "captum", "autolrp"),
)
