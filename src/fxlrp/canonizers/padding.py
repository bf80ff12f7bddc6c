"""A layer that pads its own input with zeros (TensorFlow's "SAME") is one op with its convolution."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from ..graph import call
from ..ops.linear import padded_convolution
from ..place import module_calls

__all__ = ["join_padding_to_its_convolution"]

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}


def _pads_with_zeros(node: fx.Node) -> bool:
    args: Any = node.args
    if node.target is aten.constant_pad_nd.default:
        value = args[2] if len(args) > 2 else 0
    elif node.target is aten.pad.default and args[2:3] in ((), ("constant",)):
        value = args[3] if len(args) > 3 else 0
    else:
        return False
    return value in (0, None) and all(isinstance(amount, int) and amount >= 0 for amount in args[1])


def join_padding_to_its_convolution(graph_module: fx.GraphModule) -> None:
    """Make one op of a padding with zeros and the convolution that reads it, where both lie in one call of a module.

    A padding that the model does elsewhere is an op of its own, and stays one.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        n = _CONVOLUTIONS.get(node.target) if node.op == "call_function" else None
        if n is None:
            continue
        pad, *operands = node.args
        if pad.op != "call_function" or not _pads_with_zeros(pad) or module_calls(pad) != module_calls(node):
            continue
        if len(pad.args[1]) > 2 * n:
            continue
        defaults = (None, None, [1], [0], [1], 1)
        weight, bias, stride, padding, dilation, groups = cast(Any, (*operands, *defaults[len(operands) :]))
        lists = [list(value) * n if len(value) == 1 else list(value) for value in (stride, padding, dilation)]
        with graph.inserting_before(node):
            new = call(
                node, padded_convolution, pad.args[0], weight, bias, *lists, groups, list(pad.args[1]), name=node.name
            )
        node.replace_all_uses_with(new)
