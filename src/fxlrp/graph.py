"""Small questions to, and small edits of, a `torch.fx` graph of ATen ops."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx.node import map_arg

from .frames import OURS, is_users

__all__ = [
    "SHAPE_ONLY",
    "argument",
    "call",
    "carriers",
    "constant",
    "dependents",
    "drop_dead_code",
    "is_constant",
    "is_known",
    "known",
    "module_calls",
    "module_path",
    "name_of_target",
    "on_the_cpu",
    "parameter_expressions",
    "read_as",
    "replace_reads",
    "source_line",
    "unpack",
    "unwrap",
    "where",
    "writes_buffers",
]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]*)')


_P = ParamSpec("_P")
_T = TypeVar("_T")


def on_the_cpu(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function that finds something out on numbers make these on the CPU, whatever the default device is."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


def known(value: torch.Tensor, *_operands: Any) -> torch.Tensor:
    """Return `value`, the result of an op whose operands stand beside it.

    A pass that finds another reading of a value that the model has computed already (a batch norm over a convolution,
    read as one convolution) writes it by `read_as`, as ``known(value, *operands)`` with the op in the node's meta: the
    forward pass is not computed twice, and the relevance pass sees the other reading.
    """
    return value


def read_as(
    value: fx.Node, target: Callable[..., Any], *operands: Any, like: fx.Node | None = None, name: str | None = None
) -> fx.Node:
    """Write another reading of a value at the insertion point, see `known`.

    Parameters
    ----------
    value : fx.Node
        What the model has computed, or another reading of it.
    target : callable
        The op that it is to be read as the value of.
    *operands
        That op's arguments.
    like, name
        As of `call`; None for `value`, and no name.
    """
    computed: Any = value.args[0] if is_known(value) else value
    node = call(like or value, known, computed, *operands, name=name)
    node.meta["stands_for"] = target
    return node


def replace_reads(old: fx.Node, new: fx.Node, *, but_of: fx.Node | None = None) -> None:
    """Have what reads `old` read `new`, all but `but_of` (None: `new`), which is made of it."""
    keeps = but_of or new
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not keeps)


def is_known(node: fx.Node) -> bool:
    """Whether `node` is another reading of a value, see `known`."""
    return node.target is known


def unwrap(node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The op that `node` is to be read as: its target, its arguments and its keyword arguments.

    An argument that the op's schema has a position for stands there, however the call spells it.
    """
    if is_known(node):
        target, args = node.meta["stands_for"], tuple(node.args[1:])
    else:
        target, args = node.target, tuple(node.args)
    assert callable(target), node.format_node()
    kwargs = dict(node.kwargs)
    left = [p for p in _parameters(target)[len(args) :] if p.by_position] if kwargs else []
    while any(p.name in kwargs for p in left):
        first = left.pop(0)
        args = (*args, kwargs.pop(first.name, first.default))
    return target, args, kwargs


class _Parameter(NamedTuple):
    """What a function takes: its name, its default (None where there is none), and whether it has a position."""

    name: str
    default: Any
    by_position: bool


@cache
def _parameters(target: Callable[..., Any]) -> list[_Parameter]:
    if isinstance(target, torch._ops.OpOverload):
        return [_Parameter(a.name, a.default_value, not a.kwarg_only) for a in target._schema.arguments]
    found = inspect.signature(target).parameters.values()
    return [_Parameter(p.name, None if p.default is p.empty else p.default, p.kind <= 1) for p in found]


def argument(node: fx.Node, name: str) -> Any:
    """An argument of the op of `node` by its name, however the call spells it; the default where it is left out."""
    target, args, kwargs = unwrap(node)
    index, parameter = next((i, p) for i, p in enumerate(_parameters(target)) if p.name == name)
    return args[index] if index < len(args) else kwargs.get(name, parameter.default)


def dependents(sources: Iterable[fx.Node]) -> set[fx.Node]:
    """All nodes whose value depends on one of `sources`, these included."""
    found = set(sources)
    todo = list(found)
    while todo:
        for user in todo.pop().users:
            if user not in found:
                found.add(user)
                todo.append(user)
    return found


_aten = torch.ops.aten
SHAPE_ONLY = (
    _aten.sym_size.int,
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.empty_like.default,
    _aten.full_like.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.new_empty.default,
    _aten.new_full.default,
)
"""Ops that read the shape of a value, and not the value."""


def is_constant(node: fx.Node) -> bool:
    """Whether the value of `node` depends on no value of the model's inputs (on their shapes, at most)."""
    found, todo = {node}, [node]
    while todo:
        at = todo.pop()
        if at.op == "placeholder":
            return False
        operands = () if at.target in SHAPE_ONLY else at.all_input_nodes
        todo += [operand for operand in operands if operand not in found]
        found.update(operands)
    return True


