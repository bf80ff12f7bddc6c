"""What arrives at the pixels: fxlrp and zennit with its stock canonizers, on torchvision's classifiers.

    python benchmarks/conservation.py [MODEL ...] [-o FILE]

Each model has a child process of its own. The copy that is measured has no biases (those of batch norms and their
running means too): nothing but stabilizers takes relevance, so that under epsilon-plus the whole seed should arrive.
Columns: how much f changes by fxlrp's canonization and by zennit's, fxlrp's largest leak of a node (of the model with
its biases), the deviation of the sum at the pixels from the seed for both, and what fxlrp's ledger says of it: the
shares of the stabilizers (windows without a positive contribution have nothing to share out) and of definitions
(softmax). Measured with what is installed; another zennit through PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.progress import track
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

import fxlrp
from fxlrp.testing import trained
from fxlrp.testing.models import for_zennit
from fxlrp.weights import settled

CLASSES = 10
SECONDS = 900
LARGEST = 150e6
"""Parameters: of the larger ones, the variants are smaller and in the table."""

Figures = dict[str, Any]


def model_of(name: str, *, biases: bool) -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, as training would leave them, and an input of a small size."""
    torch.manual_seed(0)
    size = {"inception_v3": 75, "maxvit_t": 224}.get(name, 64)
    options: Figures = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options = {"image_size": size}
    model = trained(get_model(name, num_classes=CLASSES, **options)).eval()
    for key, value in model.state_dict().items():
        if not biases and key.endswith(("bias", "running_mean", "class_token", "pos_embedding")):
            value.zero_()
        elif value.ndim > 1 and not value.any():  # A head that starts at zero would leave nothing to explain.
            value.normal_(0, 0.02)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    return settled(model, x), x


def deviation(relevance: torch.Tensor, seed: torch.Tensor) -> float:
    """How far the sum of the relevance is from that of the seed, relative to it."""
    return abs(relevance.sum() - seed.sum()).item() / abs(seed.sum()).item()


def measure(name: str) -> Figures:
    """The figures of one model."""
    model, x = model_of(name, biases=True)
    twin = fxlrp.convert(model, "epsilon_plus")
    ledger = fxlrp.audit(twin, x)
    with torch.no_grad():
        output = model(x)
    found: Figures = {"f": _relative(twin(x).output, output), "leak": ledger.leak, "unconserved": ledger.unconserved}
    model, x = model_of(name, biases=False)
    with torch.no_grad():
        output = model(x)
    seed = torch.where(output == output.max(), output, 0.0)
    ledger = fxlrp.audit(fxlrp.convert(model, "epsilon_plus"), x, seed)
    found["fxlrp"] = abs(sum(ledger.inputs.values()) - ledger.seed) / abs(ledger.seed)
    for share in ("stabilizer", "definition"):
        found[share] = sum(getattr(row, share) for row in ledger.rows) / ledger.seed
    return found | _zennit(model, x, output, seed)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _zennit(model: nn.Module, x: torch.Tensor, output: torch.Tensor, seed: torch.Tensor) -> Figures:
    kinds = {torchvision.models.VGG: VGGCanonizer, torchvision.models.ResNet: ResNetCanonizer}
    composite = EpsilonPlus(canonizers=[kinds.get(type(model), SequentialMergeBatchNorm)()])
    try:
        with Gradient(model=for_zennit(model, x), composite=composite) as attributor:
            answer: Any = attributor(x, seed)
        theirs, relevance = answer
    # Whatever it raises is its result.
    except Exception as error:
        return {"zennit": None, "zennit f": None, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"zennit": deviation(relevance, seed), "zennit f": _relative(theirs, output)}


def _in_a_child(name: str) -> Figures:
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": done.stderr.strip()[-300:]}


def _cell(value: float | None) -> str:
    return "raises" if value is None else f"{value:.0e}" if abs(value) < 1e-3 or abs(value) > 1e4 else f"{value:.2g}"


COLUMNS = {
    "f": "f, fxlrp",
    "leak": "leak",
    "zennit f": "f, zennit",
    "fxlrp": "sum off, fxlrp",
    "stabilizer": "stabilizers took",
    "definition": "definitions took",
    "zennit": "sum off, zennit",
}


def table(results: dict[str, Figures]) -> str:
    """The results as Markdown."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for name, found in sorted(results.items()):
        known = "f" in found
        cells = [_cell(found[key]) if key in found else "" for key in COLUMNS] if known else [found["error"]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    within = {
        peer: sum(found.get(peer) is not None and found[peer] <= 1e-2 for found in results.values())
        for peer in ("fxlrp", "zennit")
    }
    raised = sum("error" in found and "f" in found for found in results.values())
    lines += [
        "",
        f"{len(results)} models; the sum is within 1e-2 of the seed for {within['fxlrp']} with fxlrp, for "
        f"{within['zennit']} with zennit {version('zennit')} (it raised on {raised}). torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all of torchvision's classifiers")
    parser.add_argument("-o", "--output", type=Path, help="results as JSON; those that are there are not made again")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(args.one)))
        return
    results: dict[str, Figures] = json.loads(args.output.read_text()) if args.output and args.output.exists() else {}
    for name in track(args.models or _all(), description="models"):
        if name not in results:
            results[name] = _in_a_child(name)
        if args.output:
            args.output.write_text(json.dumps(results, indent=1))
    print(table(results))


def _all() -> list[str]:
    weights: dict[str, Any] = {name: get_model_weights(name) for name in list_models(module=torchvision.models)}
    return [name for name, found in weights.items() if found.DEFAULT.meta["num_params"] <= LARGEST]


if __name__ == "__main__":
    main()
