"""Heatmaps: networks x composites, beside peers, with the operations that they take and that they should."""

from __future__ import annotations

from collections.abc import Iterator

from .by_hand import derived
from .measuring import Figure, counted, growth, interleaved, ratio, seconds
from .methods import METHODS, gradient_times_input, method_of
from .networks import NETWORKS, RULES, images, model_of
from .section import Row, Section, Settings, verdict

__all__ = ["HEATMAPS"]

TARGETS = {"epsilon": 1.15, "z+": 1.6, "gamma": 1.8, "alpha2-beta1": 2.2}


def rows(settings: Settings) -> Iterator[Row]:
    size, off = settings.size or 224, list[str]()
    for network in settings.networks or NETWORKS:
        model, x = model_of(network), images(1, size)
        unit = gradient_times_input(model, x)
        for rule in RULES:
            grown = {name: growth("heatmap", network, name, rule, size) for name in ("fxlrp", "zennit")}
            # Not of all rules at once: that many copies of a VGG take all memory there is.
            made = {name: method_of(name, network, x, rule) for name in METHODS}
            runs = {"unit": unit} | {name: run for name, run in made.items() if run is not None}
            operations, by_hand = counted(runs["fxlrp"]), derived(network, model, x, rule)
            if by_hand is not None and abs(operations / by_hand - 1) > 0.03:
                off.append(f"{network}, {rule}")
            times = interleaved(runs, settings.rounds)
            ours, theirs = times["fxlrp"], times["zennit"]
            peers = {name: times.get(name) for name in METHODS if name != "fxlrp"}
            target = 1.65 if (network, rule) == ("vgg16", "gamma") else TARGETS[rule]
            yield {
                "network": network,
                "composite": rule,
                "unit, s": seconds(times["unit"]),
                "operations": Figure(operations / counted(unit)),
                "by hand": None if by_hand is None else Figure(by_hand / counted(unit)),
                "zennit's": Figure(counted(runs["zennit"]) / counted(unit)),
                "fxlrp": ratio(ours, times["unit"]),
                "must reach": verdict(ratio(ours, times["unit"]), target),
                **{name: None if taken is None else ratio(taken, times["unit"]) for name, taken in peers.items()},
                "zennit / fxlrp": ratio(theirs, ours),
                "must reach, zennit": verdict(ratio(theirs, ours), 2.5, at_least=True),
                "memory, fxlrp / zennit": Figure(grown["fxlrp"] / grown["zennit"]),
                "must reach, memory": verdict(Figure(grown["fxlrp"] / grown["zennit"]), 0.5),
            }
    if off:
        raise RuntimeError(f"the operations are not those that were derived: {'; '.join(off)}")


HEATMAPS = Section(
    name="heatmaps",
    text="""One heatmap, 224 x 224; the unit is gradient x input. *Operations* are counted while it is made, *by
hand* derived as above, *zennit's* counted likewise; then times; memory is the growth of the process's peak in one
call. Zennit has canonizers for ResNets and VGGs, and merges batch norms of EfficientNet; captum can do VGG alone,
without alpha2-beta1; autolrp has no alpha2-beta1, and takes 1 as its seed, where the others take the logit.""",
    rows=rows,
    more=("zennit / fxlrp",),
    unchecked=("unit, s", "zennit's", "zennit", "captum", "autolrp"),
)
