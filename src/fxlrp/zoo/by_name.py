"""Finds models by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import MissingExtraError, ModelError, TargetError
from ..weights import trained
from ..wording import near_to

__all__ = ["LoadedModel", "class_names", "find_class", "load"]

RANDOM = "random"
"""What stands for a file of weights where random ones are wanted, as training leaves them."""

INITIAL = "initial"
"""The same, where training is to begin."""

Transform = Callable[[Image.Image], Tensor]

Parts = tuple[nn.Module, Transform, Sequence[float], Sequence[float]]
"""A model, its transform, and the mean and deviation of each channel that this normalises by."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what it takes to feed it, and to read its output.

    Attributes
    ----------
    model : nn.Module
        In eval mode.
    transform : callable
        From a PIL image to the model's input, (3, H, W), normalised.
    mean, std : Tensor
        (1, 3, 1, 1): what the transform subtracts from, and divides, values in [0, 1] by.
    classes : list of str
        A name for each output.
    """

    model: nn.Module
    transform: Transform
    mean: Tensor
    std: Tensor
    classes: list[str]

    def input(self, image: Image.Image) -> Tensor:
        """The model's input, (1, 3, H, W), for a PIL image."""
        return self.transform(image.convert("RGB"))[None]

    def photo(self, x: Tensor) -> Tensor:
        """What the model sees, as an image again: inputs (B, 3, H, W) to values in [0, 1]."""
        return (x * self.std + self.mean).clamp(0, 1)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value that an input can have, each (1, 3, 1, 1)."""
        return -self.mean / self.std, (1 - self.mean) / self.std


def load(name: str, weights: str | Path | None = None, *, classes: int = 1000) -> LoadedModel:
    """Load a model of torchvision or timm.

    Parameters
    ----------
    name : str
        ``torchvision:NAME`` or ``timm:NAME``.
    weights : str, Path or None
        A state dict (.pth, .pt or .safetensors; also under the keys "state_dict" or "model"); "random", as training
        leaves them, always the same; "initial", as the library begins with, drawn from the global generator. None: the
        library's pretrained weights, which it may have to download.
    classes : int
        The number of the model's outputs.

    Returns
    -------
    LoadedModel
        In eval mode, on the CPU.

    Raises
    ------
    ModelError
        If there is no such model, its weights cannot be had, do not fit, or are not finite.
    MissingExtraError
        If timm is needed and not installed.
    """
    library, _, short = name.partition(":")
    if library not in _LIBRARIES or not short:
        raise ModelError(f"a model is given as torchvision:NAME or timm:NAME, not '{name}'")
    pretrained = weights is None
    with _seeded() if str(weights) == RANDOM else nullcontext():
        model, transform, mean, std = _LIBRARIES[library](short, pretrained, classes)
    if str(weights) == RANDOM:
        # Fresh batch norms and biases would make any rule look well.
        trained(model).float()
    elif weights is not None and str(weights) != INITIAL:
        _load_weights(model, Path(weights))
    mean, std = (torch.as_tensor(value, dtype=torch.float32).reshape(1, 3, 1, 1) for value in (mean, std))
    # Of timm's pretrained models, some know other classes than ImageNet's 1000.
    return LoadedModel(model.eval(), transform, mean, std, class_names(getattr(model, "num_classes", classes)))


def class_names(count: int) -> list[str]:
    """Names of a model's outputs: ImageNet's if there are 1000 of them, else "class 0", "class 1", ..."""
    if count != 1000:
        return [f"class {index}" for index in range(count)]
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.DEFAULT.meta["categories"]


def find_class(classes: Sequence[str], wanted: str) -> int:
    """The index of a class that is given by its index, or by its name in any case.

    Raises
    ------
    TargetError
        If there is none.
    """
    if wanted.strip().isdecimal():
        index = int(wanted)
        if index < len(classes):
            return index
        raise TargetError(
            f"class {index} is out of range: the model has {len(classes)} classes, 0 to {len(classes) - 1}"
        )
    lower = [name.lower() for name in classes]
    if wanted.lower() in lower:
        return lower.index(wanted.lower())
    within = [name for name in lower if wanted.lower() in name]
    raise TargetError(f"there is no class '{wanted}'.{near_to(wanted.lower(), lower, within)}")


def _torchvision(name: str, pretrained: bool, classes: int) -> Parts:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"torchvision has no classifier '{name}'.{near_to(name, known)}")
    best = torchvision.models.get_model_weights(name)["DEFAULT"]
    if pretrained:
        _check_pretrained_classes(name, classes)
        try:
            model = torchvision.models.get_model(name, weights=best)
        except Exception as error:
            raise _no_download(f"torchvision:{name}", error) from error
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    transform = best.transforms()
    return model, transform, transform.mean, transform.std


def _timm(name: str, pretrained: bool, classes: int) -> Parts:
    try:
        import timm
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform
    except ImportError as error:
        raise MissingExtraError(f"timm:{name}", "timm", "timm") from error
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model '{name}'.{near_to(architecture, timm.list_models())}")
    if pretrained:
        _check_pretrained_classes(name, classes)
        if not timm.models.is_model_pretrained(name):
            raise ModelError(f"timm has no pretrained weights for '{name}': pass --weights FILE, or --weights random")
        # Hubs fail in many ways, with errors of libraries that need not be installed.
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:
            raise _no_download(f"timm:{name}", error) from error
    else:
        model = timm.create_model(name, pretrained=False, num_classes=classes)
    config = resolve_data_config({}, model=model)
    return model, cast(Transform, create_transform(**config)), config["mean"], config["std"]


_LIBRARIES: dict[str, Callable[[str, bool, int], Parts]] = {"torchvision": _torchvision, "timm": _timm}


def _check_pretrained_classes(name: str, classes: int) -> None:
    if classes != 1000:
        raise ModelError(
            f"the pretrained '{name}' does not come with {classes} classes: pass --weights FILE, or --weights random"
        )


def _no_download(name: str, error: Exception) -> ModelError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ModelError(
        f"the pretrained weights of {name} cannot be downloaded ({reason}): pass --weights FILE, or --weights random"
    )


@contextmanager
def _seeded() -> Iterator[None]:
    """What is drawn within is always the same, and the global generator is where it was afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        yield


