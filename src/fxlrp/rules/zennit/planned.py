"""A zennit rule evaluated by the fewest products that it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops import Call
from ..base import Site
from . import probe
from .basic import BasicRule
from .held import is_tuned
from .plan import Plan, Share, SidedBranch
from .products import plan_of
from .sided import ALL, NONE, Sided, sided
from .stabilizer import quickened

__all__ = ["PlannedRule", "planned"]

_EMPTY = Plan((), {}, ())


@dataclass(frozen=True, eq=False, repr=False)
class PlannedRule(BasicRule):
    """A rule that is evaluated by a plan, see `fxlrp.rules.zennit.products`.

    Attributes
    ----------
    plan : Plan
        What is computed.
    beside : bool
        Whether transposes that are summed up are one, with the channels of their gradients side by side, where
        parameters are constants.
    constants : dict of (str, Sided or tuple of Sided) to Tensor or None
        The modified parameters, by name, where they are constants; of several, weights side by side.
    """

    plan: Plan = _EMPTY
    beside: bool = False
    constants: Mapping[tuple[str, Sided | tuple[Sided, ...]], Tensor] | None = None

    @property
    def needs_output(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.plan.reads_forward

    @property
    def keeps_params(self) -> bool:
        return all(form == ALL for form in self.plan.weights)

    def with_mapper(self, site: Site) -> PlannedRule:
        mapper = self._cheaper_mapper(site, self.plan.gradients, list(self.plan.values))
        if mapper is None:
            return replace(self, mapper=quickened(self.hook.gradient_mapper))
        return replace(self, mapper=mapper, plan=self.plan.of_outputs(mapper.reads))

    def takes_scale(self, site: Site) -> bool:
        return True

    def with_constants(self, params: Mapping[str, Tensor], site: Site) -> PlannedRule:
        weight = params["weight"]
        constants: dict[tuple[str, Sided | tuple[Sided, ...]], Tensor] = {}
        if "bias" in params:
            constants |= {("bias", form): form.of(params["bias"]) for form in self.plan.biases}
        constants |= {("weight", product.weight): product.weight.of(weight) for product in self.plan.products}
        for share in self.plan.shares:
            forms = tuple(part.weight for part in share.parts)
            if self.beside and len(forms) > 1:
                assert site.op.channels is not None
                side_by_side = torch.cat([form.of(weight) for form in forms], site.op.channels.of_weight)
                constants["weight", forms] = side_by_side
            else:
                constants |= {("weight", form): form.of(weight) for form in forms}
        return replace(self, constants=constants)

    def _param(self, call: Call, name: str, form: Sided) -> Mapping[str, Tensor | None]:
        """A parameter as a form has it; nothing, if the op has none."""
        if name not in call.params:
            return {}
        if form == NONE:
            return {name: None}
        return {name: form.of(call.params[name]) if self.constants is None else self.constants[name, form]}

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        exact, (x,) = relevance.dtype, call.inputs
        modified = {form: form.of(x) for form in self.plan.inputs}
        products = []
        for product in self.plan.products:
            at = call.with_inputs([modified[product.input]])
            at = at.with_params(
                {**self._param(call, "weight", product.weight), **self._param(call, "bias", product.bias)}
            )
            products.append(at.run().to(exact))
        outputs = [torch.zeros((), dtype=exact, device=relevance.device)] * len(self.branches)
        for i, value in self.plan.values.items():
            terms = [(factor, p) for factor, p in zip(value.factors, products, strict=True) if factor]
            if value.forward:
                terms.append((value.forward, output.to(exact)))
            if value.bias != NONE and (bias := self._constant(call, value.bias)) is not None:
                terms.append((1.0, bias.to(exact)))
            outputs[i] = _sum(terms)
        mapped = (self.mapper or self.hook.gradient_mapper)(relevance, outputs)
        mapped = [mapped] if isinstance(mapped, Tensor) else list(mapped)
        found = None
        for share in self.plan.shares:
            part, taken = modified[share.input].to(exact), self._taken_back(call, share, mapped).to(exact)
            found = part * taken if found is None else torch.addcmul(found, part, taken)
        return [x.new_zeros((), dtype=exact).expand(x.shape) if found is None else found]

    def _constant(self, call: Call, form: Sided) -> Tensor | None:
        assert call.op.at_zero is not None
        return call.op.at_zero(call.with_params(self._param(call, "bias", form)))

    def _taken_back(self, call: Call, share: Share, mapped: Sequence[Tensor]) -> Tensor:
        """What a share's inputs are multiplied with."""
        dtype = call.inputs[0].dtype
        parts = [(p.weight, _sum([(f, mapped[i]) for i, f in p.gradients]).to(dtype)) for p in share.parts]
        weight = (self.constants or {}).get(("weight", tuple(form for form, _ in parts)))
        if weight is not None:
            assert call.op.channels is not None
            gradients = torch.cat([gradient for _, gradient in parts], call.op.channels.of_value)
            (taken,) = call.with_params({"weight": weight}).vjp(gradients)
            return taken
        return _sum([(1.0, call.with_params(self._param(call, "weight", form)).vjp(g)[0]) for form, g in parts])


def _sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """A sum of multiples; one of a single tensor is no copy."""
    (factor, first), *rest = sorted(terms, key=lambda term: term[0] != 1.0)
    total = first if factor == 1.0 else first * factor
    for factor, term in rest:
        total = torch.add(total, term, alpha=factor)
    return total


def planned(rule: BasicRule, site: Site, *, subtract: bool) -> PlannedRule | None:
    """A rule by the fewest products; None if it is not of those that have a plan.

    Parameters
    ----------
    rule : BasicRule
        As it serves at the site.
    site : Site
        What is known there.
    subtract : bool
        As of `fxlrp.rules.zennit.products.plan_of`.
    """
    if site.op.at_zero is None or site.op.products is not None or len(site.slots) != 1 or is_tuned(rule.hook):
        return None
    branches, reading = sided_branches(rule, site), rule.reading(site)
    if branches is None or reading is None:
        return None
    plan = plan_of(branches, reading.sums, reading.alike, non_negative=site.non_negative, subtract=subtract)
    return PlannedRule(rule.hook, rule.branches, mapper=rule.mapper, plan=plan)


def sided_branches(rule: BasicRule, site: Site) -> list[SidedBranch] | None:
    """The rule's branches as sided functions; None if one of them is not, or its reducer is no sum of products."""
    factors = probe.coefficients(rule.hook.reducer, len(rule.branches))
    if factors is None or any(factors[1]):
        return None
    found = []
    for branch, factor in zip(rule.branches, factors[0], strict=True):
        if not probe.is_identity(branch.output_modifier, (64,), non_negative=False):
            return None
        modify = rule.modifying(branch, site)
        at = sided(branch.input_modifier, site.input_shape, non_negative=site.non_negative)
        shapes = probe.small(site.param_shapes)
        forms = {name: sided(probe.Alone(modify, name), shape) for name, shape in shapes.items()}
        if at is None or None in forms.values():
            return None
        known = {name: form for name, form in forms.items() if form is not None}
        found.append(SidedBranch(at, known["weight"], known.get("bias", NONE), factor))
    return found
