"""One training step of an ISNet against the plain classifier's, and against the number of classes.

    python benchmarks/isnet.py [MODEL ...] [--batch N] [--size N] [--rounds N] [--threads N]
    python benchmarks/isnet.py --cuda [MODEL ...]

A step is forward, loss, backward, gradient clipping and SGD with momentum, in training mode. Prints ratios of
interleaved medians: in each round every method takes one step. With ``--cuda``: 224 x 224, bf16 autocast, eager and
`torch.compile`, with the peak of the allocated memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

import fxlrp

VARIANTS = ("stochastic", "selective", "dual", "original")


def data(args: argparse.Namespace, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(args.batch, 3, args.size, args.size, generator=generator)
    labels = torch.randint(10, (args.batch,), generator=generator)
    masks = torch.zeros(args.batch, args.size, args.size)
    masks[:, args.size // 4 : -args.size // 4, args.size // 4 : -args.size // 4] = 1
    return x.to(device), labels.to(device), masks.to(device)


def step_of(
    name: str,
    variant: str | None,
    batch: tuple[torch.Tensor, ...],
    *,
    classes: int = 10,
    lds: bool = False,
    compiled=False,
) -> Callable[[], None]:
    """A training step as a function without arguments, ready to run."""
    torch.manual_seed(0)
    x, labels, masks = batch
    model = torchvision.models.get_model(name, num_classes=classes).to(x.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    module, loss = model, None
    if variant is not None:
        module = fxlrp.ISNet(model, variant, deep_supervision=lds)
        pairs = [(1.0, 25.0)] * (2 if variant == "dual" else 1)
        loss = fxlrp.ISNetLoss(ranges=dict.fromkeys(module(x).heatmaps, pairs))
    if compiled:
        module = torch.compile(module)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            out = module(x)
            total = nn.functional.cross_entropy(out, labels) if loss is None else loss(out, labels, masks).total
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def timed(steps: dict[str, Callable[[], None]], rounds: int, cuda: bool) -> dict[str, float]:
    """Medians, in seconds, of interleaved steps; the first round does not count."""
    times: dict[str, list[float]] = {key: [] for key in steps}
    for round_ in range(rounds + 1):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            if round_:
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}


def on_cpu(name: str, args: argparse.Namespace) -> None:
    batch = data(args, "cpu")
    steps = {"plain": step_of(name, None, batch)}
    for variant in VARIANTS:
        for lds in (False, True):
            steps[f"{variant} {lds}"] = step_of(name, variant, batch, lds=lds)
    found = timed(steps, args.rounds, False)
    unit = found["plain"]
    print(f"\n{name}, batch {args.batch}, {args.size} x {args.size}: the plain step takes {unit:.3f} s\n")
    print("| variant | step / plain | with LDS | 10 -> 1000 classes |\n| --- | --- | --- | --- |")
    for variant in VARIANTS:
        grown = "-"
        if variant != "original":
            pair = {classes: step_of(name, variant, batch, classes=classes) for classes in (10, 1000)}
            few, many = timed({str(key): step for key, step in pair.items()}, args.rounds, False).values()
            grown = f"{many / few:.2f}"
        ratios = " | ".join(f"{found[f'{variant} {lds}'] / unit:.2f}" for lds in (False, True))
        print(f"| {variant} | {ratios} | {grown} |", flush=True)


def on_cuda(name: str, args: argparse.Namespace) -> None:
    batch = data(args, "cuda")
    print(f"\n{name}, batch {args.batch}, {args.size} x {args.size}, bf16 autocast\n")
    print("| step | eager, ms | / plain | compiled, ms | / plain | peak, GiB |\n| --- | --- | --- | --- | --- | --- |")
    units: dict[bool, float] = {}
    for variant, lds in [(None, False), *((variant, lds) for variant in VARIANTS for lds in (False, True))]:
        cells, memory = [], 0.0
        for compiled in (False, True):
            step = step_of(name, variant, batch, lds=lds, compiled=compiled)
            for _ in range(3):
                step()
            torch.cuda.reset_peak_memory_stats()
            taken = timed({"step": step}, args.rounds, True)["step"]
            units.setdefault(compiled, taken)
            cells.append(f"{1000 * taken:.1f} | {taken / units[compiled]:.2f}")
            if not compiled:
                memory = torch.cuda.max_memory_allocated() / 2**30
        label = "plain" if variant is None else variant + (", LDS" if lds else "")
        print(f"| {label} | {' | '.join(cells)} | {memory:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18", "resnet50", "densenet121"])
    parser.add_argument("--batch", type=int, help="8; with --cuda 64")
    parser.add_argument("--size", type=int, help="64; with --cuda 224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    args.batch, args.size = args.batch or (64 if args.cuda else 8), args.size or (224 if args.cuda else 64)
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.cuda else f"{args.threads} thread(s)"
    print(f"torch {torch.__version__}, {where}, {args.rounds} interleaved rounds, medians; the plain step = 1")
    for name in args.models:
        (on_cuda if args.cuda else on_cpu)(name, args)


if __name__ == "__main__":
    main()
