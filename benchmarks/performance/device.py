"""Heatmaps and training steps on a GPU: eager, compiled, as CUDA graphs, in several precisions, beside their floor."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import fxlrp

from .measuring import Figure, Run, interleaved, ratio
from .methods import gradient_times_input
from .networks import CLASS, NETWORKS, RULES, composite, images, model_of
from .section import Row, Section, Settings
from .training import VARIANTS, Batch, batch_of, step_of

__all__ = ["DEVICE"]

BATCH = 64


class Precision(NamedTuple):
    dtype: torch.dtype
    tf32: bool


PRECISIONS = {
    "fp32": Precision(torch.float32, False),
    "tf32": Precision(torch.float32, True),
    "bf16": Precision(torch.bfloat16, False),
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


@contextmanager
def precision(which: Precision) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = which.tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def fastest(run: Run, times: int = 5) -> float:
    taken = interleaved({"it": run}, times, wait)["it"]
    return min(taken)


def speeds(which: Precision) -> tuple[float, float]:
    """What this device does at best: operations, and bytes, in a second."""
    size = 8192 if device() == "cuda" else 512
    a = torch.randn(size, size, device=device(), dtype=which.dtype)
    return 2 * size**3 / fastest(lambda: a @ a), 2 * a.nbytes / fastest(a.clone)


class Floor(TorchDispatchMode):
    """The seconds that the calls of ops would take at best, by their operations or by the bytes that they move."""

    def __init__(self, operations: float, moved: float) -> None:
        super().__init__()
        self.seconds, self.bytes = 0.0, 0
        self._operations, self._moved = operations, moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        operations = formula(*args, **(kwargs or {}), out_val=found) if formula is not None else 0
        is_view = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
        tensors = [x for x in pytree.tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        moved = 0 if is_view else sum(x.numel() * x.element_size() for x in tensors)
        self.bytes += moved
        self.seconds += max(operations / self._operations, moved / self._moved)
        return found


def as_cuda_graph(run: Run) -> Run | None:
    """The same kernels, launched at once."""
    if device() != "cuda":
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


Pair = tuple[Run, Run]
"""Eager, compiled."""


def heatmaps_of(network: str, x: Tensor) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """What, and what makes it."""
    model = model_of(network).to(x.device, x.dtype)

    def unit() -> Pair:
        compiled = cast(nn.Module, torch.compile(model))
        return gradient_times_input(model, x), gradient_times_input(compiled, x)

    def heatmap(rule: str) -> Pair:
        twin = fxlrp.convert(model, composite(rule), example_inputs=x)
        return partial(twin, x, CLASS), partial(torch.compile(twin), x, CLASS)

    yield "gradient x input", unit
    for rule in RULES:
        yield rule, partial(heatmap, rule)


def steps_of(network: str, batch: Batch, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """What, and what makes it; of half precision, under autocast."""
    half = None if dtype == torch.float32 else dtype

    def step(variant: str | None) -> Pair:
        make = partial(step_of, network, variant, batch, dtype=half)
        return make(), make(compiled=True)

    for variant in (None, *VARIANTS):
        yield f"ISNet, {variant}, a step" if variant else "the plain step", partial(step, variant)


def rows(settings: Settings) -> Iterator[Row]:
    size, count = settings.size or 224, BATCH if device() == "cuda" else 2
    for network in settings.networks or NETWORKS:
        for name, which in PRECISIONS.items():
            with precision(which):
                best = speeds(which)
                x = images(count, size).to(device(), which.dtype)
                batch = batch_of(count, size, device())
                for subjects in (heatmaps_of(network, x), steps_of(network, batch, which.dtype)):
                    units: dict[str, Sequence[float]] = {}
                    for what, make in subjects:
                        try:
                            found = _row(what, make(), best, settings, units)
                        except RuntimeError as error:
                            # What does not fit into memory, say: the others do.
                            print(f"  {network}, {name}, {what}: {type(error).__name__}: {error}", file=sys.stderr)
                        else:
                            yield {"network": f"{network}, {name}", **found}


def _row(
    what: str, pair: Pair, best: tuple[float, float], settings: Settings, units: dict[str, Sequence[float]]
) -> Row:
    """What is measured of one; the first of its kind is the unit."""
    eager, compiled = pair
    with Floor(*best) as floor:
        eager()
    memory = first = None
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        eager()
        wait()
        memory = Figure(torch.cuda.max_memory_allocated() / 2**20)
    runs = {"eager": eager}
    if settings.compiled:
        start = time.perf_counter()
        compiled()
        wait()
        first = Figure(time.perf_counter() - start)
        runs["compiled"] = compiled
    graph = None if what.endswith("step") else as_cuda_graph(eager)
    if graph is not None:
        runs["CUDA graph"] = graph
    times = interleaved(runs, settings.rounds, wait)
    for kind, taken in times.items():
        units.setdefault(kind, taken)
    return {
        "what": what,
        "floor, ms": Figure(1000 * floor.seconds),
        "moved, MiB": Figure(floor.bytes / 2**20),
        "peak, MiB": memory,
        **{f"{kind}, ms": Figure(1000 * statistics.median(taken)) for kind, taken in times.items()},
        **{f"{kind} / unit": ratio(taken, units[kind]) for kind, taken in times.items()},
        "first compiled call, s": first,
    }


DEVICE = Section(
    name="device",
    text="""On a GPU (`--cuda`), batch 64, 224 x 224. The unit is gradient x input, or the plain step. The floor is what
the eager calls would take, each at this device's speed of matrix products or of copies, whichever takes longer;
*moved* is what they read and write.""",
    rows=rows,
    unchecked=("floor, ms", "first compiled call, s"),
)
