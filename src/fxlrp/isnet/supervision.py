"""Which layers LRP Deep Supervision looks at: a network's bottlenecks, one for each spatial size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import networkx as nx
from torch import Tensor, fx

from ..capture import Capture
from ..graph import carriers
from ..ops.linear import layer_of, with_bias_map
from ..place import module_calls

__all__ = ["bottlenecks"]


def bottlenecks(captured: Capture) -> list[str]:
    """The modules whose inputs LRP Deep Supervision looks at (section 2.5, appendix F).

    A bottleneck is a value that every path from the input to the output passes: a dominator of the output, "not in
    parallel with skip connections". Between one and the next lies a segment. For each spatial size that
    segments with linear layers produce, the start of the first such segment is taken, and last of all the last
    bottleneck that has a size: of a ResNet, its input, the inputs of its four stages, and that of the global pooling.

    Parameters
    ----------
    captured : Capture
        A model of one input, (B, C, ...).

    Returns
    -------
    list of str
        Module paths, in the order of execution; the first is "input". Each is the outermost module that takes the
        bottleneck for its input. One that no module takes is left out.
    """
    (start,) = captured.placeholders
    chain = _dominators(start, captured.output)
    size = [_spatial(node, start) for node in chain]
    found: dict[fx.Node, None] = {start: None}
    seen: set[tuple[int, ...] | None] = {None}
    for (first, _), (last, of_last) in pairwise(zip(chain, size, strict=True)):
        if of_last not in seen and _has_linear_layer(first, last):
            seen.add(of_last)
            found[first] = None
    named = {node: path for node in chain if (path := _module_taking(node)) is not None}
    with_size = [node for node, of in zip(chain, size, strict=True) if of is not None and node in named]
    if with_size:
        found[with_size[-1]] = None
    inner = [named[node] for node in chain if node in found and node in named and _spatial(node, start) is not None]
    return ["input", *(path for path in dict.fromkeys(inner) if path != named.get(start))]


def _dominators(start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes that every path passes, from the input to the output."""
    active = carriers([start])
    graph = nx.DiGraph((operand, node) for node in active for operand in node.all_input_nodes if operand in active)
    above = nx.immediate_dominators(graph, start)
    chain = [end]
    while chain[-1] is not start:
        chain.append(above[chain[-1]])
    return chain[::-1]


def _spatial(node: fx.Node, start: fx.Node) -> tuple[int, ...] | None:
    """The spatial size of a value that is a smaller image of the input; None of anything else."""
    value, image = node.meta.get("val"), start.meta["val"]
    if not isinstance(value, Tensor) or value.ndim != image.ndim or image.ndim < 3:
        return None
    size, full = (tuple(int(n) for n in x.shape[2:]) for x in (value, image))
    ratios = [n / whole for n, whole in zip(size, full, strict=True)]
    # A value laid out otherwise, channels last, has another aspect; a pixel more or less comes of rounding.
    same = all(abs(n - ratios[0] * whole) <= 1 for n, whole in zip(size, full, strict=True))
    return size if same and max(size) > 1 else None


def _has_linear_layer(first: fx.Node, last: fx.Node) -> bool:
    """Whether a linear layer lies in the segment behind `first`, up to `last`."""
    todo, seen = [last], set()
    while todo:
        node = todo.pop()
        if node in seen or node is first:
            continue
        seen.add(node)
        if callable(node.target) and layer_of(node.target) in with_bias_map:
            return True
        todo.extend(node.all_input_nodes)
    return False


def _module_taking(node: fx.Node) -> str | None:
    """The outermost module that takes `node`, from outside of it, for its input, with every reader of it inside."""
    own = {key for _, key in module_calls(node)}
    readers: Sequence[list[tuple[str, str]]] = [
        [call for call in module_calls(user) if call[1] not in own and call[0]] for user in node.users
    ]
    if not readers or not all(readers):
        return None
    first = readers[0][0]
    return first[0] if all(calls[0] == first for calls in readers) else None
