"""A folded batch norm's scale stays outside of the weight, where a rule lets it: the product is not made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...ops import lookup
from ...ops.linear import scaled_weight, with_scale
from ...rules.zennit.basic import BasicRule
from ...values import may_look_at
from ..step import Step
from .emitted import Emitted

__all__ = ["keep_scale_outside"]


def turned_weight(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    """A linear layer's weight with each output channel turned by the sign of its scale.

    Parameters
    ----------
    weight, scale : Tensor
        As of `fxlrp.ops.linear.scaled_weight`.
    groups : int
        As of `fxlrp.ops.linear.scaled_weight`.
    transposed : bool
        As of `fxlrp.ops.linear.scaled_weight`.
    """
    sign = scale.detach().sign()
    if may_look_at(sign) and bool((sign > 0).all()):
        return weight
    return scaled_weight(weight, sign, groups, transposed)


def keep_scale_outside(emitted: Emitted) -> None:
    """Have a layer whose weight is scaled at each call take weight and scale apart.

    The scale then stands at whichever is smaller, the weight or the gradient. A rule that modifies the weight must
    commute with positive factors; the scale's signs are left in the weight.
    """
    if emitted.constant:
        return
    for _, call, step in emitted.calls():
        if step.site.target in with_scale and step.rule.takes_scale(step.site):
            _take_apart(emitted, call, step)


def _take_apart(emitted: Emitted, call: fx.Node, step: Step) -> None:
    relevance, output, *args = call.args
    position = step.site.names["weight"]
    product: Any = args[position]
    if not isinstance(product, fx.Node) or product.target is not scaled_weight:
        return
    weight, scale, groups, transposed = product.args
    if isinstance(step.rule, BasicRule) and not step.rule.keeps_params:
        graph = emitted.graph_module.graph
        with graph.inserting_before(call):
            weight = graph.call_function(turned_weight, (weight, scale, groups, transposed))
            scale = graph.call_function(torch.abs, (scale,))
    args[position] = weight
    call.args = (relevance, output, *args, scale)
    target = with_scale[step.site.target]
    op = lookup(target)
    assert op is not None
    site = replace(step.site, op=op, target=target)
    emitted.graph_module.add_submodule(str(call.target), Step(step.rule, site))
