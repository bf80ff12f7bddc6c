"""Pixel flipping, timed: fxlrp's and Quantus' on the same work, and how much of it is the model's and inpainting's.

    python benchmarks/flipping.py [NETWORK ...] [--images N] [--size PIXELS] [--rounds N] [--fills FILL ...]

Random images and heatmaps; patches of 8 x 8, most relevant first, in as many even steps as `--steps` says, whole
patches at each. Quantus (`pip install quantus`; without it, only fxlrp is timed) is given the same steps of the same
pixels: a heatmap that is the same within each patch, as many elements a step as the patches have, and no check of that
number, which it takes for one of pixels. "black" is 0 for both, and for "inpaint" it is given fxlrp's own function, of
all that is flipped so far. How far the curves of the two differ is the last column. Times are of the processor, on one
thread, interleaved. "model" is the model's own time for as many images; "linear" is a model that takes next to none, so
that its rows are of the metric by itself.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
import torchvision
from performance.measuring import Figure, ratio, seconds
from torch import Tensor, nn

from fxlrp.metrics import inpainting, pixel_flipping

PATCH = 8
BATCH = 64
COLUMNS = (
    "network",
    "fill",
    "model, s",
    "fxlrp, s",
    "of it inpainting",
    "Quantus, s",
    "Quantus / fxlrp",
    "scores differ",
)


def network(name: str) -> nn.Module:
    """A network in evaluation mode, for ten classes."""
    torch.manual_seed(0)
    if name == "linear":
        layers: list[nn.Module] = [nn.AvgPool2d(16), nn.Flatten(), nn.LazyLinear(10)]
        return nn.Sequential(*layers).eval()
    if name == "small":
        conv = lambda a, b: (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        return nn.Sequential(*conv(3, 16), *conv(16, 32), *conv(32, 64), *ends).eval()
    return torchvision.models.get_model(name, weights=None, num_classes=10).eval()


class Work:
    """Images, heatmaps of which every patch is one number, and the steps, as both have them."""

    def __init__(self, name: str, fill: str, images: int, size: int, steps: int) -> None:
        self.model, self.fill = network(name), fill
        rows = -(-size // PATCH)
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(images, 3, 8, 8, generator=generator)
        noise = torch.rand(images, 3, size, size, generator=generator)
        smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
        self.x = (smooth + 0.2 * (noise - 0.5)).clamp(0, 1)
        heat = torch.randn(images, rows, rows, generator=generator)
        self.heat = heat.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, :size, :size].contiguous()
        self.at_once = max(1, -(-(rows**2) // steps))
        self.counts = list(range(self.at_once, rows**2, self.at_once))
        self.classes = torch.arange(images) % 10
        with torch.no_grad():
            self.model(self.x[:1])

    def alone(self) -> None:
        """The model, on as many images."""
        with torch.inference_mode():
            for _ in range(len(self.counts) + 1):
                for some in self.x.split(BATCH):
                    self.model(some)

    def ours(self) -> Tensor:
        """The scores, (B, S)."""
        options = {"fill": self.fill, "bounds": (0.0, 1.0), "patch": PATCH, "steps": self.counts, "batch_size": BATCH}
        return pixel_flipping(self.model, self.x, self.heat, self.classes, **options).scores[:, 1:]

    def inpainting(self) -> None:
        """What of `ours` is inpainting."""
        with torch.no_grad():
            shares = torch.tensor(self.counts) / (self.heat[0].numel() / PATCH**2)
            for image, heat in zip(self.x, self.heat, strict=True):
                least = heat.flatten().quantile(1 - shares.clamp(max=1)).reshape(-1, 1, 1, 1)
                inpainting.inpainted(image, heat >= least, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))

    def quantus(self, quantus: Any) -> Tensor:
        """The scores by Quantus, (B, S)."""
        metric = quantus.PixelFlipping(
            features_in_step=self.at_once * PATCH**2 * 3,
            perturb_func=self._inpaint() if self.fill == "inpaint" else None,
            perturb_baseline=0.0,
            normalise=False,
            disable_warnings=True,
        )
        metric.custom_preprocess = lambda **_: None
        arguments = {"x_batch": self.x.numpy(), "y_batch": self.classes.numpy(), "a_batch": self.heat[:, None].numpy()}
        return torch.tensor(metric(model=self.model, softmax=False, batch_size=BATCH, **arguments))

    def _inpaint(self) -> Callable[..., Any]:
        gone = torch.zeros(len(self.x), self.x[0].numel(), dtype=torch.bool)

        def perturb(arr: Any, indices: Any, **_: Any) -> Any:
            gone.scatter_(1, torch.from_numpy(indices), True)
            masks = gone.reshape(self.x.shape).any(1, keepdim=True)
            low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
            filled = [inpainting.inpainted(*each, low, high)[0] for each in zip(self.x, masks[:, None], strict=True)]
            return torch.stack(filled).reshape(arr.shape).numpy()

        return perturb


def timed(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor, by method: interleaved; on one thread, what a machine without other work would take."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def row(name: str, fill: str, args: argparse.Namespace, quantus: Any) -> list[str]:
    """A row of the table."""
    work = Work(name, fill, args.images, args.size, args.steps)
    runs: dict[str, Callable[[], object]] = {"model": work.alone, "fxlrp": work.ours}
    runs |= {"inpainting": work.inpainting} if fill == "inpaint" else {}
    runs |= {"quantus": lambda: work.quantus(quantus)} if quantus else {}
    times = timed(runs, args.rounds)
    shown = lambda name: printed(seconds(times[name])) if name in times else "-"
    share = printed(ratio(times["inpainting"], times["fxlrp"])) if "inpainting" in times else "0"
    faster, differ = "-", "-"
    if quantus:
        faster = printed(ratio(times["quantus"], times["fxlrp"]))
        differ = f"{(work.ours() - work.quantus(quantus)).abs().max():.0e}"
    return [name, fill, shown("model"), shown("fxlrp"), share, shown("quantus"), faster, differ]


def printed(figure: Figure) -> str:
    return f"{figure.value:.2f} ± {figure.noise:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=["linear", "small", "resnet18"])
    parser.add_argument("--fills", nargs="+", default=["black", "inpaint"], choices=["black", "inpaint"])
    parser.add_argument("--images", type=int, default=50, metavar="N")
    parser.add_argument(
        "--steps", type=int, default=25, metavar="N", help="model calls for each image, after the first"
    )
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quantus = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantus = importlib.import_module("quantus")
        except ImportError:
            print("Quantus is not installed: fxlrp alone is timed", file=sys.stderr)
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for name in args.networks:
            for fill in args.fills:
                print(f"| {' | '.join(row(name, fill, args, quantus))} |", flush=True)
    peers = f"Quantus {version('quantus')}" if quantus else "no Quantus"
    print(
        f"\n`python benchmarks/flipping.py {' '.join(sys.argv[1:])}`, {date.today()}: {args.images} images of "
        f"{args.size} x {args.size}, {args.steps} steps, {peers}, torch {version('torch').split('+')[0]}, OpenCV "
        f"{inpainting.opencv().__version__}, one thread of {platform.machine()}, {args.rounds} rounds, "
        "medians ± half the range."
    )


if __name__ == "__main__":
    main()
