"""What is known of the place where a rule is to serve, and the rule as it serves there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx

from ..errors import RuleError
from ..ops import Op, Slot
from ..place import where
from ..reading import unwrap
from ..rules.base import Rule, Site
from ..rules.zennit.basic import BasicRule

__all__ = ["placed", "site_of"]


def site_of(node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node], non_negative: bool) -> Site:
    """What is known of an op before it runs."""
    target, args, _ = unwrap(node)
    from_outside = all(operand.op == "placeholder" for operand in slots.values())
    site = Site(op, target, tuple(slots), where(node), non_negative, from_outside)
    if not slots:
        return site
    params = {name: args[site.names[own]] for name, own in op.params.items()}
    shapes = {name: _shape(param) for name, param in params.items() if param is not None}
    full = _shape(next(iter(slots.values())))
    # Full-sized where it is small: a box may be given as an image.
    small = [2, *full[1:2], *(size if size <= 4 else 4 for size in full[2:])][: len(full)]
    return replace(site, input_shape=tuple(small), param_shapes=shapes)


def placed(rule: Rule, site: Site, node: fx.Node, slots: Mapping[Slot, fx.Node]) -> Rule:
    if rule.is_identity:
        _check_identity(rule, node, slots)
    if not slots:
        return rule
    try:
        return rule.at(site)
    except RuleError as error:
        name = type(rule.hook).__name__ if isinstance(rule, BasicRule) else type(rule).__name__
        raise RuleError(f"{name} cannot be the rule of {site.where}: {error}") from error


def _check_identity(rule: Rule, node: fx.Node, slots: Mapping[Slot, fx.Node]) -> None:
    value = node.meta["val"]
    value = value if isinstance(value, Tensor) else value[0]
    if len(slots) != 1 or any(operand.meta["val"].shape != value.shape for operand in slots.values()):
        raise RuleError(
            f"{type(rule).__name__} cannot be the rule of {where(node)}: it needs one input, of the output's shape. "
            "Use Norm, which shares relevance in proportion."
        )


def _shape(node: fx.Node) -> list[int]:
    return [int(size) if isinstance(size, int) else 2 for size in node.meta["val"].shape]
