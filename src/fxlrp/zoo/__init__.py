"""Models of torchvision, timm and transformers: loading one by its name, and putting many through conversion."""

from .by_name import INITIAL, RANDOM, LoadedModel, class_names, find_class, load
from .catalogue import Sample, build, names
from .sweep import Sweep
from .trial import Trial, try_out

__all__ = [
    "INITIAL",
    "RANDOM",
    "LoadedModel",
    "Sample",
    "Sweep",
    "Trial",
    "build",
    "class_names",
    "find_class",
    "load",
    "names",
    "try_out",
]
