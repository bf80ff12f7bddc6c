"""One of a zennit rule's branches: what it modifies, and what was found out about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from zennit.core import BasicHook, ParamMod, zero_wrap

from ...errors import RuleError

__all__ = [
    "Branch",
    "Mapper",
    "Modifier",
    "Modifying",
    "ParamModifier",
    "Reducer",
    "branches_of",
    "check_params",
    "modified_params",
]

Modifier = Callable[[Tensor], Tensor]
ParamModifier = ParamMod | Callable[[Tensor, str], Tensor]
Mapper = Callable[[Tensor, list[Tensor]], Tensor | Sequence[Tensor]]
Reducer = Callable[[list[Tensor], list[Tensor]], Any]
"""It gives a tensor; but zennit's own is a `sum`, which a type checker takes for an int."""


@dataclass(frozen=True)
class Branch:
    """A branch of a rule. What is not known of it is False: then it is evaluated as the hook has it.

    Attributes
    ----------
    input_modifier, param_modifier, output_modifier
        Those of the hook, or what gives the same.
    keeps_input, keeps_params, keeps_output : bool
        Whether the modifier changes nothing there.
    zero_input : bool
        Whether the modified input is zero, of an op that is affine.
    reads_output : bool
        Whether the rule's mapper goes by the output of this branch.
    reads_gradient : bool
        Whether the rule's reducer reads the gradient of this branch.
    rectified : sequence of str
        The parameters on which the modifier is a ReLU.
    bound : dict of str to Tensor or None
        The modified parameters, where they are constants.
    """

    input_modifier: Modifier
    param_modifier: ParamModifier
    output_modifier: Modifier
    keeps_input: bool = False
    keeps_params: bool = False
    keeps_output: bool = False
    zero_input: bool = False
    reads_output: bool = True
    reads_gradient: bool = True
    rectified: Sequence[str] = ()
    bound: Mapping[str, Tensor] | None = None

    @property
    def is_forward(self) -> bool:
        """Whether the branch's output is the forward pass's."""
        return self.keeps_input and self.keeps_params and self.keeps_output

    def needed(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of an op's parameters those that the branch reads: of a layer whose input is zero, the value is the bias."""
        unread = "weight" if self.zero_input and not self.reads_gradient else None
        return {name: value for name, value in params.items() if name != unread}


def check_params(hook: BasicHook, names: Sequence[str]) -> None:
    """Raise a `RuleError` if a hook requires parameters that are not among `names`, which an op has."""
    for modifier in hook.param_modifiers or ():
        _keys(ParamMod.ensure(modifier), (), names)


def branches_of(hook: BasicHook) -> tuple[Branch, ...]:
    """The branches of a hook, of which nothing is known yet.

    Raises
    ------
    RuleError
        If they are not of one number.
    """
    parts: Any = (hook.input_modifiers, hook.param_modifiers, hook.output_modifiers)
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise RuleError(
            "it has {} input modifiers, {} param modifiers and {} output modifiers: each of its branches needs one "
            "of each".format(*counts)
        )
    return tuple(Branch(*modifiers) for modifiers in zip(*parts, strict=True))


def modified_params(modifier: ParamModifier, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters as a zennit `ParamMod` changes them, without a module around them.

    Parameters
    ----------
    modifier : zennit.core.ParamMod or callable
        As in a `BasicHook`'s ``param_modifiers``.
    params : dict of str to Tensor
        The op's parameters.
    names : sequence of str
        The names of all parameters that the op can have; one of ``param_keys`` beyond them is missing.

    Returns
    -------
    dict of str to Tensor
        All of `params`, those named by ``param_keys`` (all, if None) modified or, by ``zero_params``, zeroed.

    Raises
    ------
    RuleError
        If ``require_params`` is set and a parameter named by ``param_keys`` is missing.
    """
    mod = ParamMod.ensure(modifier)
    keys = _keys(mod, params, names)
    modify = zero_wrap(mod.zero_params or [])(mod.modifier)
    return dict(params) | {key: modify(params[key], key) for key in keys if key in params}


@dataclass(frozen=True)
class Modifying:
    """How a modifier changes the parameters of an op that can have those of these names, see `modified_params`."""

    modifier: ParamModifier
    names: tuple[str, ...]

    def __call__(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return modified_params(self.modifier, params, self.names)


def _keys(mod: ParamMod, params: Iterable[str], names: Sequence[str]) -> list[str]:
    keys = list(params) if mod.param_keys is None else mod.param_keys
    missing = [key for key in keys if key not in names]
    if mod.require_params and missing:
        raise RuleError(
            f"the rule requires the parameters {missing}, which the op has not (it has {list(names)}): give it to "
            "another layer, or set require_params=False"
        )
    return keys
