"""What is searched: a function that makes a composite, and the ranges and choices of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zennit.core import Composite, Hook
from zennit.rules import Epsilon, Gamma

from ..composites import Bounds, ByLayer, Place, by_layer, decreasing_gamma, tutorial
from ..errors import InputError
from ..preview import check
from ..rules import stabilizers
from ..wording import did_you_mean

__all__ = ["SPACES", "Range", "Space", "each_layer", "space_of"]

Value = float | str | bool | int


@dataclass(frozen=True)
class Range:
    """A positive number of a rule, or any if it is not logarithmic.

    Attributes
    ----------
    low, high : float
        Both are among the values.
    log : bool
        Whether values are spread evenly by their logarithms.
    steps : int
        How many values a grid has.
    """

    low: float
    high: float
    log: bool = True
    steps: int = 16

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"a range goes from a number to a larger one, not from {self.low!r} to {self.high!r}")
        if self.log and self.low <= 0:
            raise InputError(f"a logarithmic range lies above 0, and {self.low!r} does not: give Range(..., log=False)")
        if self.steps < 2:
            raise InputError(f"a grid has at least 2 steps, not {self.steps}")

    def grid(self) -> list[float]:
        """The values of a grid, both ends among them."""
        return (np.geomspace if self.log else np.linspace)(self.low, self.high, self.steps).tolist()


class Space:
    """Composites to choose from.

    Parameters
    ----------
    make : callable
        Gives a composite, from one argument for each parameter. The numbers of ranges come as tensors of one number,
        which the rules hold: the next trial writes another number into them, and converts nothing again.
    **parameters : tuple of float, Range or sequence
        ``(low, high)`` is a logarithmic range, `Range` any; a list holds choices. One named ``canonize``, with the
        choices True and False, is not given to `make`: it says whether the composite gets the canonical graph, or is
        zennit's own, without canonizers.

    Raises
    ------
    InputError
        If there is no parameter, or one is neither a range nor a list of choices.

    Examples
    --------
    >>> from zennit.composites import LayerMapComposite
    >>> from zennit.rules import Gamma
    >>> from zennit.types import Linear
    >>> from fxlrp.evaluation import Space
    >>> space = Space(lambda gamma: LayerMapComposite([(Linear, Gamma(gamma))]), gamma=(1e-2, 10.0))
    >>> len(space.ranges["gamma"].grid())
    16
    """

    def __init__(
        self, make: Callable[..., Composite], **parameters: tuple[float, float] | Range | Sequence[Value]
    ) -> None:
        self.make = make
        self.ranges: dict[str, Range] = {}
        self.choices: dict[str, list[Value]] = {}
        if not parameters:
            raise InputError("a space has parameters: Space(make, gamma=(0.01, 10.0)), for a make(gamma)")
        for name, given in parameters.items():
            if isinstance(given, Range):
                self.ranges[name] = given
            elif isinstance(given, list) and given:
                self.choices[name] = given
            elif isinstance(given, tuple) and len(given) == 2 and all(type(end) in (int, float) for end in given):
                low, high = map(float, given)
                self.ranges[name] = Range(low, high)
            else:
                raise InputError(f"{name} is a range (low, high), a Range(...) or a list of choices, not {given!r}")
        if "canonize" in self.ranges or any(not isinstance(each, bool) for each in self.choices.get("canonize", ())):
            raise InputError("canonize is chosen from True and False: canonize=[True, False]")

    @property
    def names(self) -> list[str]:
        """The names of all parameters."""
        return [*self.ranges, *self.choices]

    def grid(self) -> dict[str, Sequence[Value]]:
        """The values of each parameter on a grid."""
        return {**{name: each.grid() for name, each in self.ranges.items()}, **self.choices}

    def composite(self, values: Mapping[str, Any]) -> Composite:
        """The composite of these values: numbers, or tensors in their place."""
        arguments = {name: values[name] for name in self.names if name != "canonize"}
        try:
            return self.make(**arguments)
        except TypeError as error:
            if "stabilizer" not in str(error):
                raise
            raise InputError(
                "zennit takes no tensor for an epsilon: give the rule a stabilizer that holds it, "
                "Epsilon(fxlrp.rules.stabilizers['sign'](epsilon))"
            ) from error

    def knobs(self) -> dict[str, Tensor]:
        """A tensor for the number of each range."""
        return {
            name: torch.tensor(each.low, dtype=torch.float64, requires_grad=True) for name, each in self.ranges.items()
        }


def two_gammas(low: Any, high: Any, early: Any, late: Any) -> Composite:
    """LRP-Decreasing-gamma with one gamma for the first half of its ranges, and one for the last."""
    return decreasing_gamma(low, high, gammas=(early, early, late, late))


def strong_epsilon(gamma: Any, epsilon: Any) -> Composite:
    """Gamma in the first half of the linear layers, and a strong epsilon in all of them."""
    stabilizer: Any = stabilizers["sign"](epsilon)
    return by_layer([((0.0, 0.5), Gamma(gamma, stabilizer=stabilizer)), ((0.5, 1.0), Epsilon(stabilizer))])


def each_layer(
    model: nn.Module,
    example: Tensor,
    *,
    gamma: tuple[float, float] | None = (1e-2, 10.0),
    epsilon: tuple[float, float] | None = (1e-3, 1.0),
) -> Space:
    """A gamma and an epsilon of its own for each linear layer, in the order of execution: gamma_0, gamma_1, ...

    Parameters
    ----------
    model : nn.Module
        Whose layers are counted.
    example : Tensor
        An input, (B, C, H, W).
    gamma, epsilon : tuple of float or None
        Their ranges. None: LRP-epsilon has no gamma, and LRP-gamma zennit's own epsilon, 1e-6.

    Raises
    ------
    InputError
        If there is neither.
    """
    count = _Counting()
    check(model, count, example)
    ranges = {"gamma": gamma, "epsilon": epsilon}
    named = {f"{name}_{i}": each for name, each in ranges.items() if each is not None for i in range(count.found)}

    def make(**values: Any) -> Composite:
        def rule(index: int) -> Hook:
            stabilizer: Any = 1e-6 if epsilon is None else stabilizers["sign"](values[f"epsilon_{index}"])
            return Epsilon(stabilizer) if gamma is None else Gamma(values[f"gamma_{index}"], stabilizer=stabilizer)

        return by_layer([(index, rule(index)) for index in range(count.found)])

    return Space(make, **named)


class _Counting(ByLayer):
    """Gives all linear layers one rule, and notices how many there are."""

    def __init__(self) -> None:
        super().__init__([])
        self.found = 0

    def rule_at(self, place: Place) -> Hook | None:
        self.found = place.count
        return Epsilon()


_WIDE = (1e-3, 10.0)

SPACES: dict[str, Callable[[Bounds], Space]] = {
    "tutorial": lambda bounds: Space(partial(tutorial, *bounds), gamma=_WIDE, epsilon=_WIDE),
    "decreasing_gamma": lambda bounds: Space(partial(two_gammas, *bounds), early=_WIDE, late=_WIDE),
    "strong_epsilon": lambda bounds: Space(strong_epsilon, gamma=_WIDE, epsilon=_WIDE),
}
"""Spaces by name: gamma and epsilon of LRP-Tutorial, two gammas of LRP-Decreasing-gamma (Bermudez Schettino, section
3), and gamma in the first half of the layers with a strong epsilon in all."""


def space_of(space: Space | str, bounds: Bounds) -> Space:
    """A space, from itself or from its name in `SPACES`.

    Raises
    ------
    InputError
        If there is no such space.
    """
    if isinstance(space, Space):
        return space
    if not isinstance(space, str) or space not in SPACES:
        hint = did_you_mean(space, SPACES)
        raise InputError(f"a space is a fxlrp.evaluation.Space or one of {', '.join(SPACES)}, not {space!r}{hint}")
    return SPACES[space](bounds)
