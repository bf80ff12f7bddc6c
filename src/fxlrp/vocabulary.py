"""The vocabulary as a user extends it: an op of one's own, with its facts and its rule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import CustomOpDef
from zennit.core import Hook

from .errors import RuleError
from .frames import warn
from .graph import name_of_target
from .ops import Call, Op, Slot, add, lookup
from .ops import remove as _remove
from .rules.base import Rule
from .rules.table import Policy, forget, set_policy
from .signature import Target, positions
from .wording import did_you_mean

__all__ = ["Call", "Op", "Slot", "Target", "lookup", "register", "remove"]


def register(*targets: Target, replace: bool = False, **fields: Any) -> Op:
    """Add an op to the vocabulary, or replace its entry.

    Parameters
    ----------
    *targets : torch._ops.OpOverload or callable
        The targets of `torch.fx` nodes that this entry speaks of, for example ``torch.ops.aten.relu.default``.
    replace : bool
        Whether an entry that is there already is meant to be replaced; if not, a warning says that it is.
    **fields
        ``default``, which must be given: ``(node, slots) -> Rule or None``, the rule for a node that the composite
        leaves without one, given the operands that relevance can flow to, by their slots; None if there is no rule for
        these. ``stand_in``: ``(node) -> nn.Module or None``, the module that stands for a functional call of this op
        before a composite. And the fields of `Op`; ``params`` may give positions in place of the schema's names.

    Returns
    -------
    Op
        The entry.

    Raises
    ------
    RuleError
        If a target is nothing that a graph calls, or a field is none or not of the form that `Op` says.

    Examples
    --------
    Pass relevance unchanged through an op of your own::

        import torch
        from fxlrp import rules, vocabulary

        vocabulary.register(torch.ops.mylib.clean.default, default=lambda node, slots: rules.Pass())
    """
    for target in targets:
        _check_target(target)
    _check_fields(fields)
    for target in targets:
        if not replace and lookup(target) is not None:
            warn(
                f"the vocabulary's entry for {name_of_target(target)} is replaced, for all models that are converted "
                "from now on: say register(..., replace=True) if that is meant"
            )
    policy = Policy(**{name: fields.pop(name) for name in Policy._fields if name in fields})
    op = Op(**fields)
    for target in targets:
        op = Op(**{**fields, "params": _by_name(target, op.params)})
        add(target, op)
        set_policy(target, policy)
    return op


def _by_name(target: Target, params: Mapping[str, str | int]) -> dict[str, str]:
    by_position = list(positions(target))
    return {name: by_position[own] if isinstance(own, int) else own for name, own in params.items()}


def remove(target: Target) -> None:
    """Forget an op: its facts and its rule.

    Parameters
    ----------
    target : torch._ops.OpOverload or callable
        As given to `register`.
    """
    _remove(target)
    forget(target)


def _check_target(target: object) -> None:
    if isinstance(target, torch._ops.OpOverloadPacket):
        names = ", ".join(f"torch.ops.{target}.{name}" for name in target.overloads())
        raise RuleError(f"torch.ops.{target} stands for several ops, and a graph calls one of them. Name it: {names}")
    if isinstance(target, nn.Module) or (isinstance(target, type) and issubclass(target, nn.Module)):
        raise RuleError(
            f"{target!r} is a module, and an entry speaks of an op: name the ops that fxlrp.check(model, ...) lists "
            "for it, or give the module a rule in the composite, as in LayerMapComposite([(MyLayer, rule)])"
        )
    if isinstance(target, CustomOpDef):
        name = target._qualname.replace("::", ".")
        raise RuleError(f"a graph calls the op that the function defines: name it, torch.ops.{name}.default")
    of_torch = not isinstance(target, torch._ops.OperatorBase) and str(_home(target)).startswith("torch")
    if not callable(target) or isinstance(target, type) or of_torch:
        raise RuleError(
            f"{target!r} is nothing that a captured graph calls: give an op, such as torch.ops.aten.relu.default; "
            "fxlrp.check(model, ...) lists those of a model"
        )


def _home(target: object) -> object:
    return getattr(target, "__module__", None) or getattr(getattr(target, "__objclass__", None), "__module__", None)


def _check_fields(fields: Mapping[str, object]) -> None:
    known = ["default", *Op.__dataclass_fields__, "stand_in"]
    for name in fields:
        if name not in known:
            raise RuleError(f"an entry has no field '{name}'{did_you_mean(name, known)} It has: {', '.join(known)}")
    _check_default(fields.get("default"))
    inputs = fields.get("inputs", ())
    if not isinstance(inputs, tuple | list) or not all(isinstance(position, int) for position in inputs):
        raise RuleError(f"inputs are positions of an op's arguments, such as (0, 1), not {inputs!r}")


def _check_default(default: object) -> None:
    what = "default is a function of a node and the slots of its operands that returns a rule"
    form = "write it as default=lambda node, slots: {}"
    kind = default if isinstance(default, type) else type(default)
    if issubclass(kind, Hook):
        raise RuleError(f"{what}, not a zennit rule: {form.format(f'fxlrp.rules.BasicRule({kind.__name__}(...))')}")
    if issubclass(kind, Rule):
        raise RuleError(f"{what}, not a rule itself: {form.format(f'{kind.__name__}()')}")
    if isinstance(default, type) or not callable(default):
        raise RuleError(f"{what}, not {default!r}: {form.format('fxlrp.rules.Pass()')}")
    try:
        inspect.signature(default).bind(None, {})
    except TypeError as error:
        raise RuleError(f"{what}, and this one cannot be called so ({error}): {form.format('...')}") from error