def _load_weights(model: nn.Module, path: Path) -> None:
    state = _read_weights(path)
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} ({tuple(state[key].shape)} for {tuple(value.shape)})"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    parts = (("missing", missing), ("not the model's", unexpected), ("of another shape", shapes))
    faults = [f"{what}: {_some(keys)}" for what, keys in parts if keys]
    if faults:
        raise ModelError(f"{path} does not fit the model; {'; '.join(faults)}")
    # A constant of the model's own may be infinite.
    finite = [key for key, value in expected.items() if value.isfinite().all()]
    try:
        model.load_state_dict(state)
    except Exception as error:  # Of all kinds: for tensors that are sparse, without data, ...
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} holds tensors that the model cannot take: {reason}") from error
    broken = [key for key in finite if not expected[key].isfinite().all()]
    if broken:
        raise ModelError(f"{path} holds weights that are not finite (NaN or infinite): {_some(broken)}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    read = _read_safetensors if path.suffix == ".safetensors" else partial(torch.load, weights_only=True)
    try:
        path.open("rb").close()
        state = read(path, map_location="cpu")
    except MissingExtraError:
        raise
    # Of broken files, parsers raise whatever they happen to.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        raise ModelError(
            f"{path} is not a file of weights, or holds more than weights, which is not safe to load"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ModelError(f"{path} holds no state dict: it should map names to tensors")
    return state


def _read_safetensors(path: Path, map_location: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "safetensors", "timm") from error
    return load_file(path, map_location)


def _some(keys: Sequence[str], count: int = 3) -> str:
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more
