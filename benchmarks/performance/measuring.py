"""Times as ratios of one run, peaks of memory, and operations."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Figure", "Run", "Times", "child", "counted", "grow", "growth", "interleaved", "ratio", "seconds"]

Run = Callable[[], object]
Times = Mapping[str, Sequence[float]]


class Figure(NamedTuple):
    """A figure, of which less is better unless its column says otherwise.

    Attributes
    ----------
    value : float
        What was measured: a ratio's median over rounds.
    noise : float
        Half of its range over the rounds; zero for what is counted.
    """

    value: float
    noise: float = 0.0


def interleaved(runs: Mapping[str, Run], rounds: int, wait: Callable[[], object] = lambda: None) -> Times:
    """Seconds by method: in each round each of them runs once; the first round does not count.

    Every other round goes backwards: what stands in front of a run is not the same each time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in list(runs.items())[:: -1 if round_ % 2 else 1]:
            wait()
            start = time.perf_counter()
            run()
            wait()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Sequence[float], unit: Sequence[float]) -> Figure:
    """How long one takes in units of another, each against the other of its round."""
    found = [a / b for a, b in zip(times, unit, strict=True)]
    return Figure(statistics.median(found), (max(found) - min(found)) / 2)


def seconds(times: Sequence[float]) -> Figure:
    """How long it takes."""
    return Figure(statistics.median(times), (max(times) - min(times)) / 2)


class _Counter(TorchDispatchMode):
    """Counts operations, two for a product and its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


def counted(run: Run) -> int:
    """The operations of convolutions and matrix products in a call."""
    with _Counter() as counter:
        run()
    return counter.total


def peak() -> float:
    """Peak memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def grow(run: Run) -> float:
    """By how much the process's peak grows in a call, MiB."""
    # What came before is not to hide what the call needs: the room below the peak is filled first.
    current = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    filler = torch.ones(int(max(0.0, peak() - current) * 2**18))
    before = peak()
    run()
    del filler
    return peak() - before


def growth(*subject: object) -> float:
    """`grow` of a subject of `__main__`, in a process of its own, MiB."""
    return child("growth", *subject)[0]


def child(*subject: object) -> list[float]:
    """What `__main__` measures of a subject, in a process of its own."""
    command = [sys.executable, str(Path(__file__).parent), "--child", json.dumps(subject)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{subject}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
