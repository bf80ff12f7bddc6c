"""Where the time goes: the kinds of ops that a heatmap and a training step are made of, beside those of their units."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from .measuring import Figure, Run
from .methods import gradient_times_input, method_of
from .networks import NETWORKS, RULES, images, model_of
from .section import Row, Section, Settings
from .training import batch_of, step_of

__all__ = ["SHARES"]

KINDS = {
    "products": ("conv", "mm", "matmul", "einsum", "linear"),
    "normalizations": ("batch_norm", "layer_norm", "group_norm", "var", "std"),
    "memory": ("copy_", "cat", "clone", "empty", "fill_", "zero_", "resize_", "slice", "stack", "new_"),
}
"""The names of ops of each kind, as parts; what else computes is a pass over the elements."""

PASSES, REST = "passes over elements", "Python and dispatch"


def kind_of(name: str) -> str | None:
    """That of an op of ATen; None of what is none, and is counted as the rest."""
    if not name.startswith(("aten::", "mkldnn", "autograd::")) or name.startswith("autograd::engine"):
        return None
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), PASSES)


def shares(run: Run, times: int) -> dict[str, float]:
    """Seconds of one run by kind, profiled; the rest is what no op took."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        start = time.perf_counter()
        for _ in range(times):
            run()
        whole = (time.perf_counter() - start) / times
    by_kind = dict.fromkeys((*KINDS, PASSES), 0.0)
    for event in found.key_averages():
        kind = kind_of(event.key)
        if kind is not None:
            by_kind[kind] += event.self_cpu_time_total / 1e6 / times
    return {**by_kind, REST: whole - sum(by_kind.values())}


def subjects(network: str, size: int) -> Iterator[tuple[str, Run]]:
    """Gradient x input, heatmaps, a plain step, and one of an ISNet."""
    yield "gradient x input", gradient_times_input(model_of(network), images(1, size))
    for rule in RULES:
        run = method_of("fxlrp", network, images(1, size), rule)
        assert run is not None
        yield rule, run
    batch = batch_of(8, min(size, 64))
    yield "the plain step", step_of(network, None, batch)
    yield "ISNet, selective, a step", step_of(network, "selective", batch)


def rows(settings: Settings) -> Iterator[Row]:
    for network in settings.networks or NETWORKS:
        unit = 1.0
        for what, run in subjects(network, settings.size or 224):
            found = shares(run, settings.rounds)
            if what in ("gradient x input", "the plain step"):
                unit = sum(found.values())
            yield {
                "network": network,
                "what": what,
                **{kind: Figure(seconds / unit) for kind, seconds in found.items()},
                "sum": Figure(sum(found.values()) / unit),
            }


SHARES = Section(
    name="shares",
    text="""What the time is spent on, profiled (which makes small ops seem longer), in units of gradient x input,
224 x 224, or of the plain step, batch 8, 64 x 64.""",
    rows=rows,
    unchecked=("products", "normalizations", "memory", PASSES, REST, "sum"),
)
