"""The rules that have no parameter: the plain gradient, the exact transpose, and relevance that passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import Call
from .base import Account, Refused, Rule, Site, paired, total

__all__ = ["Gradient", "Pass", "Transpose"]


class Gradient(Rule):
    """The plain gradient: what zennit does with an op that its composite gives no rule."""

    needs_output = False

    def takes_scale(self, site: Site) -> bool:
        return True

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        """The vector-Jacobian product of the op with the relevance."""
        try:
            return call.vjp(relevance)
        except NotImplementedError as error:
            raise Refused(str(error)) from error

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """Each unit's relevance is multiplied with the sum of its derivatives, ``(J 1)_k``; the rest is dropped."""
        return Account(definition=_not_handed_on(call, relevance))

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """``<v, J^T R> = <R, J v>``."""
        return paired(relevance, call.jvp(weights))


class Transpose(Gradient):
    """The exact transpose of an op that moves values about: relevance goes back to where the values came from."""

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """What came from no input is a constant's."""
        return Account(bias=_not_handed_on(call, relevance))


def _not_handed_on(call: Call, relevance: Tensor) -> float:
    return total(relevance) - paired(relevance, call.jvp([torch.ones_like(x) for x in call.inputs]))


class Pass(Rule):
    """Relevance passes unchanged: of an op that is elementwise, or one-to-one."""

    needs_output = False

    @property
    def is_identity(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether this is `Pass` itself, or what says no more: a rule that propagates is one of its own."""
        return type(self).propagate is Rule.propagate

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """All of it passes."""
        return Account()

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """Each value's stays at its place."""
        return paired(relevance, weights[0])
