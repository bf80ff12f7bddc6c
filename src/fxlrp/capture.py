"""Capture: the model, as a functional graph of ATen ops on its own parameters, by `torch.export`."""

from __future__ import annotations

import copy
import operator
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from .errors import CaptureError
from .failure import why_not, without_graphs
from .graph import carriers, drop_dead_code, name_of_target, replace_reads
from .marks import PROCESS_GROUP, SYNCHRONIZED
from .models import copy_sharing_tensors, hooks_leave_no_trace
from .ops import lookup
from .ops.attention import ATTENTION, attention_as_products
from .outputs import Output, chosen
from .place import module_path
from .reading import argument, unwrap
from .signature import Target, normal

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

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether this capture speaks for inputs of these shapes and dtypes."""
        for node, x in zip(self.placeholders, inputs, strict=True):
            value = node.meta["val"]
            if value.dtype != x.dtype or value.ndim != x.ndim:
                return False
            if any(not self._allows(size, actual) for size, actual in zip(value.shape, x.shape, strict=True)):
                return False
        try:
            if self._guard is not None:
                self._guard(*inputs)
        # torch.export's guards speak by assertions, of one type or another.
        except (AssertionError, RuntimeError):
            return False
        return True

    def _allows(self, size: int | torch.SymInt, actual: int) -> bool:
        if isinstance(size, int):
            return size == actual
        allowed = self._ranges.get(size.node.expr)
        return allowed is not None and allowed.lower <= actual <= allowed.upper

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

    def fingerprint(self) -> tuple[Any, ...]:
        """What two captures of one model share exactly if one can stand for the other."""
        index = {node: i for i, node in enumerate(self.graph_module.graph.nodes)}
        rows: list[Any] = []
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


class _LocalBatchNorm(nn.BatchNorm2d, nn.SyncBatchNorm):
    """A `nn.SyncBatchNorm` that torch.export can follow on any device, and composites take for a batch norm."""

    forward = nn.modules.batchnorm._BatchNorm.forward
    _check_input_dim = nn.SyncBatchNorm._check_input_dim  # pyright: ignore[reportAssignmentType]


def _without_synchronization(model: nn.Module) -> nn.Module:
    """The model; if there is a `nn.SyncBatchNorm` in it, a copy with the same tensors whose batch norms are local."""
    if not any(type(module) is nn.SyncBatchNorm for module in model.modules()):
        return model
    model = copy_sharing_tensors(model)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = _LocalBatchNorm
    return model


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
        model = _without_synchronization(model)
    program = model if isinstance(model, ExportedProgram) else _detached(_export(model, inputs))
    functional = _functional(program, keep)
    module = functional.module()
    assert isinstance(module, fx.GraphModule)
    traces = {node.name: node.meta.get("stack_trace") for node in program.graph.nodes}
    spec = functional.call_spec.out_spec
    assert spec is not None
    graph, guard = _copy(module, traces, lambda flat: chosen(pytree.tree_unflatten(flat, spec), output))
    drop_dead_code(graph)
    modules = {} if isinstance(model, ExportedProgram) else dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        owner = modules.get(module_path(node))
        if isinstance(owner, _LocalBatchNorm) and owner.training:
            SYNCHRONIZED.put(node, True)
            PROCESS_GROUP.put(node, owner.process_group.group_name if owner.process_group else None)
    return Capture(fx.GraphModule(module, graph, "Capture"), modules, guard, functional.range_constraints)


@contextmanager
def _normalization_that_can_be_followed() -> Iterator[None]:
    """Put torchvision's second `normalize` in the place of its first, which looks at values of a tensor."""
    functional = sys.modules.get("torchvision.transforms._functional_tensor")
    if functional is None:
        yield
        return
    from torchvision.transforms.v2.functional import normalize_image

    with patch.object(functional, "normalize", normalize_image):
        yield


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    with ExitStack() as stack:
        stack.enter_context(hooks_leave_no_trace(model))
        stack.enter_context(_normalization_that_can_be_followed())
        stack.enter_context(warnings.catch_warnings())
        # What a forward pass keeps on its module, and the second list of parameters of a recurrent layer, is put back.
        warnings.filterwarnings("ignore", message="The tensor attributes? ")
        stack.enter_context(without_graphs())
        stack.enter_context(torch.inference_mode(False))
        # Where gradients are off already, a model's own no_grad would leave no trace.
        stack.enter_context(torch.enable_grad())
        for kind in {x.device.type for x in inputs}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        inputs = tuple(x.detach().clone() for x in inputs)
        batch_free = tuple({0: Dim.AUTO} if x.ndim and x.shape[0] > 1 else {} for x in inputs)
        try:
            try:
                return torch.export.export(model, inputs, dynamic_shapes=(*batch_free,), strict=False)
            # Some models fix their batch size in a way that torch.export reports instead of following.
            except Exception:
                return torch.export.export(model, inputs, strict=False)
        except Exception as error:
            raise CaptureError(why_not(model, error)) from error


