"""Which composite should be the default: pixel flipping of pretrained networks on photographs, with intervals.

    python benchmarks/default_composite.py [COMPOSITE ...] [--networks 0 1 2] [--photographs N] [--kept FOLDER]

Patches of 16 x 16 pixels are set to the image's colour, most and least relevant first; what is left of the probability
of the network's own class, relative to the first, is averaged over the share of pixels (area under the curve): MoRF,
lower is better; LeRF, higher is better; and LeRF - MoRF, by which the rows are sorted. EfficientNet-Lite0 to 2,
photographs of scikit-image and scikit-learn, 95 % intervals by bootstrap over networks and photographs, and the p of
Wilcoxon's signed-rank test against the first row. What was measured of an image is kept in FOLDER, and not again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import wilcoxon
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor
from zennit.composites import COMPOSITES, layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus

import fxlrp
from fxlrp.composites import Bounds
from fxlrp.evaluation.several import BASELINES
from fxlrp.zoo import load_lite

PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    **{
        name: getattr(data, name)
        for name in ("chelsea", "coffee", "astronaut", "rocket", "camera", "coins", "clock", "moon", "retina")
    },
    "hubble": data.hubble_deep_field,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "brick": data.brick,
    "grass": data.grass,
    "gravel": data.gravel,
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
}

OPTIONS = {"flipping": {"patch": 16, "steps": 16, "fill": "mean", "score": "probability"}}


def by_rule(rule: object) -> Composite:
    """One rule in every linear layer."""
    return fxlrp.composites.by_layer([((0.0, 1.0), rule)], layer_map=layer_map_base())  # pyright: ignore[reportArgumentType]


def candidates(bounds: Bounds) -> dict[str, Composite | str]:
    """What is compared, by name."""
    found: dict[str, Composite | str] = {
        **{f"epsilon {size:g}": by_rule(Epsilon(size)) for size in (1e-6, 0.1, 0.3, 1.0, 3.0)},
        **{f"gamma {size:g}": by_rule(Gamma(size)) for size in (0.1, 0.25, 1.0)},
        **{
            f"gamma {g:g}, epsilon {e:g}": by_rule(Gamma(g, stabilizer=e)) for g in (0.1, 0.25) for e in (0.1, 0.3, 1.0)
        },
        "z+": by_rule(ZPlus()),
        "alpha2-beta1": by_rule(AlphaBeta(2, 1)),
        **{name: name for name in (*BASELINES, *COMPOSITES) if name != "epsilon_gamma_box"},
        "epsilon_gamma_box": COMPOSITES["epsilon_gamma_box"](*bounds),
        "tutorial": fxlrp.composites.tutorial(*bounds),
        "decreasing_gamma": fxlrp.composites.decreasing_gamma(*bounds),
    }
    return found


def areas(table: fxlrp.evaluation.Table, way: str) -> np.ndarray:
    """MoRF and LeRF of each image, (N, 2), relative to the first point of its curve."""
    found = []
    for row in table.rows:
        curves = [row.curves[way][order] for order in ("morf", "lerf")]
        found.append([np.trapezoid(np.array(scores) / scores[0], shares) for shares, scores in curves])
    return np.array(found)


def interval(values: np.ndarray) -> str:
    values = values[~np.isnan(values)]
    if not len(values):
        return "NaN"
    drawn = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def images(network: int, count: int) -> Tensor:
    loaded = load_lite(network)
    return torch.cat([loaded.input(Image.fromarray(of()).convert("RGB")) for of in list(PHOTOGRAPHS.values())[:count]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "composites", nargs="*", metavar="COMPOSITE", help="of those in the table; all, if there is none"
    )
    parser.add_argument("--networks", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="EfficientNet-Lite N")
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS), metavar="N", help="how many (%(default)s)")
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help="where what is measured is kept")
    args = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {}
    for number in args.networks:
        loaded = load_lite(number)
        ways = candidates(loaded.bounds)
        ways = {name: way for name, way in ways.items() if name in (args.composites or ways)}
        x = images(number, args.photographs)
        kept = None if args.kept is None else args.kept / f"lite{number}.jsonl"
        table = fxlrp.compare(loaded.model, x.split(4), ways, ("flipping",), options=OPTIONS, storage=kept, examples=0)
        for name in ways:
            found.setdefault(name, []).append(areas(table, name))
    values = {name: np.concatenate(each) for name, each in found.items()}
    gap = {name: each[:, 1] - each[:, 0] for name, each in values.items()}
    order = sorted(gap, key=lambda name: -np.nan_to_num(np.nanmean(gap[name]), nan=-9))
    print(
        "| composite | MoRF | LeRF | LeRF - MoRF | p against the first | NaN |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in order:
        apart = gap[order[0]] - gap[name]
        apart = apart[~np.isnan(apart)]
        p = f"{wilcoxon(apart)[1]:.1g}" if apart.any() and len(apart) > 1 else "-"
        missing = int(np.isnan(gap[name]).sum())
        cells = [interval(values[name][:, 0]), interval(values[name][:, 1]), interval(gap[name]), p, str(missing)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
