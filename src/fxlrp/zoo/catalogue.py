"""Which image classifiers a library has, and how one of them is built, small and with an input that it takes."""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import MissingExtraError, ModelError
from ..weights import settled, trained

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig

__all__ = ["LIBRARIES", "Sample", "build", "names"]

CLASSES = 10
SIZES = (64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
"""Of images, in pixels: the first that a model takes is its own."""

LARGEST = 150e6
"""Parameters: of a family whose smallest model has more, none is taken."""


Progress = Callable[[Iterable[str]], Iterable[str]]


class Sample(NamedTuple):
    """A model in evaluation mode, with random weights as training leaves them (float64), and inputs for it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


def names(what: str, *, every: bool = False, progress: Progress = iter) -> list[str]:
    """The models that a word stands for.

    Parameters
    ----------
    what : str
        A library ("torchvision", "timm", "transformers"), or a model of one (``timm:resnet10t``), or a function of
        one's own (``package.module:function``), which returns a model, or a model and a tuple of inputs.
    every : bool
        Of timm, all of its models. Without, the smallest of each family of names (the part before the first
        underscore) with at most 150 million parameters.
    progress : callable
        Wraps what takes long to walk through.

    Raises
    ------
    ModelError
        If it is neither.
    MissingExtraError
        If the library is not installed.
    """
    if what in LIBRARIES:
        library = LIBRARIES[what]
        found = library.names()
        if not every:
            found = library.chosen(found, progress)
        return [f"{what}:{name}" for name in found]
    if ":" not in what:
        raise ModelError(
            f"'{what}' is no library ({', '.join(LIBRARIES)}); a model is given as timm:NAME, a function of your own "
            "that returns one as package.module:function"
        )
    return [what]


def build(name: str) -> Sample:
    """A model by its name, as in `names`, the same each time.

    Parameters
    ----------
    name : str
        ``library:model`` or ``package.module:function``.

    Raises
    ------
    ModelError
        If there is no such model, or it takes none of the inputs tried.
    """
    library, _, short = name.partition(":")
    torch.manual_seed(0)
    made = LIBRARIES[library].build(short) if library in LIBRARIES else _from_outside(library, short)
    model = trained(made.model).eval()
    with torch.no_grad():
        for value in model.parameters():
            # A head that starts at zero would leave nothing to explain.
            if value.ndim > 1 and value.is_floating_point() and not value.any():
                value.normal_(0, 0.02)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in made.inputs)
    return Sample(settled(model, *inputs), inputs)


def _from_outside(module: str, function: str) -> Sample:
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"there is no function {function} in {module}: {error}") from error
    if isinstance(made, nn.Module):
        return _with_images(lambda size: made, _images)
    model, inputs = made
    return Sample(model, inputs if isinstance(inputs, tuple) else (inputs,))


def _images(model: nn.Module, size: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def _with_images(
    make: Callable[[int], nn.Module],
    inputs: Callable[[nn.Module, int], tuple[Tensor, ...]],
    sizes: Sequence[int] = SIZES,
) -> Sample:
    """The model, with images of the first of these sizes that it takes."""
    refused = "it takes no size"
    for size in sizes:
        try:
            model = make(size).eval()
            x = inputs(model, size)
            with torch.no_grad():
                model(*x)
        # Models refuse sizes in many ways.
        except Exception as error:
            refused = f"{type(error).__name__}: {error}"
            continue
        return Sample(model, x)
    raise ModelError(f"no image of {sizes[0]} to {sizes[-1]} pixels fits: {refused}")


class _Library(ABC):
    @abstractmethod
    def names(self) -> list[str]:
        """All its classifiers."""

    def chosen(self, found: list[str], progress: Progress) -> list[str]:
        """Of these, enough to speak for all."""
        return found

    @abstractmethod
    def build(self, name: str) -> Sample:
        """One of them, as it is made, with an input that it takes."""


class _Torchvision(_Library):
    def names(self) -> list[str]:
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)

    def build(self, name: str) -> Sample:
        import torchvision

        options: dict[str, int] = {"num_classes": CLASSES}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        make = inspect.signature(torchvision.models.get_model_builder(name))
        sized = "VisionTransformer" in str(make.return_annotation)
        return _with_images(
            lambda size: torchvision.models.get_model(name, **options, **({"image_size": size} if sized else {})),
            _images,
        )


class _Timm(_Library):
    def names(self) -> list[str]:
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError("timm's models", "timm", "timm") from error
        return timm.list_models()

    def build(self, name: str) -> Sample:
        self.names()
        import timm

        own = timm.get_pretrained_cfg(name, allow_unregistered=True)
        sizes = SIZES if own is None else sorted({*SIZES, own.input_size[-1]})
        return _with_images(lambda size: self.make(name, size), _images, sizes)

    @staticmethod
    def make(name: str, size: int | None = None) -> nn.Module:
        """The model; for that size, where it has to know."""
        import timm

        own = timm.get_pretrained_cfg(name, allow_unregistered=True)
        sized = size is not None and own is not None and own.fixed_input_size
        options: dict[str, Any] = {"img_size": size} if sized else {}
        return timm.create_model(name, num_classes=CLASSES, **options)

    def chosen(self, found: list[str], progress: Progress) -> list[str]:
        """The smallest of each family, by the number of parameters, which is had without making any."""
        smallest: dict[str, tuple[float, str]] = {}
        for name in progress(found):
            try:
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = self.make(name)
                size = float(sum(parameter.numel() for parameter in model.parameters()))
            # A model that looks at its values while it is made; it is the last of its family.
            except Exception:
                size = LARGEST
            family = name.split("_")[0]
            smallest[family] = min(smallest.get(family, (float("inf"), "")), (size, name))
        return [name for size, name in smallest.values() if size <= LARGEST]


class _Transformers(_Library):
    def names(self) -> list[str]:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("the models of transformers", "transformers", "zoo") from error
        found = (name for name in dir(transformers) if "ForImageClassification" in name)
        return sorted(name for name in found if not name.startswith("Auto"))

    def build(self, name: str) -> Sample:
        import transformers

        if name not in self.names():
            raise ModelError(f"transformers has no classifier '{name}'")
        kind = getattr(transformers, name)
        if kind.main_input_name == "input_ids" or "input_ids" in inspect.signature(kind.forward).parameters:
            raise ModelError(f"{name} takes token ids, not images: no relevance can go to these")
        options = next((options for start, options in _OPTIONS.items() if name.startswith(start)), {})
        make = lambda size: kind(_shrunk(kind.config_class(num_labels=CLASSES, **options), size))
        try:
            return _with_images(make, _pixels)
        except ModelError:
            return _with_images(make, _processed)


_DEPTHS = ("depths", "num_hidden_layers", "num_blocks", "num_self_attends_per_block")

_OPTIONS: dict[str, dict[str, str | int]] = {
    # Which model of timm it wraps.
    "TimmWrapper": {"architecture": "resnet10t"},
    # As the pretrained ones have it: channels and position encodings do not divide into more.
    "Perceiver": {"num_cross_attention_heads": 1},
}


def _shrunk(config: PretrainedConfig, size: int) -> PretrainedConfig:
    """A configuration with few layers, for images of this size; widths stay as they are."""
    for part in [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]:
        for name in _DEPTHS:
            value = vars(part).get(name)
            if isinstance(value, int):
                setattr(part, name, min(value, 2))
            elif isinstance(value, list | tuple) and all(isinstance(each, int) for each in value):
                setattr(part, name, [min(each, 2) for each in value])
        if isinstance(old := vars(part).get("image_size"), int | list | tuple):
            part.image_size = size if isinstance(old, int) else [size] * len(old)
    return config


def _pixels(model: nn.Module, size: int) -> tuple[Tensor, ...]:
    config = cast("PretrainedConfig", model.config)
    config = getattr(config, "vision_config", config)
    return (torch.randn(2, getattr(config, "num_channels", 3), size, size),)


def _processed(model: nn.Module, size: int) -> tuple[Tensor, ...]:
    """What the model's own image processor makes of images: patches, a mask, the grid that they are of."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    kinds = cast("Mapping[type, Mapping[str, type[BaseImageProcessor]]]", IMAGE_PROCESSOR_MAPPING)
    processor = kinds[type(model.config)]["torchvision"]()
    made = processor(torch.rand(2, 3, size, size), return_tensors="pt", do_rescale=False)
    return tuple(made[name] for name in inspect.signature(model.forward).parameters if name in made)


LIBRARIES: dict[str, _Library] = {"torchvision": _Torchvision(), "timm": _Timm(), "transformers": _Transformers()}