def _detached(program: ExportedProgram) -> ExportedProgram:
    """What the model computes under `torch.no_grad` is detached: inlined, it would have gradients again."""
    graph = program.graph
    for region in graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_set_grad_enabled):
        if region.args[0]:
            continue
        for value in list(region.users):
            with graph.inserting_after(value):
                stopped = graph.call_function(torch.ops.aten.detach.default, (value,))
            stopped.meta = copy.copy(value.meta)
            replace_reads(value, stopped)
    return program


_aten = torch.ops.aten
_FOR_ANY_STRIDES = {
    _aten.view.default: _aten.reshape.default,
    _aten._unsafe_view.default: _aten.reshape.default,
}
"""Ops that torch.export took for the strides of its example: at others, these do the same."""


def _functional(program: ExportedProgram, keep: Collection[Target]) -> ExportedProgram:
    """In-place ops and writes through views made functional, and unknown ops spelled out in others, by torch itself."""
    known_to_torch: Any = torch.export.default_decompositions()
    known_to_torch[ATTENTION] = attention_as_products
    spelled_out: dict[Any, Any] = {}
    while True:
        with torch.inference_mode(False):
            functional = program.run_decompositions(dict(spelled_out))
        found = {op for op in _unknown(functional.graph, keep) if op in known_to_torch} - spelled_out.keys()
        if not found:
            return functional
        spelled_out |= {op: known_to_torch[op] for op in found}


def _unknown(graph: fx.Graph, keep: Collection[Target]) -> set[Target]:
    """The ops that relevance may come through and of which nothing is known, nor to be read."""
    reached = carriers(node for node in graph.nodes if node.op == "placeholder")
    nodes = [node for node in reached if node.op == "call_function" and _is_floating(node.meta.get("val"))]
    # Of attention that drops weights, the op does not tell which.
    dropping = {ATTENTION for node in nodes if node.target is ATTENTION and argument(node, "dropout_p")}
    ops = {unwrap(node)[0] for node in nodes}.difference(keep)
    return {op for op in ops if lookup(op) is None} | dropping


def _is_floating(value: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in pytree.tree_leaves(value))


def _copy(
    module: fx.GraphModule, traces: Mapping[str, str | None], choose: Callable[[list[fx.Node]], fx.Node]
) -> tuple[fx.Graph, nn.Module | None]:
    """A copy of the exported graph: named by module paths, with its source lines, its one output and no guard."""
    graph, copies, guard = fx.Graph(), {}, None
    for node in module.graph.nodes:
        if node.op == "call_module":
            guard = module.get_submodule(node.target)
            continue
        if node.op == "output":
            flat = list(pytree.tree_leaves(node.args[0]))
            graph.output(copies[choose(flat)])
            continue
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            continue  # A write to the caller's own input is not an effect to repeat.
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: copies[n])
        target: Any = node.name if node.op == "placeholder" else _FOR_ANY_STRIDES.get(node.target, node.target)
        if node.op == "call_function":
            args, kwargs = normal(target, args, kwargs)
        new = graph.create_node(node.op, target, args, kwargs, name=_name(node))
        new.meta = copy.copy(node.meta)
        if "stack_trace" not in new.meta and (origin := node.meta.get("from_node")):
            new.meta["stack_trace"] = traces.get(origin[0].name)
        copies[node] = new
    return graph, guard


def _name(node: fx.Node) -> str:
    """``layer1_0_conv1`` for the op of a module, ``layer1_0_add`` for a functional one in it."""
    if node.op != "call_function" or node.target in (operator.getitem, torch.ops.aten.sym_size.int):
        return node.name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    path = re.sub(r"\W+", "_", path)
    op = name_of_target(node.target).removeprefix("aten.").split(".")[0].strip("_")
    if path and op in str(kind).lower():
        return path
    return f"{path}_{op}".strip("_")


def _identity(module: nn.Module, node: fx.Node) -> Any:
    """What two captures of one model share of a tensor: itself, or the values of one made in the forward pass."""
    value = operator.attrgetter(str(node.target))(module)
    made = "lifted_tensor" in str(node.target) and value.numel() <= 1024
    return (value.dtype, repr(value.tolist())) if made else id(value)
