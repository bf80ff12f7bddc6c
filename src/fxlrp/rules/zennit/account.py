"""Where relevance goes under a zennit `BasicHook`: the shares of bias, stabilizer and definition, by their formulas.

A rule with branches i, modified inputs x_i, outputs z_i, gradients g_i of the mapper and a reducer
``sum_i a_i x_i (J_i^T g_i)`` hands ``sum_i a_i sum_k g_ik (J_i x_i)_k`` on. Here this is looked at from the side of the
outputs, with no transpose taken: ``J_i x_i = z_i - beta_i`` for an affine op with constant term beta_i.

The branches come in groups that share a denominator, ``g_ik = c_k R_k / stab(d_k)`` with a claim c_k and
``sum_i a_i z_i = A d`` in the group: of R_k it claims ``A c_k``, of which ``A c_k (stab(d_k) - d_k) / stab(d_k)`` goes
to the stabilizer and ``a_i g_ik beta_ik`` to the bias. What no group claims, or claims of ``d_k = 0``, is dropped (or
added, where claims are negative) by definition; where there is nothing at all to share out, 0 / 0, the stabilizer keeps
it.

Where relevance lies is looked at in the same way: ``sum_i <v_i, R_i>``, for any weights v of the inputs, is
``sum_i a_i <g_i, J_i (v x_i)>``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from zennit.core import BasicHook, Stabilizer

from ...ops import Call, pull_back
from ...values import on_the_cpu
from ..base import Account, paired, total
from . import probe
from .branch import Mapper, Modifier
from .stabilizer import has_stabilizer, with_stabilizers

__all__ = ["Evaluated", "account_of", "expected_of"]


@dataclass(frozen=True)
class Evaluated:
    """A branch of the rule: the op at its modified inputs and parameters, and how its output is modified."""

    call: Call
    output_modifier: Modifier


@dataclass(frozen=True)
class _Group:
    """Branches with one denominator."""

    first: int
    factor: float


def account_of(hook: BasicHook, branches: Sequence[Evaluated], relevance: Tensor) -> Account | None:
    """The shares of a rule; None if its reducer is not linear in the gradients.

    Parameters
    ----------
    hook : zennit.core.BasicHook
        The rule.
    branches : sequence of Evaluated
        Its branches.
    relevance : Tensor
        Relevance of the op's value.
    """
    count = len(branches)
    coefficients = probe.coefficients(hook.reducer, count)
    if coefficients is None:
        return None
    of_products, of_gradients = coefficients
    values, gradients = _mapped_back(hook, branches, relevance)
    # Of a branch whose inputs are ones, the gradient is the product.
    ones = [all(bool((x == 1).all()) for x in b.call.inputs) for b in branches]
    of_products = [p + g if one else p for p, g, one in zip(of_products, of_gradients, ones, strict=True)]
    of_gradients = [0.0 if one else g for g, one in zip(of_gradients, ones, strict=True)]
    groups = None if any(of_gradients) else _groups(hook.gradient_mapper, of_products)
    parts = [_Part(b.call, g, p) for b, g, p in zip(branches, gradients, of_products, strict=True) if p]
    if groups is None:
        handed_on = sum(part.factor * paired(part.gradient, part.linear) for part in parts)
        handed_on += sum(
            factor * paired(g, b.call.jvp([torch.ones_like(x) for x in b.call.inputs]))
            for b, g, factor in zip(branches, gradients, of_gradients, strict=True)
            if factor
        )
        return Account(definition=total(relevance) - handed_on)
    stabilizer, definition = _claims(hook.gradient_mapper, groups, relevance, values)
    bias = sum(part.factor * paired(part.gradient, part.constant) for part in parts)
    definition += sum(part.factor * paired(part.gradient, part.remainder) for part in parts if not part.is_affine)
    return Account(bias, stabilizer, definition)


def expected_of(
    hook: BasicHook, branches: Sequence[Evaluated], relevance: Tensor, weights: Sequence[Tensor]
) -> float | None:
    """The inputs' relevance under a rule, summed up by weights; None if its reducer is not linear in the gradients.

    Parameters
    ----------
    hook : zennit.core.BasicHook
        The rule.
    branches : sequence of Evaluated
        Its branches.
    relevance : Tensor
        Relevance of the op's value.
    weights : sequence of Tensor
        For each input, of its shape.
    """
    coefficients = probe.coefficients(hook.reducer, len(branches))
    if coefficients is None:
        return None
    found = 0.0
    _, gradients = _mapped_back(hook, branches, relevance)
    for branch, gradient, of_product, of_gradient in zip(branches, gradients, *coefficients, strict=True):
        if of_product or of_gradient:
            inputs = zip(branch.call.inputs, weights, strict=True)
            found += paired(gradient, branch.call.jvp([v * (of_product * x + of_gradient) for x, v in inputs]))
    return found


def _mapped_back(
    hook: BasicHook, branches: Sequence[Evaluated], relevance: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Each branch's modified output, and the mapper's gradient of its plain one."""
    values, pulls = zip(*(pull_back(b.output_modifier, b.call.run()) for b in branches), strict=True)
    mapped = hook.gradient_mapper(relevance, list(values))
    mapped = [mapped] if isinstance(mapped, Tensor) else list(mapped)
    return list(values), [pull(g)[0] for pull, g in zip(pulls, mapped, strict=True)]


