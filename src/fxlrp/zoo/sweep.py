"""Trials of many models, one after another, each in a process of its own; what is found is kept in a file."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import InputError
from ..io.files import write_file
from .catalogue import LIBRARIES, Progress, build, names
from .trial import Trial, try_out

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    Context = ForkServerContext | SpawnContext

__all__ = ["Sweep", "table"]

Value = TypeVar("Value")

PACKAGES = ("torch", "torchvision", "timm", "transformers", "zennit")


class Sweep:
    """Trials of many models, and the file that they are kept in.

    A model that is in the file is not tried again: after an interruption, a sweep goes on where it was.

    Parameters
    ----------
    path : Path
        A JSON file: read if it is there, written after each trial.
    composite : str
        The rules, by the name of a zennit composite.
    restart : bool
        Whether what is in the file is left unread, and written over by the first trial.

    Attributes
    ----------
    trials : dict of str to Trial
        By the name of the model.

    Raises
    ------
    InputError
        If the file is not one of a sweep, or of one with another composite or other versions of the libraries.
    """

    def __init__(self, path: Path, composite: str = "epsilon_plus", *, restart: bool = False) -> None:
        self.path = path
        self.composite = composite
        self.conditions = {"composite": composite, "versions": _versions()}
        self.trials: dict[str, Trial] = {}
        self._chosen: dict[str, list[str]] = {}
        if path.exists() and not restart:
            try:
                kept = json.loads(path.read_text())
                conditions = kept["conditions"]
                self._chosen = kept["chosen"]
                self.trials = {row["name"]: Trial(**row) for row in kept["trials"]}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is not a file of a sweep") from error
            if conditions != self.conditions:
                raise InputError(
                    f"{path} holds a sweep under other conditions ({conditions}, now {self.conditions}): write to "
                    "another file, or begin it anew"
                )

    def names(self, what: str, *, every: bool = False, progress: Progress = iter) -> list[str]:
        """As `fxlrp.zoo.names`; what it takes long to choose is kept in the file."""
        key = f"every {what}" if every else what
        if key not in self._chosen:
            self._chosen[key] = names(what, every=every, progress=progress)
            self._write()
        return self._chosen[key]

    def run(self, names: Sequence[str], *, jobs: int = 1, seconds: float = 900.0) -> Iterator[Trial]:
        """Try the models that are not in the file yet, and give each trial as it ends.

        Parameters
        ----------
        names : sequence of str
            As of `fxlrp.zoo.build`.
        jobs : int
            How many processes at a time; each has one model in memory.
        seconds : float
            After which a process is stopped.
        """
        todo = [name for name in dict.fromkeys(names) if name not in self.trials]
        trying = partial(
            _in_a_process,
            context=_context(todo),
            composite=self.composite,
            seconds=seconds,
            alone=jobs == 1,
        )
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(trying, name) for name in todo]
            try:
                for future in as_completed(futures):
                    trial = future.result()
                    self.trials[trial.name] = trial
                    self._write()
                    yield trial
            finally:
                # Interrupted: what has not begun does not begin.
                for future in futures:
                    future.cancel()

    def forget(self, which: Callable[[Trial], bool]) -> None:
        """Forget these trials, so that they are made again."""
        self.trials = {name: trial for name, trial in self.trials.items() if not which(trial)}

    def _write(self) -> None:
        rows = [asdict(trial) for trial in self.trials.values()]
        text = json.dumps({"conditions": self.conditions, "chosen": self._chosen, "trials": rows}, indent=1)
        write_file(self.path, lambda file: file.write(f"{text}\n".encode()))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _context(names: Sequence[str]) -> Context:
    """How processes are made: of one that has what all of them need imported, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    libraries = {name.partition(":")[0] for name in names} & set(LIBRARIES)
    context.set_forkserver_preload(["fxlrp.zoo", "torch.export", *sorted(libraries)])
    return context


def _in_a_process(name: str, context: Context, *, composite: str, seconds: float, alone: bool) -> Trial:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try_and_send, args=(sender, name, composite, alone), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        process.kill()
        return Trial(name, seconds=seconds, failure=f"stopped after {seconds:.0f} s")
    except EOFError:
        process.join()
        return Trial(name, failure=f"its process ended with code {process.exitcode} (-9: out of memory, mostly)")
    finally:
        process.join()


def _try_and_send(sender: Connection, name: str, composite: str, alone: bool) -> None:
    import torch

    warnings.simplefilter("ignore")
    if not alone:
        torch.set_num_threads(1)
    sender.send(try_out(name, partial(build, name), composite))


def table(trials: Sequence[Trial]) -> str:
    """The trials as a Markdown table, sorted by name."""
    head = "| model | parameters | input | attention | f | leak | unconserved | batch norms left | seconds | failure |"
    lines = [head, "| --- " * (head.count("|") - 1) + "|"]
    for trial in sorted(trials, key=lambda trial: trial.name):
        cells = [
            trial.name,
            _or_dash(trial.parameters, lambda n: f"{n / 1e6:.1f} M"),
            _or_dash(trial.inputs, lambda shapes: ", ".join(" x ".join(map(str, shape)) for shape in shapes)),
            _or_dash(trial.attention, lambda has: "yes" if has else "no"),
            *(_or_dash(value, "{:.0e}".format) for value in (trial.difference, trial.leak, trial.unconserved)),
            _or_dash(trial.batch_norms, str),
            f"{trial.seconds:.0f}",
            (trial.failure or "").replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _or_dash(value: Value | None, shown: Callable[[Value], str]) -> str:
    return "-" if value is None else shown(value)
