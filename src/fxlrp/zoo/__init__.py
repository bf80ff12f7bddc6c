"""Models of torchvision, timm and transformers: loading one by its name, and putting many through conversion."""

from .by_name import INITIAL, RANDOM, LoadedModel, class_names, find_class, load
from .catalogue import Sample, build, names
from .noise import noise
from .offline import Photo, load_lite, photographs
from .sweep import Sweep
from .trial import Trial, try_out

__all__ = [
    "INITIAL",
    "RANDOM",
    "LoadedModel",
    "Photo",
    "Sample",
    "Sweep",
    "Trial",
    "build",
    "class_names",
    "find_class",
    "load",
    "load_lite",
    "names",
    "noise",
    "photographs",
    "try_out",
]
