"""What was captured of a model without the model itself: it is one of all models that call the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .rehearsal import Rehearsal

__all__ = ["Trace"]


@dataclass(eq=False)
class Trace:
    """A graph, and what it is right for.

    Attributes
    ----------
    graph : fx.Graph
        As of `fxlrp.capture.Capture`.
    constants : dict of str to Tensor
        The tensors in it that are neither parameters nor buffers, by their paths.
    guard : nn.Module or None
        Called with the inputs, it raises an error for sizes that the graph is not right for.
    ranges : dict
        The range of each symbol in the sizes of the inputs.
    calls : tuple or None
        What the model calls (`fxlrp.capture.rehearsal`), if the graph has all of that and nothing in its place: inputs
        of other sizes, at which it calls the same, have the same graph.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    guard: nn.Module | None
    ranges: Mapping[Any, Any]
    calls: Rehearsal | None

    def __post_init__(self) -> None:
        values = [node.meta["val"] for node in self.graph.find_nodes(op="placeholder")]
        self._forms = [(value.dtype, [self._limits(size) for size in value.shape]) for value in values]

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether it is right for inputs of these shapes and dtypes; torch.compile follows what it asks."""
        for (dtype, limits), x in zip(self._forms, inputs, strict=True):
            if dtype != x.dtype or len(limits) != x.ndim:
                return False
            if any(not least <= size <= most for (least, most), size in zip(limits, x.shape, strict=True)):
                return False
        try:
            if self.guard is not None:
                self.guard(*inputs)
        # torch.export's guards speak by assertions, of one type or another.
        except (AssertionError, RuntimeError):
            return False
        return True

    def _limits(self, size: int | torch.SymInt) -> tuple[int, int]:
        """The least and the largest size of a dimension."""
        if isinstance(size, int):
            return size, size
        allowed = self.ranges.get(size.node.expr)
        return (0, -1) if allowed is None else (int(allowed.lower), min(allowed.upper, sys.maxsize))

    def on(self, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
        """A copy of the graph on a model's parameters and buffers."""
        graph = copy.deepcopy(self.graph)
        paths = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
        found = {path: self.constants[path] if path in self.constants else tensors[path] for path in paths}
        return fx.GraphModule(found, graph, "Capture")
