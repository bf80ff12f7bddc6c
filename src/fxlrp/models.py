"""A user's model as Python has it: copies of it, what of it a capture bakes in, and what a capture is not to touch."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim.optimizer import register_optimizer_step_post_hook

from .errors import CaptureError
from .values import is_wrapped

__all__ = [
    "copy_sharing_tensors",
    "count_fused_steps",
    "duplicate",
    "hooks_leave_no_trace",
    "lends_tensors",
    "settings",
    "snapshot",
    "stand_in",
    "tensors_by_path",
    "weights",
]

_OWN = frozenset(vars(nn.Module()))
"""What every module has: parameters, buffers, hooks, children, its mode."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_Container = dict | list | set | deque


_Model = TypeVar("_Model", bound=nn.Module)


def snapshot(model: nn.Module) -> nn.Module:
    """A copy whose tensors need no gradient and do not change with the model's.

    What cannot be copied (a lock, an open file, a process group) is shared, and a tensor that was computed (an old
    `weight_norm`'s, an activation that was kept) is one of the copy's own.

    Raises
    ------
    CaptureError
        If a module defines copying in a way that fails.
    """
    return duplicate(model).requires_grad_(False)


def duplicate(model: _Model) -> _Model:
    """A copy with tensors of its own; otherwise as `snapshot`."""
    return _copied(model, share_tensors=False)


def copy_sharing_tensors(model: _Model) -> _Model:
    """A copy of the modules, with the same tensors."""
    return _copied(model, share_tensors=True)


def lends_tensors(model: nn.Module) -> bool:
    """Whether a model has been given tensors for a call (`torch.func.functional_call`), in place of its parameters."""
    given = any(not isinstance(each, nn.Parameter) for each in model.parameters())
    return given or any(map(is_wrapped, model.buffers()))


def tensors_by_path(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers, as it has them at the moment; under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def stand_in(model: _Model) -> _Model:
    """A copy with parameters and buffers of its own, of a model that has been given other tensors for a call."""
    found = copy_sharing_tensors(model)
    own: dict[int, Tensor] = {}
    for module in found.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for kind, table in zip((_parameter, _plain), tables, strict=True):
            for name, value in table.items():
                if value is not None:
                    own[id(value)] = table[name] = own[id(value)] if id(value) in own else kind(value)
    return found


def _parameter(value: Tensor) -> Tensor:
    return nn.Parameter(_plain(value), requires_grad=value.is_floating_point())


def _plain(value: Tensor) -> Tensor:
    with torch.inference_mode(False):
        if is_wrapped(value):
            return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        return value.detach().clone()


def _copied(model: _Model, *, share_tensors: bool) -> _Model:
    memo: dict[int, object] = {}
    for value in _values_within(model):
        if isinstance(value, Tensor):
            if share_tensors:
                memo[id(value)] = value
            elif not value.is_leaf or value.is_inference():
                with torch.inference_mode(False):
                    memo[id(value)] = _like(value, value.detach().clone())
        elif not _can_be_copied(value, memo):
            memo[id(value)] = value
    try:
        return copy.deepcopy(model, memo)
    # Whatever a module's own copying raises.
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): convert it with "
            "trainable=True, which shares the model itself"
        ) from error


