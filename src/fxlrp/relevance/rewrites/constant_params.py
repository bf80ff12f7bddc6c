"""Parameters that are constants are modified once, and not at each call."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import fx

from ...rules.base import Refused
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
            try:
                with torch.no_grad():
                    constant = rule.with_constants(params, step.site)
            except Refused as refused:
                raise step.error(refused) from refused
            emitted.replace_rule(written, call, constant)


def _param_nodes(step: Step, call: fx.Node) -> dict[str, fx.Node]:
    args, site = call.args[2:], step.site
    nodes = {name: args[site.names[own]] for name, own in site.op.params.items()}
    return {name: node for name, node in nodes.items() if isinstance(node, fx.Node)}
