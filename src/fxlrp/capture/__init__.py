"""Capture: the model, as a functional graph of ATen ops on its own parameters, by `torch.export`."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..graph import drop_dead_code, name_of_target
from ..marks import PROCESS_GROUP, SYNCHRONIZED
from ..models import tensors_by_path
from ..ops import known
from ..place import module_path
from ..signature import Target
from .copying import copied
from .export import LocalBatchNorm, detached, exported, without_synchronization
from .functional import as_functional
from .outputs import Output, chosen
from .rehearsal import Rehearsal, rehearsed
from .trace import Trace

__all__ = ["Capture", "Output", "Rehearsal", "Trace", "capture", "rehearsed"]

KEPT = 16
"""How many traces are kept, for other models that call the same: a second twin of a model, mostly."""

_TRACES: OrderedDict[Hashable, Trace] = OrderedDict()
_LOCK = threading.Lock()


@dataclass
class Capture:
    """A model as a graph.

    Attributes
    ----------
    trace : Trace
        What was captured, without the model.
    graph_module : fx.GraphModule
        Placeholders are the inputs, the one output is the tensor to explain. Ops are functional (no op writes to its
        inputs) except for ``aten.copy_`` onto the model's buffers. Parameters are ``get_attr`` nodes; they are the
        model's own objects. The batch norm of a `nn.SyncBatchNorm` in training mode is marked
        `SYNCHRONIZED`, with the name of its `PROCESS_GROUP`.
    modules : dict of str to nn.Module
        The model's modules by path, a `nn.SyncBatchNorm` as a batch norm; empty if there is no model (an exported
        program).
    """

    trace: Trace
    graph_module: fx.GraphModule
    modules: Mapping[str, nn.Module]

    def fits(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether this capture speaks for inputs of these shapes and dtypes; torch.compile follows what it asks."""
        return self.trace.fits(inputs)

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
    if isinstance(model, ExportedProgram):
        trace, tensors = _traced(model, output, keep, None)
        return Capture(trace, trace.on(tensors), {})
    model = without_synchronization(model)
    trace = _trace_of(model, inputs, output, frozenset(keep))
    captured = Capture(trace, trace.on(tensors_by_path(model)), dict(model.named_modules(remove_duplicate=False)))
    _mark_synchronized(captured)
    return captured


def _trace_of(model: nn.Module, inputs: tuple[Tensor, ...], output: Output, keep: frozenset[Target]) -> Trace:
    """That of a model which called the same on such inputs, or a new one."""
    # What a function chooses may change with what it reads.
    calls = rehearsed(model, inputs) if output is None or isinstance(output, str | int) else None
    if calls is None:
        return _traced(detached(exported(model, inputs)), output, keep, None)[0]
    forms = tuple((type(x), x.dtype, tuple(x.shape), x.stride(), x.device) for x in inputs)
    key = calls, forms, output, keep, known()
    with _LOCK:
        if key in _TRACES:
            _TRACES.move_to_end(key)
            return _TRACES[key]
    trace, _ = _traced(detached(exported(model, inputs)), output, keep, calls)
    with _LOCK:
        _TRACES[key] = trace
        while len(_TRACES) > KEPT:
            _TRACES.popitem(last=False)
    return trace


def _traced(
    program: ExportedProgram, output: Output, keep: Collection[Target], calls: Rehearsal | None
) -> tuple[Trace, dict[str, Tensor]]:
    """An exported program's trace, and its parameters and buffers."""
    spelled, others = as_functional(program, keep)
    module = spelled.module()
    assert isinstance(module, fx.GraphModule)
    sources = {node.name: node.meta.get("stack_trace") for node in program.graph.nodes}
    spec = spelled.call_spec.out_spec
    assert spec is not None
    graph, guard = copied(module, sources, lambda flat: chosen(pytree.tree_unflatten(flat, spec), output))
    drop_dead_code(graph)
    tensors = tensors_by_path(module)
    own = {*spelled.graph_signature.parameters, *spelled.graph_signature.buffers}
    paths = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
    constants = {path: operator.attrgetter(path)(module) for path in paths if path not in own}
    return Trace(graph, constants, guard, spelled.range_constraints, None if others else calls), tensors


def _mark_synchronized(captured: Capture) -> None:
    for node in captured.graph_module.graph.nodes:
        owner = captured.modules.get(module_path(node))
        if isinstance(owner, LocalBatchNorm) and owner.training:
            SYNCHRONIZED.put(node, True)
            PROCESS_GROUP.put(node, owner.process_group.group_name if owner.process_group else None)


def _identity(module: nn.Module, node: fx.Node) -> object:
    """What two captures of one model share of a tensor: itself, or the values of one made in the forward pass."""
    value = operator.attrgetter(str(node.target))(module)
    made = "lifted_tensor" in str(node.target) and value.numel() <= 1024
    return (value.dtype, repr(value.tolist())) if made else id(value)
