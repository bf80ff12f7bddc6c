"""Time and memory of one heatmap, against gradient x input and zennit, on one thread.

    python benchmarks/heatmap.py [MODEL ...] [--batch N] [--size N] [--rounds N]

Prints ratios of interleaved medians: in each round every method runs once. Memory is the growth of the process's peak
by one call, in a process of its own for each method. Networks have random weights, statistics and biases.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Convolution

import fxlrp

RULES = {
    "epsilon": lambda: Epsilon(1e-6),
    "epsilon-plus": ZPlus,
    "gamma": lambda: Gamma(0.25),
    "alpha2-beta1": lambda: AlphaBeta(2, 1),
}


def composite(name: str, canonizers: list | None = None) -> LayerMapComposite:
    return LayerMapComposite(
        [*layer_map_base(), (Convolution, RULES[name]()), (torch.nn.Linear, Epsilon(1e-6))], canonizers=canonizers
    )


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_(0, 0.2)
    return model


def methods_of(name: str, x: torch.Tensor, only: str | None = None) -> dict:
    """Each method as a function without arguments, ready to run."""
    model = model_of(name)
    target = 7

    def gradient_times_input():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
        return leaf.detach() * gradient

    def with_zennit(rule):
        canonizer = VGGCanonizer() if name.startswith("vgg") else ResNetCanonizer()
        attributor = Gradient(model=model_of(name), composite=composite(rule, [canonizer]))
        attributor.__enter__()
        seed = torch.eye(1000)[[target] * len(x)]
        return lambda: attributor(x, seed)

    def with_fxlrp(rule):
        twin = fxlrp.convert(model, composite(rule), example_inputs=x)
        return lambda: twin(x, target)

    makers: dict[str, Callable[[], Callable[[], object]]] = {"gradient x input": lambda: gradient_times_input}
    for rule in RULES:
        makers[f"{rule} zennit"] = lambda rule=rule: with_zennit(rule)
        makers[f"{rule} fxlrp"] = lambda rule=rule: with_fxlrp(rule)
    return {key: make() for key, make in makers.items() if only in (None, key)}


def peak() -> float:
    """Peak memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(name: str, method: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, name, "--child", method, "--batch", str(args.batch), "--size", str(args.size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def grow(name: str, method: str, x: torch.Tensor) -> float:
    (run,) = methods_of(name, x, only=method).values()
    # What conversion needed is not to hide what the call needs: fill the peak's head room first.
    before = peak()
    current = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    filler = torch.ones(int(max(0.0, before - current) * 2**18))
    before = peak()
    run()
    del filler
    return peak() - before


def measure(name: str, args: argparse.Namespace) -> None:
    x = torch.randn(args.batch, 3, args.size, args.size)
    methods = methods_of(name, x)
    times: dict[str, list[float]] = {key: [] for key in methods}
    for round_ in range(args.rounds + 1):
        for key, run in methods.items():
            start = time.perf_counter()
            run()
            if round_:
                times[key].append(time.perf_counter() - start)
    unit = statistics.median(times["gradient x input"])
    memory = {key: memory_of(name, key, args) for key in methods}
    base = memory["gradient x input"]
    print(f"\n{name}, batch {args.batch}, {args.size} x {args.size}: gradient x input = {unit:.3f} s, {base:.0f} MiB\n")
    print("| composite | fxlrp | zennit | zennit / fxlrp | memory, fxlrp / zennit |\n| --- | --- | --- | --- | --- |")
    for rule in RULES:
        ours, theirs = (statistics.median(times[f"{rule} {who}"]) for who in ("fxlrp", "zennit"))
        growth = memory[f"{rule} fxlrp"] / memory[f"{rule} zennit"]
        print(f"| {rule} | {ours / unit:.2f} | {theirs / unit:.2f} | {theirs / ours:.2f} | {growth:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet50", "vgg16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(grow(args.models[0], args.child, torch.randn(args.batch, 3, args.size, args.size)))
        return
    print(f"torch {torch.__version__}, one thread, {args.rounds} interleaved rounds, medians; gradient x input = 1")
    for name in args.models:
        measure(name, args)


if __name__ == "__main__":
    main()
