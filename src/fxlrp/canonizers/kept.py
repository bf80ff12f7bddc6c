"""Canonical graphs are kept beside the traces that they were made of, for other models that call the same."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from ..capture import Capture
from ..marks import SYNCHRONIZED, VALUES_READ
from . import canonize_graph
from .registry import are_own

__all__ = ["canonical"]


@dataclass(frozen=True)
class _Kept:
    """A canonical graph without the model.

    Attributes
    ----------
    graph : fx.Graph
        Its parameters and buffers are read by their paths.
    constants : dict of str to Tensor
        What the rewrites put in.
    read : dict of str to Tensor
        Copies of the model's tensors whose values the rewrites went by: of others, it is another graph.
    meta : dict
        The graph module's marks.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def is_of(self, root: nn.Module) -> bool:
        return all(torch.equal(value, attrgetter(path)(root)) for path, value in self.read.items())

    def on(self, root: nn.Module) -> fx.GraphModule:
        """A copy on a model's parameters and buffers."""
        graph = copy.deepcopy(self.graph)
        paths = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
        tensors = {path: attrgetter(path)(root) for path in paths if path not in self.constants}
        found = fx.GraphModule(tensors | dict(self.constants), graph, "Canonical")
        for path, value in self.constants.items():
            delattr(found, path)
            found.register_buffer(path, value, persistent=False)
        found.meta.update(self.meta)
        return found


_KEPT: WeakKeyDictionary[object, dict[Hashable, _Kept]] = WeakKeyDictionary()


def canonical(captured: Capture, root: nn.Module, *, threshold_relu: bool) -> fx.GraphModule:
    """The canonical graph of a capture, on the parameters and buffers of `root`; its constants are not folded yet.

    Where fxlrp's own rewrites alone ran on the same trace before, and the tensors whose values they went by are the
    same, they do not run again.
    """
    kept = _KEPT.setdefault(captured.trace, {})
    found = kept.get(threshold_relu)
    # A user's rewrite may go by anything; what processes share is the model's, and not the trace's.
    reusable = are_own() and not any(SYNCHRONIZED.of(node) for node in captured.graph_module.graph.nodes)
    if reusable and found is not None and found.is_of(root):
        return found.on(root)
    before = captured.graph_module.graph
    made = fx.GraphModule(root, copy.deepcopy(before), "Canonical")
    canonize_graph(made, threshold_relu=threshold_relu)
    if reusable:
        kept[threshold_relu] = _of(made, before, root)
    return made


def _of(made: fx.GraphModule, before: fx.Graph, root: nn.Module) -> _Kept:
    own = {str(node.target) for node in before.find_nodes(op="get_attr")}
    paths = dict.fromkeys(str(node.target) for node in made.graph.find_nodes(op="get_attr"))
    constants = {path: attrgetter(path)(made) for path in paths if path not in own}
    read = {path: attrgetter(path)(root).clone() for path in VALUES_READ.of(made) if path in own}
    return _Kept(copy.deepcopy(made.graph), constants, read, dict(made.meta))
