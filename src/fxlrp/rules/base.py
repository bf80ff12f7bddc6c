"""A rule: how one op's relevance goes to its inputs. Rules are data, and keep no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import Call, Op, Slot
from ..signature import Target, positions

__all__ = ["Account", "Refused", "Rule", "Site", "paired", "total"]


class Account(NamedTuple):
    """Where the relevance of an op's value went, beside its inputs; each is a sum over all elements.

    Attributes
    ----------
    bias : float
        What constants of the model took: biases, padding, constant operands.
    stabilizer : float
        What the stabilizer took, the relevance of units that have nothing to share out included (0 / 0).
    definition : float
        What the rule drops (positive) or adds (negative) by its own definition.
    """

    bias: float = 0.0
    stabilizer: float = 0.0
    definition: float = 0.0


def total(value: Tensor | Sequence[Tensor | None]) -> float:
    """The sum of a tensor's elements, or of those of several tensors (None counts as zero)."""
    parts = [value] if isinstance(value, Tensor) else value
    return sum(float(part.sum()) for part in parts if part is not None)


def paired(relevance: Tensor | Sequence[Tensor | None], values: Tensor | Sequence[Tensor]) -> float:
    """The sum of relevance times values, of one tensor or several; where there is no relevance, it is zero.

    A value may be infinite there, as a mask is.
    """
    each = [relevance] if isinstance(relevance, Tensor) else relevance
    its = [values] if isinstance(values, Tensor) else values
    return total([torch.where(r == 0, 0.0, r * v.to(r.dtype)) for r, v in zip(each, its, strict=True) if r is not None])


class Refused(Exception):
    """A rule cannot serve its op, for this reason; who called it names the place."""


@dataclass(frozen=True)
class Site:
    """Where a rule serves: an op of the graph, and what is known of it before it runs.

    Attributes
    ----------
    op : Op
        The vocabulary's entry.
    target : callable
        The function called.
    slots : tuple of Slot
        The inputs that relevance flows to.
    where : str
        The op and its place, for an error message.
    non_negative : bool
        Whether all of these inputs are known to be non-negative.
    from_outside : bool
        Whether all of them are the model's own inputs, of which nothing is known.
    shut : bool
        Whether relevance is zero wherever the op's value is not positive.
    input_shape : tuple of int
        A small shape like the first input's: same rank and channels.
    param_shapes : dict of str to tuple of int
        The shapes of the op's parameters that are not None.
    """

    op: Op
    target: Target
    slots: tuple[Slot, ...]
    where: str
    non_negative: bool = False
    from_outside: bool = False
    shut: bool = False
    input_shape: tuple[int, ...] = ()
    param_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @cached_property
    def names(self) -> Mapping[str, int]:
        """The positions of the op's arguments."""
        return positions(self.target)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, object]) -> Call:
        """A call of the op."""
        return Call(self.op, self.target, args, kwargs, self.slots, self.names)


class Rule:
    """How one op's relevance goes to its inputs.

    A rule is data: the twin's graph calls it, once for each call of the op, and it keeps nothing. A new one overrides
    `propagate`.

    Attributes
    ----------
    needs_output : bool
        Whether `propagate` reads the op's value; if not, it is given None and the value need not be kept.
    is_identity : bool
        Whether relevance passes unchanged: then nothing is called at all.
    """

    needs_output = True
    is_identity = False

    @property
    def name(self) -> str:
        """The rule's name, as a part of the name of the step in the twin's code."""
        return type(self).__name__.lower()

    def receivers(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """Which of an op's inputs receive relevance: all of them, unless a rule holds one constant."""
        return slots

    def at(self, site: Site) -> Rule:
        """This rule as it serves at a site: the same, unless it makes use of what is known there.

        Parameters
        ----------
        site : Site
            What is known of the op, before its values are.

        Returns
        -------
        Rule
            A rule that serves there alone.

        Raises
        ------
        RuleError
            If it cannot serve there.
        """
        return self

    def takes_scale(self, site: Site) -> bool:
        """Whether a positive factor of the output channels may stand beside the op's weight, and not in it."""
        return False

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        """Relevance of each of ``call.inputs``; to be overridden.

        Parameters
        ----------
        call : Call
            The op, with its values.
        output : Tensor
            The op's value; where ``needs_output`` is False, None in its place.
        relevance : Tensor
            Relevance of the op's value, of its shape. Of an op that moves values to several outputs, a list, with None
            for those that no relevance reaches.

        Returns
        -------
        sequence of Tensor
            One for each input, of its shape.

        Raises
        ------
        Refused
            If it is not overridden.
        """
        raise Refused("it has no method 'propagate', which gives relevance of each input")

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """What does not go to the inputs, and why, for the ledger (`fxlrp.audit`).

        A rule says so by a formula of its own, that does not look at what `propagate` gives. Of one that has none, as
        here, all that it does not hand on is by its definition.

        Parameters
        ----------
        call : Call
            As for `propagate`.
        output : Tensor
            As for `propagate`, but always given.
        relevance : Tensor
            As for `propagate`.

        Returns
        -------
        Account
            The shares of the bias, the stabilizer, and the rule's own definition.
        """
        return Account(definition=total(relevance) - total(self.propagate(call, output, relevance)))

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """Where relevance should lie, for the ledger: ``sum_i <v_i, R_i>``, its sum over the inputs by given weights.

        What `account` is for sums, this is for places: by a formula from the side of the outputs, that does not look at
        what `propagate` gives. For relevance ``R_i = x_i (J^T g)_i``, it is ``<g, J (v x)>``.

        Parameters
        ----------
        call : Call
            As for `account`.
        output : Tensor
            As for `account`.
        relevance : Tensor
            As for `account`.
        weights : sequence of Tensor
            The v_i, one for each of ``call.inputs`` and of its shape.

        Returns
        -------
        float or None
            None, as here, of a rule without such a formula: then it is not checked where relevance lies.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
