"""Logits: what stands in front of a model's final softmax, log-softmax or sigmoid, where a class's relevance starts."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.node import map_arg

from ..graph import call
from ..ops import lookup, slots_of
from ..reading import is_known, unwrap

__all__ = ["logits_of"]

aten = torch.ops.aten

_FINAL = (
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.log_sigmoid.default,
)

_BEHIND = (
    aten.log.default,
    aten.exp.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
"""What may stand behind one of these, as in ``softmax(z).log()``: each value is of its own, and keeps the order."""


def logits_of(graph: fx.Graph) -> fx.Node | None:
    """The model's output without its final activations, written into the graph.

    What only moves values about (a reshape, a choice of classes, outputs of several heads joined in one) may stand
    behind an activation: it is written again, of the logits.

    Parameters
    ----------
    graph : fx.Graph
        A canonical graph.

    Returns
    -------
    fx.Node or None
        A value of the output's shape; None if no softmax, log-softmax or sigmoid is the last that happens.
    """
    end = next(node for node in graph.nodes if node.op == "output")
    (output,) = end.args
    assert isinstance(output, fx.Node)
    with graph.inserting_before(end):
        return _in_front_of(output)


def _in_front_of(node: fx.Node) -> fx.Node | None:
    if node.op != "call_function" or is_known(node):
        return None
    target, args, _ = unwrap(node)
    if target in _FINAL:
        return args[0]
    if target in _BEHIND:
        return _in_front_of(args[0])
    op = lookup(target)
    operands = [args[0]] if target is operator.getitem else []
    if op is not None and op.structural:
        operands = list(slots_of(node, op, lambda operand: True).values())
    found = {operand: _in_front_of(operand) for operand in operands}
    if not any(found.values()):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda operand: found.get(operand) or operand)
    return call(node, target, *args, name=node.name, **kwargs)
