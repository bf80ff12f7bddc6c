"""A rule: how one op's relevance goes to its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import RuleError
from ..vocabulary import Call, Op, Slot

__all__ = ["Account", "Gradient", "Pass", "Rule", "Transpose", "paired", "total"]


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


def total(value: Any) -> float:
    """The sum of a tensor's elements, or of those of several tensors (None counts as zero)."""
    parts = value if isinstance(value, list | tuple) else [value]
    return sum(float(part.sum()) for part in parts if part is not None)


def paired(relevance: Any, values: Any) -> float:
    """The sum of relevance times values, of one tensor or several; where there is no relevance, it is zero.

    A value may be infinite there, as a mask is.
    """
    several = isinstance(relevance, list | tuple)
    pairs = zip(relevance, values, strict=True) if several else [(relevance, values)]
    return total([torch.where(r == 0, 0.0, r * v.to(r.dtype)) for r, v in pairs if r is not None])


class Rule(nn.Module):
    """How one op's relevance goes to its inputs.

    A rule is a module without state of its own that the twin's graph calls, once for each call of the op. A new one
    overrides `propagate`.

    Attributes
    ----------
    needs_output : bool
        Whether `propagate` reads the op's value; if not, it is given None and the value need not be kept.
    passes : bool
        Whether relevance passes unchanged: then nothing is called at all.
    takes_scale : bool
        Whether a factor of the output channels may be left out of the op's weight (`Call.channel_scale`), which is
        cheaper where the weight has more numbers than the value.
    """

    needs_output = True
    passes = False
    takes_scale = False

    op: Op
    target: Callable[..., Any]
    slots: Sequence[Slot]
    non_negative: bool
    from_outside: bool
    where: str

    @property
    def name(self) -> str:
        """The rule's name, as a part of the name of the step in the twin's code."""
        return type(self).__name__.lower()

    def receivers(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """Which of an op's inputs receive relevance: all of them, unless a rule holds one constant."""
        return slots

    def place(
        self,
        op: Op,
        target: Callable[..., Any],
        slots: Sequence[Slot],
        *,
        non_negative: bool,
        from_outside: bool,
        where: str,
    ) -> None:
        """Tell the rule which op it serves.

        Parameters
        ----------
        op, target
            The vocabulary's entry and the function called.
        slots : sequence of Slot
            The inputs that relevance flows to.
        non_negative : bool
            Whether all of these inputs are known to be non-negative.
        from_outside : bool
            Whether all of them are the model's own inputs, of which nothing is known.
        where : str
            The op and its place, for an error message.
        """
        self.op, self.target, self.slots = op, target, tuple(slots)
        self.non_negative, self.from_outside, self.where = non_negative, from_outside, where

    def refused(self, why: str) -> RuleError:
        """The error that says why this rule cannot serve its op, with the op's place."""
        return RuleError(f"{self!r} cannot be the rule of {self.where}: {why}")

    def forward(
        self, relevance: Any, output: Any, *args: Any, channel_scale: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Relevance of each input: a tensor, or a tuple of them where the op has several inputs.

        Parameters
        ----------
        relevance : Tensor
            Relevance of the op's value, of its shape.
        output : Tensor or None
            The op's value.
        *args, **kwargs
            The op's arguments.
        channel_scale : Tensor or None
            What was left out of the op's weight, see `Call`.

        Raises
        ------
        RuleError
            If `propagate` does not return relevance of each input.
        """
        call = Call(self.op, self.target, args, kwargs, self.slots, channel_scale)
        found = self.propagate(call, output, relevance)
        self._check(found, call.inputs, relevance)
        return found[0] if len(self.slots) == 1 else tuple(found)

    def _check(self, found: Any, inputs: Sequence[Tensor], relevance: Any) -> None:
        """Raise if `found` is not relevance of each of the inputs: broadcast or split, it would go on as if it were."""
        due = f"a list of {len(inputs)} is due: a tensor for each input, of its shape"
        if not isinstance(found, list | tuple):
            raise self.refused(f"it gave a {type(found).__name__}, where {due}")
        if len(found) != len(inputs):
            raise self.refused(f"it gave relevance for {len(found)} inputs, where {due}")
        parts = relevance if isinstance(relevance, list | tuple) else [relevance]
        precisions = {part.dtype for part in parts if part is not None}
        for value, x in zip(found, inputs, strict=True):
            if not isinstance(value, Tensor):
                raise self.refused(f"it gave a {type(value).__name__} for an input, where {due}")
            if value.shape != x.shape:
                shapes = f"shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}"
                raise self.refused(f"it gave relevance of {shapes}, where {due}")
            if value.dtype not in (x.dtype, *precisions):
                raise self.refused(f"it gave relevance of {value.dtype} for an input of {x.dtype}, where {due}")

    def propagate(self, call: Call, output: Any, relevance: Any) -> Sequence[Tensor]:
        """Relevance of each of ``call.inputs``; to be overridden."""
        raise NotImplementedError

    def account(self, call: Call, output: Any, relevance: Any) -> Account:
        """What does not go to the inputs, and why, for the ledger (`fxlrp.audit`).

        A rule says so by a formula of its own, that does not look at what `propagate` gives. Of one that has none, as
        here, all that it does not hand on is by its definition.

        Parameters
        ----------
        call, output, relevance
            As for `propagate`; `output` is always given.
        """
        return Account(definition=total(relevance) - total(self.propagate(call, output, relevance)))

    def expected(self, call: Call, output: Any, relevance: Any, weights: Sequence[Tensor]) -> float | None:
        """Where relevance should lie, for the ledger: ``sum_i <v_i, R_i>``, its sum over the inputs by given weights.

        What `account` is for sums, this is for places: by a formula from the side of the outputs, that does not look at
        what `propagate` gives. For relevance ``R_i = x_i (J^T g)_i``, it is ``<g, J (v x)>``.

        Parameters
        ----------
        call, output, relevance
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


class Gradient(Rule):
    """The plain gradient: what zennit does with an op that its composite gives no rule."""

    needs_output = False
    takes_scale = True

    def propagate(self, call: Call, output: Any, relevance: Any) -> Sequence[Tensor]:
        """The vector-Jacobian product of the op with the relevance."""
        try:
            return call.vjp(relevance)
        except NotImplementedError as error:
            raise self.refused(str(error)) from error

    def account(self, call: Call, output: Any, relevance: Any) -> Account:
        """Each unit's relevance is multiplied with the sum of its derivatives, ``(J 1)_k``; the rest is dropped."""
        return Account(definition=_not_handed_on(call, relevance))

    def expected(self, call: Call, output: Any, relevance: Any, weights: Sequence[Tensor]) -> float | None:
        """``<v, J^T R> = <R, J v>``."""
        return paired(relevance, call.jvp(weights))


class Transpose(Gradient):
    """The exact transpose of an op that moves values about: relevance goes back to where the values came from."""

    def account(self, call: Call, output: Any, relevance: Any) -> Account:
        """What came from no input is a constant's."""
        return Account(bias=_not_handed_on(call, relevance))


def _not_handed_on(call: Call, relevance: Any) -> float:
    return total(relevance) - paired(relevance, call.jvp([torch.ones_like(x) for x in call.inputs]))


class Pass(Rule):
    """Relevance passes unchanged: of an op that is elementwise, or one-to-one."""

    needs_output = False
    passes = True

    def account(self, call: Call, output: Any, relevance: Any) -> Account:
        """All of it passes."""
        return Account()

    def expected(self, call: Call, output: Any, relevance: Any, weights: Sequence[Tensor]) -> float | None:
        """Each value's stays at its place."""
        return paired(relevance, weights[0])
