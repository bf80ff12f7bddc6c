"""What a user gives, looked at before anything is done with it: models, inputs, options."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .errors import CaptureError, InputError, ModulePathError
from .wording import did_you_mean

__all__ = [
    "check_choice",
    "check_count",
    "check_flags",
    "check_inputs",
    "check_model",
    "check_options",
    "inputs_of",
    "paths_of",
]


def check_model(model: object, *, exported: bool = True) -> None:
    """Raise if `model` is no model that can be captured.

    Parameters
    ----------
    model : object
        What was given.
    exported : bool
        Whether an `ExportedProgram` will do.

    Raises
    ------
    InputError
        If it is no model.
    CaptureError
        If it is TorchScript.
    """
    if isinstance(model, type):
        raise InputError(f"{model.__name__} is a class, and a model is an instance of one: write {model.__name__}(...)")
    if exported and isinstance(model, ExportedProgram):
        return
    if not isinstance(model, nn.Module):
        kinds = "an nn.Module or an ExportedProgram" if exported else "an nn.Module"
        raise InputError(f"a model is {kinds}, not {_a(model)}{_instead_of_model(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is TorchScript, made by torch.jit.script, torch.jit.trace or torch.jit.load: its "
            "code is no Python that could be captured. Give the nn.Module that it was made from"
        )


def _instead_of_model(value: object) -> str:
    if isinstance(value, Mapping):
        return ": build the model first, and give these weights to its load_state_dict"
    name = getattr(value, "__name__", None)
    return f": call it, if it makes a model: {name}(...)" if name else ""


def inputs_of(x: object) -> tuple[Tensor, ...]:
    """The inputs, from one tensor or several.

    Raises
    ------
    InputError
        If there is something else among them, or nothing.
    """
    if isinstance(x, Tensor):
        return inputs_of((x,))
    if not isinstance(x, (tuple, list)):
        raise InputError(f"the input is {_a(x)}: {_instead_of_tensor(x)}")
    if not x:
        raise InputError("there is no input: give a tensor, or several in a tuple")
    for index, value in enumerate(x):
        if not isinstance(value, Tensor):
            raise InputError(f"input {index} is {_a(value)}: {_instead_of_tensor(value)}")
    for index, value in enumerate(x):
        if value.layout is not torch.strided or value.is_quantized:
            kind, dense = (value.dtype, "x.dequantize()") if value.is_quantized else (value.layout, "x.to_dense()")
            raise InputError(f"input {index} is {kind}: relevance goes to plain tensors only. Give {dense}")
    return tuple(x)


def _instead_of_tensor(value: object) -> str:
    if type(value).__module__.startswith("PIL."):
        return (
            "make a tensor (B, C, H, W) of the image, with the transforms that the model was trained with, or for "
            "example torchvision.transforms.functional.to_tensor(image)[None]"
        )
    if type(value).__module__ == "numpy":
        return "make it a tensor (B, C, H, W), for example with torch.from_numpy"
    if isinstance(value, Mapping):
        return "give its tensors in a tuple, in the order of the arguments of the model's forward"
    if isinstance(value, str | os.PathLike):
        return "read the file, and give the image as a tensor (B, C, H, W)"
    return "inputs are tensors, several of them in a tuple"


def check_inputs(inputs: Sequence[Tensor]) -> None:
    """Raise an `InputError` if inputs are not tensors, or none of them is floating-point."""
    tensors = inputs_of(tuple(inputs))
    if not any(x.is_floating_point() for x in tensors):
        kinds = ", ".join(str(x.dtype) for x in tensors)
        raise InputError(
            f"the input is {kinds}: relevance goes to floating-point inputs only. Convert it, for example with "
            "x.float() / 255"
        )


def check_flags(**flags: object) -> None:
    """Raise an `InputError` if one of these is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is True or False, not {value!r} ({type(value).__name__})")


def check_count(name: str, value: object) -> None:
    """Raise an `InputError` if `value` is neither a number of things, at least 1, nor None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name} is a whole number, at least 1, or None, not {value!r} ({type(value).__name__})")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise an `InputError` if `value` is none of `choices`."""
    if value not in list(choices):
        raise InputError(f"{name} is {' or '.join(map(repr, choices))}, not {value!r}{did_you_mean(value, choices)}")


def check_options(function: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise an `InputError` if a function was given an option that it does not know."""
    for name in options:
        if name not in known:
            raise InputError(f"{function} has no option '{name}'{did_you_mean(name, known)} It has: {', '.join(known)}")


def paths_of(name: str, value: object) -> tuple[str, ...]:
    """The module paths that the option `name` was given.

    Raises
    ------
    ModulePathError
        If it was given something else.
    """
    if isinstance(value, str):
        raise ModulePathError(f"{name} is a sequence of module paths: write ({value!r},)")
    if not isinstance(value, Iterable) or isinstance(value, nn.Module | Tensor | Mapping):
        raise ModulePathError(f"{name} is a sequence of module paths, not {_a(value)}")
    found = tuple(value)
    for path in found:
        if not isinstance(path, str):
            raise ModulePathError(
                f"{name} is a sequence of module paths, and there is {_a(path)} in it: give the name that the module "
                "has in model.named_modules()"
            )
    return found


def _a(value: object) -> str:
    kind = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if kind[0] in 'AEIOaeio' or kind == 'ndarray' else 'a'} {kind}"
