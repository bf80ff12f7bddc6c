"""An exported program without in-place ops, and with ops of which nothing is known spelled out in others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..graph import carriers
from ..ops import lookup
from ..ops.attention import ATTENTION, attention_as_products
from ..reading import argument, unwrap
from ..signature import Target

__all__ = ["as_functional"]


def as_functional(program: ExportedProgram, keep: Collection[Target]) -> tuple[ExportedProgram, Collection[Target]]:
    """In-place ops and writes through views made functional, and unknown ops, which are given out, spelled out."""
    known_to_torch: Any = torch.export.default_decompositions()
    known_to_torch[ATTENTION] = attention_as_products
    spelled_out: dict[Any, Target] = {}
    while True:
        with torch.inference_mode(False):
            functional = program.run_decompositions(dict(spelled_out))
        found = {op for op in _unknown(functional.graph, keep) if op in known_to_torch} - spelled_out.keys()
        if not found:
            return functional, spelled_out
        spelled_out |= {op: known_to_torch[op] for op in found}


def _unknown(graph: fx.Graph, keep: Collection[Target]) -> set[Target]:
    """The ops that relevance may come through and of which nothing is known, nor to be read."""
    reached = carriers(node for node in graph.nodes if node.op == "placeholder")
    nodes = [node for node in reached if node.op == "call_function" and _is_floating(node.meta.get("val"))]
    # Of attention that drops weights, the op does not tell which.
    dropping = {ATTENTION for node in nodes if node.target is ATTENTION and argument(node, "dropout_p")}
    ops = {unwrap(node)[0] for node in nodes}.difference(keep)
    return {op for op in ops if lookup(op) is None} | dropping


def _is_floating(value: object) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in pytree.tree_leaves(value))
