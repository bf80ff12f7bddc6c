"""Which composite should be the default: how fast the logit falls when the most relevant patches are blanked first.

    python benchmarks/default_composite.py [COMPOSITE ...] [--photographs N]

Patch flipping (Samek et al. 2017): patches of 16 x 16 pixels are set to the mean colour, most relevant first; the area
over the curve of the explained logit, relative to it, is averaged over 50 % of the patches. Higher is better; "random"
is the mean of five random orders. EfficientNet-Lite0 of the demo, three photographs of scikit-image, the most
probable class of each: three explanations, which is few.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from skimage import data
from zennit.composites import COMPOSITES

import fxlrp
from fxlrp.errors import CompositeError
from fxlrp.zoo import load_lite0

PATCH = 16


def area_over_curve(model: torch.nn.Module, x: torch.Tensor, target: int, order: torch.Tensor) -> float:
    """Mean relative fall of the logit, over the first half of the patches in this order."""
    columns = x.shape[-1] // PATCH
    steps, image = [x[0].clone()], x[0].clone()
    mean = x.mean((0, 2, 3))[:, None, None]
    for index in order[: len(order) // 2].tolist():
        row, column = divmod(index, columns)
        image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = mean
        steps.append(image.clone())
    with torch.no_grad():
        logits = torch.cat([model(batch)[:, target] for batch in torch.stack(steps).split(8)])
    return float((1 - logits / logits[0]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("composites", nargs="*", metavar="COMPOSITE", default=list(COMPOSITES))
    parser.add_argument("--photographs", type=int, default=3, metavar="N", help="how many of the three")
    args = parser.parse_args()
    torch.manual_seed(0)
    loaded = load_lite0()
    photographs = (data.chelsea(), data.coffee(), data.astronaut())[: args.photographs]
    inputs = [loaded.input(Image.fromarray(photo)) for photo in photographs]
    cases = [(x, int(c)) for x in inputs for c in loaded.model(x)[0].topk(1).indices]
    patches = (inputs[0].shape[-1] // PATCH) ** 2
    orders = [torch.randperm(patches) for _ in range(5)]
    random = [area_over_curve(loaded.model, x, c, order) for x, c in cases for order in orders]
    print("| composite | area over the curve |\n| --- | --- |")
    print(f"| random | {sum(random) / len(random):.3f} |", flush=True)
    for name in args.composites:
        try:
            twin = fxlrp.convert(loaded.model, name, example_inputs=inputs[0])
        except CompositeError:
            print(f"| {name} | matches nothing: the network has no ReLU |")
            continue
        scores = []
        for x, c in cases:
            heat = torch.nn.functional.avg_pool2d(twin(x, c).relevance.sum(1), PATCH).flatten()
            scores.append(area_over_curve(loaded.model, x, c, heat.argsort(descending=True)))
        print(f"| {name} | {sum(scores) / len(scores):.3f} |", flush=True)


if __name__ == "__main__":
    main()
