"""Whether a value is known to be non-negative before it runs, from the arguments of its call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from ..reading import argument

__all__ = ["always", "as_inputs", "is_number", "is_tensor", "keeps_sign"]


def always(node: fx.Node, inputs: bool) -> bool:
    """Of an op whose values are never negative."""
    return True


def as_inputs(node: fx.Node, inputs: bool) -> bool:
    """Of an op whose values are non-negative if its inputs are."""
    return inputs


def is_number(value: object, *, at_least: float) -> bool:
    """Whether an argument is known to be a number, and not below `at_least`: one that the graph computes is not."""
    return isinstance(value, int | float) and value >= at_least


def is_tensor(value: object) -> bool:
    """Whether an argument is a tensor that the graph computes."""
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor)


def keeps_sign(*names: str) -> Callable[[fx.Node, bool], bool]:
    """Of an op whose value is non-negative if its inputs are, and the numbers that it takes under these names.

    Of a number that is None the op makes nothing; of an operand that is a tensor, `inputs` speaks.
    """

    def non_negative(node: fx.Node, inputs: bool) -> bool:
        numbers = (argument(node, name) for name in names)
        return inputs and all(
            number is None or is_number(number, at_least=0) or is_tensor(number) for number in numbers
        )

    return non_negative
