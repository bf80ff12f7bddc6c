"""Parameters that are constants are modified once, and not at each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor, fx

from ...rules.base import Refused
from ...rules.zennit.basic import BasicRule
from ...rules.zennit.branch import Branch
from ..step import Step
from .emitted import Emitted

__all__ = ["modify_constants_once"]


def modify_constants_once(emitted: Emitted) -> None:
    """Let each rule modify its op's parameters here, where they are constants (a batch's statistics make none)."""
    if not emitted.constant:
        return
    for written, call, step, rule in emitted.basic_rules():
        nodes = _param_nodes(step, call)
        if all(node.op == "get_attr" for node in nodes.values()):
            params = {name: attrgetter(str(node.target))(emitted.graph_module) for name, node in nodes.items()}
            branches = _bound(rule, rule.branches, params, step)
            of_non_negative = _bound(rule, rule.of_non_negative, params, step)
            emitted.replace_rule(written, call, replace(rule, branches=branches, of_non_negative=of_non_negative))


def _param_nodes(step: Step, call: fx.Node) -> dict[str, fx.Node]:
    args, site = call.args[2:], step.site
    nodes = {name: args[site.names[own]] for name, own in site.op.params.items()}
    return {name: node for name, node in nodes.items() if isinstance(node, fx.Node)}


def _bound(rule: BasicRule, branches: Sequence[Branch], params: Mapping[str, Tensor], step: Step) -> tuple[Branch, ...]:
    names = list(step.site.op.params)
    try:
        with torch.no_grad():
            return tuple(
                branch if branch.keeps_params else replace(branch, bound=rule.changed_params(branch, params, names))
                for branch in branches
            )
    except Refused as refused:
        raise step.error(refused) from refused
