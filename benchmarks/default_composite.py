"""Which composite should be the default: pixel flipping of pretrained networks on photographs, with intervals.

    python benchmarks/default_composite.py [COMPOSITE ...] [--networks 0 1 2] [--photographs N] [--kept FOLDER]

Patches of 16 x 16 pixels are set to the image's colour, most and least relevant first; what is left of the probability
of the network's own class, relative to the first, is averaged over the share of pixels (area under the curve): MoRF,
lower is better; LeRF, higher is better; and LeRF - MoRF, by which the rows are sorted. EfficientNet-Lite0 to 2 (`pip
install 'fxlrp[evaluate,lite]' scikit-learn`), photographs of scikit-image and scikit-learn, 95 % intervals by bootstrap
over networks and photographs, and the p of Wilcoxon's signed-rank test against the first row. What was measured of an
image is kept in FOLDER, and not again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor
from zennit.composites import COMPOSITES, layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus

import fxlrp
from fxlrp.composites import Bounds
from fxlrp.evaluation.several import BASELINES
from fxlrp.evaluation.storage import ImageRow
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

ORDERS = ("morf", "lerf")
MEASURES = ("MoRF", "LeRF", "LeRF - MoRF")

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


def relative(row: ImageRow, number: int) -> ImageRow:
    """The areas under an image's curves, relative to their first points."""
    values = {}
    for way, curves in row.curves.items():
        pairs = [curves[order] for order in ORDERS]
        found = [np.trapezoid(np.array(scores) / scores[0], shares) for shares, scores in pairs]
        values[way] = dict(zip(MEASURES, (*found, found[1] - found[0]), strict=True))
    return ImageRow(number, values)


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
    rows, ways = list[ImageRow](), list[str]()
    for network in args.networks:
        loaded = load_lite(network)
        chosen = {
            name: way
            for name, way in candidates(loaded.bounds).items()
            if name in args.composites or not args.composites
        }
        x = images(network, args.photographs)
        kept = None if args.kept is None else args.kept / f"lite{network}.jsonl"
        table = fxlrp.compare(
            loaded.model, x.split(4), chosen, ("flipping",), options=OPTIONS, storage=kept, examples=0
        )
        rows += [relative(row, len(rows) + i) for i, row in enumerate(table.rows)]
        ways = list(table.ways)
    table = fxlrp.evaluation.Table(rows, ways)
    first, *_ = ranked = table.ranked(MEASURES[-1])
    print(f"| composite | {' | '.join(MEASURES)} | p against the first |\n|{' --- |' * 5}")
    for way in ranked:
        p = "-" if way == first else f"{table.difference(MEASURES[-1], first, way).p:.1g}"
        print(f"| {way} | {' | '.join(str(table.summary(name, way)) for name in MEASURES)} | {p} |")


if __name__ == "__main__":
    main()
