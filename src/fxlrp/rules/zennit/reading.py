"""What a rule's gradient mapper reads of its branches' outputs, and which of its gradients are alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...values import on_the_cpu
from .branch import Mapper
from .memory import remembered

__all__ = ["Reading", "Use", "gradients", "reading_of", "tries"]

_Try = tuple[Tensor, list[Tensor]]

_TRIES = 3
_ENOUGH = 256


class Reading(NamedTuple):
    """How a mapper goes by its branches.

    Attributes
    ----------
    sums : tuple of tuples of int
        The branches whose outputs it reads, by the sums that it reads them in.
    alike : tuple of tuples of (int, float)
        The branches of which a gradient is wanted, by what these gradients are multiples of: that of the first in each,
        with the factors. One that is always zero is in none.
    """

    sums: tuple[tuple[int, ...], ...]
    alike: tuple[tuple[tuple[int, float], ...], ...]


class Use(NamedTuple):
    """How a rule uses its mapper at a place.

    Attributes
    ----------
    branches : int
        How many it has.
    wanted : tuple of int
        Those whose gradients the reducer reads.
    forward : tuple of int
        Those whose output is the forward pass's.
    shut : bool
        Whether relevance is zero wherever the forward pass's output is not positive.
    """

    branches: int
    wanted: tuple[int, ...]
    forward: tuple[int, ...]
    shut: bool


@remembered
@on_the_cpu
def reading_of(mapper: Mapper, use: Use) -> Reading | None:
    """How a mapper goes by its branches, found out on numbers; None if it refuses these.

    Parameters
    ----------
    mapper : callable
        The rule's gradient mapper.
    use : Use
        How it is used.
    """
    try:
        numbers = list(tries(use))
        found = [gradients(mapper, use.wanted, *each) for each in numbers]
        differ = partial(_differ, mapper, use.wanted, numbers, found)
        read = [i for i in range(use.branches) if differ(_exchanged(i))]
        sums = _grouped(read, lambda i, j: not differ(_shifted(i, j)))
    # A user's mapper may refuse numbers that are not its layer's.
    except Exception:
        return None
    left, alike = [i for i in use.wanted if any(bool(each[i].any()) for each in found)], []
    while left:
        first = left[0]
        same = [(i, factor) for i in left if (factor := _factor(found, i, first)) is not None]
        alike.append(tuple(same))
        left = [i for i in left if i not in dict(same)]
    return Reading(tuple(map(tuple, sums)), tuple(alike))


def tries(use: Use) -> Iterator[_Try]:
    """Relevance and outputs, of which those at one place are of a magnitude, and those at all of many."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(_ENOUGH, generator=generator, dtype=torch.float64)
    magnitude = lambda: 10 ** (30 * torch.rand(_ENOUGH, generator=generator, dtype=torch.float64) - 15)
    for _ in range(_TRIES):
        of_outputs = magnitude()
        relevance, value = draw() * magnitude(), draw() * of_outputs
        outputs = [value if i in use.forward else draw() * of_outputs for i in range(use.branches)]
        yield (relevance * (value > 0) if use.shut else relevance), outputs


def gradients(
    mapper: Mapper, wanted: Collection[int], relevance: Tensor, outputs: Sequence[Tensor]
) -> dict[int, Tensor]:
    """What a mapper gives for the branches that are wanted.

    Raises
    ------
    ValueError
        If it does not give a gradient for each, of the relevance's shape.
    """
    with torch.no_grad():
        found = mapper(relevance, [output.clone() for output in outputs])
    found = [found] if isinstance(found, Tensor) else list(found)
    if len(found) != len(outputs) or any(found[i].shape != relevance.shape for i in wanted):
        raise ValueError("no gradient for each branch")
    return {i: found[i] for i in wanted}


def _differ(
    mapper: Mapper,
    wanted: Collection[int],
    numbers: Sequence[_Try],
    found: Sequence[dict[int, Tensor]],
    change: Callable[[Tensor, list[Tensor]], None],
) -> bool:
    """Whether the gradients change with the outputs: `change` does these."""
    for (relevance, outputs), expected in zip(numbers, found, strict=True):
        others = list(outputs)
        change(relevance, others)
        changed = gradients(mapper, wanted, relevance, others)
        if not all(torch.allclose(changed[i], expected[i], rtol=1e-7, atol=0.0) for i in wanted):
            return True
    return False


def _exchanged(index: int) -> Callable[[Tensor, list[Tensor]], None]:
    def change(relevance: Tensor, outputs: list[Tensor]) -> None:
        outputs[index] = outputs[index].roll(1)

    return change


def _shifted(taken_from: int, given_to: int) -> Callable[[Tensor, list[Tensor]], None]:
    def change(relevance: Tensor, outputs: list[Tensor]) -> None:
        amount = 0.37 * outputs[given_to] * relevance.sign()
        outputs[taken_from], outputs[given_to] = outputs[taken_from] - amount, outputs[given_to] + amount

    return change


def _grouped(items: Sequence[int], belong: Callable[[int, int], bool]) -> list[list[int]]:
    groups: list[list[int]] = []
    for item in items:
        group = next((each for each in groups if belong(each[0], item)), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def _factor(found: Sequence[dict[int, Tensor]], index: int, first: int) -> float | None:
    """Which multiple of the first gradient another one is; None if it is none."""
    of, reference = (torch.cat([each[i] for each in found]) for i in (index, first))
    at = int(reference.abs().argmax())
    factor = float(of[at] / reference[at])
    return factor if torch.allclose(of, reference * factor, rtol=1e-9, atol=0.0) else None