def _like(value: Tensor, found: Tensor) -> Tensor:
    return nn.Parameter(found, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else found


def _can_be_copied(value: object, memo: Mapping[int, object]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    # Whatever a class raises that is not made to be copied.
    except Exception:
        return False
    return True


def _values_within(model: nn.Module) -> Iterator[object]:
    """All tensors of a model, and all objects that its attributes and hooks are, through containers."""
    seen: set[int] = set()
    todo: list[object] = [model]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, (*_PLAIN, type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            todo.extend(vars(value).values())
        elif isinstance(value, Mapping):
            todo.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset | deque):
            todo.extend(value)
        else:
            yield value


class _Same:
    """An object, to be compared by identity; it is kept alive, so that no other takes its identity over."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def settings(model: nn.Module) -> dict[Hashable, Hashable]:
    """What a capture of a model bakes in: modules and their mode, tensors by identity, hooks, attributes.

    Two of them are equal if a capture made at one speaks for the other. What the values of its parameters and buffers
    are is left out, see `weights`. The keys of attributes are pairs of a module's number and a name.
    """
    found: dict[Hashable, Hashable] = {
        "hooks of all": tuple(tuple(getattr(torch_module, f"_global{name}")) for name in _HOOKS),
        "tensors": tuple(_Same(tensor) for tensor in (*model.parameters(), *model.buffers())),
    }
    for number, module in enumerate(model.modules()):
        own = vars(module)
        hooks = tuple(tuple(own[name]) for name in _HOOKS)
        found[number] = (_Same(module), type(module), module.training, hooks)
        found |= {(number, name): _frozen(value) for name, value in own.items() if name not in _OWN}
    return found


def _frozen(value: object, depth: int = 0) -> Hashable:
    """A value as a key: plain data by value, tensors and objects by identity, with the plain data that they hold."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, Tensor):
        return _Same(value), None if value.is_inference() else value._version
    if isinstance(value, nn.Module) or depth > 4:
        return _Same(value)
    if isinstance(value, list | tuple | deque):
        return type(value), *(_frozen(element, depth + 1) for element in value)
    if isinstance(value, Mapping):
        return type(value), *((repr(key), _frozen(element, depth + 1)) for key, element in value.items())
    held = getattr(value, "__dict__", {}) if not isinstance(value, type | types.FunctionType) else {}
    return _Same(value), *((name, repr(each)) for name, each in held.items() if isinstance(each, _PLAIN))


@functools.cache
def count_fused_steps() -> None:
    """Have PyTorch count the writes of its fused optimizers, as it does those of the others."""

    def count(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            if group.get("fused"):
                torch.autograd.graph.increment_version(group["params"])

    register_optimizer_step_post_hook(count)


def weights(tensors: list[Tensor]) -> tuple[object, ...]:
    """What tells whether tensors have been written to: all that PyTorch counts, and storages that were exchanged."""
    return tuple((x.data_ptr(), None if x.is_inference() else x._version) for x in tensors)


@contextmanager
def hooks_leave_no_trace(model: nn.Module) -> Iterator[None]:
    """While a model is traced, its hooks are called with values that stand for none: what they collect is removed."""
    hooks = [hook for module in model.modules() for name in _HOOKS for hook in vars(module)[name].values()]
    before = [(container, copy.copy(container)) for container in _containers_behind(hooks)]
    try:
        yield
    finally:
        for container, content in before:
            if not _is_as_before(container, content):
                container.clear()
                (container.update if isinstance(container, dict | set) else container.extend)(content)


def _is_as_before(container: _Container, content: Any) -> bool:
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        return all(key in container and container[key] is value for key, value in content.items())
    return isinstance(container, set) or all(a is b for a, b in zip(container, content, strict=True))


def _containers_behind(functions: list[Callable[..., object]]) -> Iterator[_Container]:
    """The containers that functions can write to: of their closures, of the objects they belong to, of their module."""
    seen: set[int] = set()
    todo: list[tuple[object, int]] = [(function, 0) for function in functions]
    while todo:
        value, depth = todo.pop()
        if id(value) in seen or depth > 5 or isinstance(value, (*_PLAIN, Tensor, nn.Module, type, types.ModuleType)):
            continue
        seen.add(id(value))
        if isinstance(value, dict | list | set | deque):
            yield value
        todo += ((each, depth + 1) for each in _held_by(value))


def _held_by(value: object) -> list[object]:
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        containers = [each for each in named if isinstance(each, dict | list | set | deque)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *containers]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | deque):
        return list(value)
    return [vars(value)] if hasattr(value, "__dict__") else []


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
