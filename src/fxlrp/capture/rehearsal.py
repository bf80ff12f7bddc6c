"""What a model calls, found out by a run on tensors without values: two runs that call the same have one graph."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ..models import copy_sharing_tensors, tensors_by_path
from .conditions import conditions
from .export import without_synchronization

__all__ = ["Rehearsal", "rehearsed"]

Rehearsal = tuple[Hashable, ...]
"""The forms of a model's parameters and buffers, its calls of PyTorch's ops in their order, and what it returns."""

_LARGEST = 1 << 20
"""Of how many bytes a tensor may be whose values are a part of the model's code."""

_PLAIN = (type(None), bool, int, float, complex, str, torch.device, torch.dtype, torch.layout, torch.memory_format)

_CALL = nn.Module._call_impl.__code__


class _NotToBeTold(Exception):
    """A call takes something of which there is no telling whether another's is the same."""


def rehearsed(model: nn.Module, inputs: tuple[Tensor, ...]) -> Rehearsal | None:
    """What a model calls on inputs of these shapes; None if it cannot be run on tensors without values.

    The forms of its parameters and buffers; each call with the module that it stands in, its arguments (tensors by
    where they come from: a parameter, an input, a call), which of the sizes of its values are 1, and whether gradients
    are on. Other sizes are told by the arguments alone: where no call takes one, a graph is that of other sizes too.

    Parameters
    ----------
    model : nn.Module
        In the mode that is wanted. It is copied before it is run.
    inputs : tuple of Tensor
        Their values do not matter.
    """
    try:
        # What a forward pass keeps on its modules stays there.
        model = copy_sharing_tensors(without_synchronization(model))
        with conditions(model, inputs), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            for module in model.modules():
                tables: list[dict[str, Any]] = [module._parameters, module._buffers]
                for table in tables:
                    table.update({name: mode.from_tensor(each) for name, each in table.items() if each is not None})
            given = tuple(map(mode.from_tensor, inputs))
            with _Calls(model, given) as calls:
                found = model(*given)
            return (calls.tensors, *calls.rows, calls.told(found))
    # Whatever a model raises that looks at values, or that is not made to be run so.
    except Exception:
        return None


class _Calls(TorchDispatchMode):
    """Notes all calls of ops.

    Attributes
    ----------
    tensors : tuple
        What the calls do not tell of the model's parameters and buffers: their shapes, dtypes and devices.
    rows : list
        The calls.
    """

    def __init__(self, model: nn.Module, given: tuple[Tensor, ...]) -> None:
        super().__init__()
        own = tensors_by_path(model)
        self.tensors = tuple((path, x.dtype, tuple(x.shape), x.stride(), x.device) for path, x in own.items())
        self.rows: list[Hashable] = []
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._origins: dict[int, Hashable] = {id(tensor): path for path, tensor in own.items()}
        self._origins |= {id(tensor): index for index, tensor in enumerate(given)}
        self._kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = self.told((args, kwargs))
        found = func(*args, **kwargs)
        for index, value in enumerate(pytree.tree_leaves(found)):
            # Kept: no other is to have its place in memory. One that was written to is the same as before.
            if isinstance(value, Tensor) and id(value) not in self._origins:
                self._origins[id(value)] = (len(self.rows), index)
                self._kept.append(value)
        form = tuple(_form(value) for value in pytree.tree_leaves(found))
        self.rows.append((func, self._paths.get(id(_caller())), taken, form, torch.is_grad_enabled()))
        return found

    def told(self, value: Any) -> Hashable:
        """Arguments, or what a model returns, as a value."""
        leaves, structure = pytree.tree_flatten(value)
        return str(structure), *map(self._leaf, leaves)

    def _leaf(self, value: Any) -> Hashable:
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if not isinstance(value, Tensor):
            raise _NotToBeTold
        if id(value) in self._origins:
            return "tensor", self._origins[id(value)]
        if isinstance(value, FakeTensor) or value.device.type != "cpu" or value.nbytes > _LARGEST:
            raise _NotToBeTold
        with _disable_current_modes():
            values = value.detach().flatten().tolist()
        return "constant", value.dtype, tuple(value.shape), repr(values)


def _form(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(size == 1 for size in value.shape)
    return repr(value)


def _caller() -> nn.Module | None:
    """The innermost module that is being called."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    return None if frame is None else cast(nn.Module, frame.f_locals["self"])