def carriers(sources: Iterable[fx.Node], *, masks: bool = False) -> set[fx.Node]:
    """The nodes that relevance of `sources` may come through: dependent on their values, not on their shapes alone.

    It comes through no number, and through no mask or index, which are another value's factor or place; these are
    among the nodes if ``masks``.
    """
    found = set(sources)
    for node in next(iter(found)).graph.nodes if found else ():
        if (
            node.target not in SHAPE_ONLY
            and _may_carry(node.meta.get("val"), masks)
            and any(operand in found for operand in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _may_carry(value: Any, masks: bool) -> bool:
    if isinstance(value, torch.Tensor):
        return masks or value.is_floating_point() or value.is_complex()
    return not isinstance(value, int | float | bool | torch.SymInt | torch.SymFloat)


def drop_dead_code(graph: fx.Graph) -> None:
    """Erase, in place, every node that nothing reads, except placeholders and what writes to the model's buffers."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "output") or node.users or writes_buffers(node):
            continue
        graph.erase_node(node)


def writes_buffers(node: fx.Node) -> bool:
    """Whether `node` writes to buffers of the model."""
    return node.target is torch.ops.aten.copy_.default or getattr(node.target, "writes_buffers", False)


def call(like: fx.Node, target: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
    """Add a call of `target` at the graph's insertion point, with the place in the model and the shape that it has.

    Parameters
    ----------
    like : fx.Node
        The node that the new one is made for: it takes over its module path and source line.
    target : callable
        The function to call. Its value's shape and dtype are computed on the fake tensors of the arguments.
    """
    graph = like.graph
    node = graph.create_node("call_function", target, args, kwargs, name=name)
    for key in ("nn_module_stack", "stack_trace"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    values, options = map_arg((args, kwargs), lambda n: n.meta["val"])
    with detect_fake_mode((values, options)) or nullcontext(), enable_python_dispatcher():
        node.meta["val"] = target(*values, **options)
    return node


def constant(graph_module: fx.GraphModule, like: fx.Node, value: torch.Tensor, name: str) -> fx.Node:
    """Put a tensor into the graph as a buffer, read at the insertion point; on the device of the value of `like`."""
    graph = graph_module.graph
    example = like.meta["val"]
    mode = detect_fake_mode(example)
    value = value.to(next(x.device for x in (example if isinstance(example, tuple | list) else (example,))))
    while hasattr(graph_module, name):
        name += "_"
    graph_module.register_buffer(name, value, persistent=False)
    node = graph.get_attr(name)
    node.meta["val"] = value if mode is None else mode.from_tensor(value)
    return node


def unpack(node: fx.Node, *names: str) -> list[fx.Node]:
    """The values of a call that returns a tuple, under these names; written behind it."""
    found, last = [], node
    for index, name in enumerate(names):
        with node.graph.inserting_after(last):
            last = call(node, operator.getitem, node, index, name=name)
        found.append(last)
    return found


def parameter_expressions(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no input, and not on chance."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "get_attr" or (
            node.op == "call_function" and not drawn and all(n in found for n in node.all_input_nodes)
        ):
            found.add(node)
    return found


def module_calls(node: fx.Node) -> list[tuple[str, str]]:
    """The calls of modules that `node` lies in, outermost first: (path, key); a module's every call has its own key."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(path, f"{path}@{key}") for key, (path, _) in stack.items()]


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that `node` lies in, '' for the model itself."""
    calls = module_calls(node)
    return calls[-1][0] if calls else ""


def source_line(node: fx.Node) -> str | None:
    """The user's own line that made `node` (``file:line: code``), None where the capture has none."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    # What stands in front of a frame of fxlrp has called fxlrp: it is no part of the model.
    ours = [index for index, frame in enumerate(frames) if frame["file"].startswith(OURS)]
    own = [frame for frame in frames[max(ours, default=-1) + 1 :] if is_users(frame["file"])]
    return f"{own[-1]['file']}:{own[-1]['line']}: {own[-1]['code'].strip()}" if own else None


def name_of_target(target: Any) -> str:
    """A readable name of a call's target, such as ``aten.relu.default``."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def where(node: fx.Node) -> str:
    """Name the op of `node`, its module path and its source line, for an error message."""
    target = unwrap(node)[0] if node.op == "call_function" else node.target
    path = module_path(node)
    place = f"in module '{path}'" if path else "in the model's own forward"
    line = source_line(node)
    return f"{name_of_target(target)} {place}" + (f" ({line})" if line else "")
