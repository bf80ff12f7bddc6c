"""One sample of a batch: its shapes, and where ops move its elements, found by running them on numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from ..marks import VALUES_READ
from ..ops import Slot
from ..ops.structure import CASTS
from ..reading import unwrap

__all__ = ["NONE", "Sample", "filled", "item_of", "moved", "run_on", "spread"]

NONE = -1
"""The number of an element that comes from nowhere: padding."""


class Sample:
    """One sample of a graph's inputs.

    Parameters
    ----------
    graph_module : fx.GraphModule
        Its sizes may depend on the batch's; of those that vary otherwise, nothing is known.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._module = graph_module
        inputs = [n.meta["val"] for n in graph_module.graph.nodes if n.op == "placeholder"]
        sizes = [x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim]
        self._batch = {s for size in sizes if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols}

    def shape(self, node: fx.Node) -> list[int] | None:
        """A value's shape for one sample; None if it has other sizes that vary."""
        found = [self._number(size) for size in node.meta["val"].shape]
        sizes = [size for size in found if size is not None]
        return sizes if len(sizes) == len(found) else None

    def settings(
        self, node: fx.Node, slots: Mapping[Slot, fx.Node]
    ) -> tuple[dict[fx.Node, object], dict[fx.Node, Tensor]] | None:
        """The other operands of `node`: numbers for one sample, and constant tensors; None if there are others."""
        numbers: dict[fx.Node, object] = {}
        constants: dict[fx.Node, Tensor] = {}
        for operand in set(node.all_input_nodes) - set(slots.values()):
            value = operand.meta["val"]
            if not isinstance(value, Tensor) and (number := self._number(value)) is not None:
                numbers[operand] = number
            elif operand.op == "get_attr":
                path = str(operand.target)
                constants[operand] = operator.attrgetter(path)(self._module)
                VALUES_READ.put(self._module, VALUES_READ.of(self._module) | {path})
            else:
                return None
        return numbers, constants

    def _number(self, value: Any) -> Any:
        """A number for one sample, None if it depends on anything else."""
        if not isinstance(value, torch.SymInt):
            return value
        value = value.node.expr.subs(dict.fromkeys(self._batch, 1))
        return None if value.free_symbols else int(value)


def item_of(value: Any, item: int | None) -> Any:
    """An item of what an op gives; None for all of it."""
    return value if item is None else value[item]


def filled(
    node: fx.Node, slots: Mapping[Slot, fx.Node], values: Sequence[object], others: Mapping[fx.Node, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `node` with other values in its slots, and in the place of other nodes."""
    args: list[Any] = [list(a) if isinstance(a, list | tuple) else a for a in node.args]
    for (position, index), value in zip(slots, values, strict=True):
        if index is None:
            args[position] = value
        else:
            args[position][index] = value
    replaced = lambda argument: map_aggregate(argument, lambda a: others.get(a, a) if isinstance(a, fx.Node) else a)
    return tuple(replaced(args)), dict(replaced(node.kwargs))


def run_on(
    node: fx.Node, slots: Mapping[Slot, fx.Node], others: Mapping[fx.Node, object], item: int | None = None
) -> Callable[..., Tensor]:
    """The op of `node` (or its item `item`) as a function of the values in its slots, with its other operands given."""

    def run(*inputs: Tensor) -> Tensor:
        if unwrap(node)[0] in CASTS:
            return inputs[0]  # The numbers of elements are not values, to be rounded.
        args, kwargs = filled(node, slots, inputs, others)
        return item_of(unwrap(node)[0](*args, **kwargs), item)

    return run


def moved(run: Callable[..., Tensor], numbers: Sequence[Tensor]) -> Tensor | None:
    """The numbers of a linear op's elements; None if one is made of elements of several numbers."""
    there = [(n != NONE).double() for n in numbers]
    weight = run(*there)
    first = run(*(w * n for w, n in zip(there, numbers, strict=True)))
    second = run(*(w * n * n for w, n in zip(there, numbers, strict=True)))
    empty = weight.abs() < 1e-9
    mean = torch.where(empty, 0.0, first / torch.where(empty, 1.0, weight)).round()
    close = lambda a, b: torch.isclose(a, b, rtol=1e-9, atol=1e-6)
    same = close(first, weight * mean) & close(second, weight * mean * mean)
    return torch.where(empty, NONE, mean.long()) if bool(same.all()) else None


def spread(scales: Tensor, index: Tensor, otherwise: float) -> Tensor:
    """The scale of each element: ``scales[index]``, and `otherwise` where the index is -1."""
    return torch.cat([scales, scales.new_full((1,), otherwise)])[index]
