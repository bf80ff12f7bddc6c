"""Small questions to, and small edits of, a `torch.fx` graph of ATen ops."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx.node import Argument, map_arg

from .signature import Target, normal

__all__ = [
    "SHAPE_ONLY",
    "call",
    "carriers",
    "constant",
    "dependents",
    "drop_dead_code",
    "is_constant",
    "name_of_target",
    "parameter_expressions",
    "replace_reads",
    "unpack",
    "writes_buffers",
]


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


def _may_carry(value: object, masks: bool) -> bool:
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


def call(like: fx.Node, target: Target, *args: Argument, name: str | None = None, **kwargs: Argument) -> fx.Node:
    """Add a call of `target` at the graph's insertion point, with the place in the model and the shape that it has.

    Parameters
    ----------
    like : fx.Node
        The node that the new one is made for: it takes over its module path and source line.
    target : callable
        The function to call. Its value's shape and dtype are computed on the fake tensors of the arguments.
    *args
        The arguments: nodes, and what is none.
    name : str or None
        The new node's; None for one after the function.
    **kwargs
        The arguments by name.
    """
    graph = like.graph
    args, kwargs = normal(target, args, kwargs)
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


def replace_reads(old: fx.Node, new: fx.Node, *, but_of: fx.Node | None = None) -> None:
    """Have what reads `old` read `new`, all but `but_of` (None: `new`), which is made of it."""
    keeps = but_of or new
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not keeps)


def name_of_target(target: object) -> str:
    """A readable name of a call's target, such as ``aten.relu.default``."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