@dataclass(frozen=True)
class _Part:
    """A branch's value as constant term, linear part and remainder: ``z = beta + J x + rho``."""

    call: Call
    gradient: Tensor
    factor: float

    @property
    def is_affine(self) -> bool:
        return self.call.op.linear or self.call.op.at_zero is not None

    @property
    def constant(self) -> Tensor:
        return self.call.with_inputs([torch.zeros_like(x) for x in self.call.inputs]).run()

    @property
    def linear(self) -> Tensor:
        found = self.call.jvp(self.call.inputs)
        assert isinstance(found, Tensor)  # No op with several values gets a composite's rule.
        return found

    @property
    def remainder(self) -> Tensor:
        return self.call.run() - self.constant - self.linear


def _mapped(mapper: Mapper, replacement: Callable[[Stabilizer], Modifier], of: list[Tensor]) -> list[Tensor]:
    """What the mapper makes of a relevance of one, with something else for its stabilizer."""
    found = with_stabilizers(mapper, replacement)(torch.ones_like(of[0]), list(of))
    return [found] if isinstance(found, Tensor) else list(found)


def _claimed(mapper: Mapper, of: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """For each branch: the claim c, ``c d``, and ``c stab(d)``."""
    return (
        _mapped(mapper, lambda s: torch.ones_like, of),
        _mapped(mapper, lambda s: torch.reciprocal, of),
        _mapped(mapper, lambda s: lambda d: s(d).reciprocal(), of),
    )


@on_the_cpu
def _groups(mapper: Mapper, factors: Sequence[float]) -> list[_Group] | None:
    """The groups of branches that share a denominator, found out on random numbers; None if the rule has none such."""
    if not has_stabilizer(mapper):
        return None
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(64, generator=generator, dtype=torch.float64) for _ in factors]
    claims, products, _ = _claimed(mapper, values)
    groups, left = [], [i for i, c in enumerate(claims) if bool(c.any())]
    while left:
        first = left[0]
        members = [
            i for i in left if torch.equal(claims[i], claims[first]) and torch.equal(products[i], products[first])
        ]
        left = [i for i in left if i not in members]
        there = claims[first] != 0
        shared = sum(factors[i] * values[i] for i in members) * claims[first]
        ratio = (torch.as_tensor(shared) / products[first])[there]
        if not torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-9):
            return None
        groups.append(_Group(first, round(float(ratio[0]), 9)))
    return groups


def _claims(mapper: Mapper, groups: Sequence[_Group], relevance: Tensor, values: list[Tensor]) -> tuple[float, float]:
    """The shares of the stabilizer and of the definition."""
    claims, products, stable = _claimed(mapper, values)
    claimed, stabilizer = torch.zeros_like(relevance), 0.0
    something = torch.zeros_like(relevance, dtype=torch.bool)
    for group in groups:
        c, cd, cs = claims[group.first], products[group.first], stable[group.first]
        there = (c != 0) & (cd != 0)
        share = torch.where(there, group.factor * c * (cs - cd) / torch.where(there, cs, 1.0), 0.0)
        stabilizer += paired(relevance, share)
        claimed = claimed + torch.where(there, group.factor * c, 0.0)
        something |= there
    rest = relevance * (1 - claimed)
    stabilizer += total(rest[~something])
    return stabilizer, total(rest[something])
