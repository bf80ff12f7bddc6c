"""Capture: the model, as a functional graph of ATen ops on its own parameters, by `torch.export`."""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..graph import drop_dead_code, name_of_target
from ..marks import PROCESS_GROUP, SYNCHRONIZED
from ..place import module_path
from ..signature import Target
from .copying import copied
from .export import LocalBatchNorm, detached, exported, without_synchronization
from .functional import as_functional
from .outputs import Output, chosen

__all__ = ["Capture", "Output", "capture"]


@dataclass
class Capture:
    """A model as a graph.

    Attributes
    ----------
    graph_module : fx.GraphModule
        Placeholders are the inputs, the one output is the tensor to explain. Ops are functional (no op writes to its
        inputs) except for ``aten.copy_`` onto the model's buffers. Parameters are ``get_attr`` nodes; they are the
        model's own objects. The batch norm of a `nn.SyncBatchNorm` in training mode is marked
        `SYNCHRONIZED`, with the name of its `PROCESS_GROUP`.
    modules : dict of str to nn.Module
        The model's modules by path, a `nn.SyncBatchNorm` as a batch norm; empty if there is no model (an exported
        program).
    """

    graph_module: fx.GraphModule
    modules: Mapping[str, nn.Module]
    _guard: nn.Module | None
    _ranges: Mapping[Any, Any]

    def __post_init__(self) -> None:
        values = [node.meta["val"] for node in self.placeholders]
        self._forms = [(value.dtype, [self._limits(size) for size in value.shape]) for value in values]

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether this capture speaks for inputs of these shapes and dtypes; torch.compile follows what it asks."""
        for (dtype, limits), x in zip(self._forms, inputs, strict=True):
            if dtype != x.dtype or len(limits) != x.ndim:
                return False
            if any(not least <= size <= most for (least, most), size in zip(limits, x.shape, strict=True)):
                return False
        try:
            if self._guard is not None:
                self._guard(*inputs)
        # torch.export's guards speak by assertions, of one type or another.
        except (AssertionError, RuntimeError):
            return False
        return True

    def _limits(self, size: int | torch.SymInt) -> tuple[int, int]:
        """The least and the largest size of a dimension."""
        if isinstance(size, int):
            return size, size
        allowed = self._ranges.get(size.node.expr)
        return (0, -1) if allowed is None else (int(allowed.lower), min(allowed.upper, sys.maxsize))

    @property
    def placeholders(self) -> list[fx.Node]:
        """The inputs."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]

    @property
    def output(self) -> fx.Node:
        """The node of the tensor that is explained."""
        (node,) = next(node for node in self.graph_module.graph.nodes if node.op == "output").args
        assert isinstance(node, fx.Node)
        return node

    def fingerprint(self) -> tuple[object, ...]:
        """What two captures of one model share exactly if one can stand for the other."""
        index = {node: i for i, node in enumerate(self.graph_module.graph.nodes)}
        rows: list[tuple[object, ...]] = []
        for node in index:
            args = map_arg((node.args, node.kwargs), lambda n: f"%{index[n]}")
            value = node.meta.get("val")
            form = None
            if isinstance(value, Tensor):
                form = (value.dtype, *(isinstance(size, int) and size == 1 for size in value.shape))
            target = name_of_target(node.target) if node.op == "call_function" else node.op
            constant = _identity(self.graph_module, node) if node.op == "get_attr" else None
            rows.append((target, repr(args), form, constant))
        return tuple(rows)


def capture(
    model: nn.Module | ExportedProgram,
    inputs: tuple[Tensor, ...],
    output: Output = None,
    *,
    keep: Collection[Target] = (),
) -> Capture:
    """Capture a model at inputs of these shapes; the batch size stays free where the model allows.

    Parameters
    ----------
    model : nn.Module or ExportedProgram
        The model, in the mode (training or evaluation) that is wanted.
    inputs : tuple of Tensor
        Example inputs. Their values do not matter.
    output : str, int, callable or None
        Which output is explained: a key or field, an index, a function of what the model returns. None takes a tensor
        as it is, ``logits`` of a dict, named tuple or dataclass, a dict's only tensor, or a tuple's first.
    keep : collection of callables
        Ops that are not to be spelled out in others, beside those of the vocabulary: what canonizers read.

    Raises
    ------
    CaptureError
        If `torch.export` cannot capture the model (control flow that depends on the data, mostly), or there is no
        such output.
    """
    if isinstance(model, nn.Module):
        model = without_synchronization(model)
    program = model if isinstance(model, ExportedProgram) else detached(exported(model, inputs))
    spelled = as_functional(program, keep)
    module = spelled.module()
    assert isinstance(module, fx.GraphModule)
    traces = {node.name: node.meta.get("stack_trace") for node in program.graph.nodes}
    spec = spelled.call_spec.out_spec
    assert spec is not None
    graph, guard = copied(module, traces, lambda flat: chosen(pytree.tree_unflatten(flat, spec), output))
    drop_dead_code(graph)
    modules = {} if isinstance(model, ExportedProgram) else dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        owner = modules.get(module_path(node))
        if isinstance(owner, LocalBatchNorm) and owner.training:
            SYNCHRONIZED.put(node, True)
            PROCESS_GROUP.put(node, owner.process_group.group_name if owner.process_group else None)
    return Capture(fx.GraphModule(module, graph, "Capture"), modules, guard, spelled.range_constraints)


def _identity(module: nn.Module, node: fx.Node) -> object:
    """What two captures of one model share of a tensor: itself, or the values of one made in the forward pass."""
    value = operator.attrgetter(str(node.target))(module)
    made = "lifted_tensor" in str(node.target) and value.numel() <= 1024
    return (value.dtype, repr(value.tolist())) if made else id(value)
