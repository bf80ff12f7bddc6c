"""Any other zennit `Hook`, one that overrides `backward`, called with what zennit would call it with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from zennit.core import Hook

from ...ops import Call
from ..base import Rule
from .spelled import spelled

__all__ = ["HookRule"]


def _takes_kwargs(hook: Hook) -> bool:
    """Whether a hook's `forward` takes ``(module, args, kwargs, output)``: zennit 1.0 lets it."""
    names = list(inspect.signature(hook.forward).parameters)
    return len(names) != 3 and names[2] != "output"


def _view(module: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """`module` as the hook should see it: with the parameters that the canonized graph uses."""
    view = nn.Module.__new__(type(module))
    view.__dict__.update(vars(module), _parameters={**module._parameters, **params})
    return view


class _Gradients(Sequence[Tensor | None]):
    """The gradient at the op's inputs, taken only when the hook asks for it."""

    def __init__(self, call: Call, relevance: Tensor) -> None:
        self._call, self._relevance = call, relevance
        self._values: tuple[Tensor | None, ...] | None = None

    def __len__(self) -> int:
        return len(self._call.slots)

    def __getitem__(self, index: int | slice) -> Any:
        if self._values is None:
            self._values = self._call.vjp(self._relevance)
        return self._values[index]


class HookRule(Rule):
    """A zennit `Hook` with a `backward` of its own, such as `ReLUGuidedBackprop`.

    Its `forward` and `backward` are called with the values of one call of the op, so that no state is left between
    calls. ``grad_input`` is the plain gradient, ``grad_output`` the relevance; a `backward` that returns None leaves
    the gradient, as in zennit.

    Parameters
    ----------
    hook : zennit.core.Hook
        The rule.
    module : nn.Module
        The module that the composite gave the rule to, handed to the hook.
    """

    def __init__(self, hook: Hook, module: nn.Module) -> None:
        self.hook, self._module = hook, module
        self._takes_kwargs = _takes_kwargs(hook)

    @property
    def name(self) -> str:
        return type(self.hook).__name__.lower()

    def __repr__(self) -> str:
        return spelled(self.hook)

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        hook, module = self.hook, _view(self._module, call.params)
        inputs = call.inputs
        arguments = (module, inputs, dict(call.kwargs), output) if self._takes_kwargs else (module, inputs, output)
        try:
            hook.forward(*arguments)
            hook.stored_tensors["grad_output"] = (relevance,)
            found = hook.backward(module, _Gradients(call, relevance), (relevance,))
        finally:
            hook.stored_tensors.clear()
        if found is None:
            return call.vjp(relevance)
        return tuple(found) if isinstance(found, Sequence) else (found,)
