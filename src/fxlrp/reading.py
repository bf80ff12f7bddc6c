"""A value in two readings: what the model computes, and what relevance takes it for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from .graph import call
from .marks import STANDS_FOR
from .signature import Target, normal, parameters, positions

__all__ = ["argument", "is_known", "known", "read_as", "unwrap"]


def known(value: torch.Tensor, *_operands: object) -> torch.Tensor:
    """Return `value`, the result of an op whose operands stand beside it.

    A rewrite that finds another reading of a value that the model has computed already (a batch norm over a
    convolution, read as one convolution) writes it by `read_as`, as ``known(value, *operands)`` with the op as a mark:
    the forward pass is not computed twice, and the relevance pass sees the other reading.
    """
    return value


def read_as(
    value: fx.Node, target: Target, *operands: Argument, like: fx.Node | None = None, name: str | None = None
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
    like : fx.Node or None
        As of `fxlrp.graph.call`; None for `value`.
    name : str or None
        As of `fxlrp.graph.call`.
    """
    computed = value.args[0] if is_known(value) else value
    node = call(like or value, known, computed, *normal(target, operands, {})[0], name=name)
    STANDS_FOR.put(node, target)
    return node


def is_known(node: fx.Node) -> bool:
    """Whether `node` is another reading of a value, see `known`."""
    return node.target is known


def unwrap(node: fx.Node) -> tuple[Target, tuple[Any, ...], dict[str, Any]]:
    """The op that `node` is to be read as: its target, its arguments and its keyword arguments."""
    target: Any = STANDS_FOR.of(node) if is_known(node) else node.target
    assert callable(target), node.format_node()
    args, kwargs = normal(target, node.args[1:] if is_known(node) else node.args, node.kwargs)
    return target, args, kwargs


def argument(node: fx.Node, name: str) -> Any:
    """An argument of the op of `node` by its name, however the call spells it; the default where it is left out."""
    target, args, kwargs = unwrap(node)
    if name in positions(target):
        return args[positions(target)[name]]
    return kwargs.get(name, next(p.default for p in parameters(target) if p.name == name))
