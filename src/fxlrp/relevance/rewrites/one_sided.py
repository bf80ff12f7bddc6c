"""A ReLU that clips at a threshold clips on one side alone, where the scales of all its channels have one sign."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import fx

from ...ops.activation import thresholded_relu
from ...reading import unwrap

__all__ = ["clip_on_one_side"]


def clip_on_one_side(graph_module: fx.GraphModule) -> None:
    """Leave out a bound that is infinite everywhere; of those that are constants, which do not change."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and unwrap(node)[0] is thresholded_relu:
            for bound in unwrap(node)[1][1:]:
                if bound.op == "get_attr" and _is_infinite(attrgetter(str(bound.target))(graph_module)):
                    node.replace_input_with(bound, None)


def _is_infinite(bound: torch.Tensor) -> bool:
    return bool(bound.isinf().all())
