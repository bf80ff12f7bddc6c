"""zennit's `BasicHook` evaluated on the graph's own values: a rule as data, for every present and future one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor
from zennit.core import BasicHook, Hook

from ...ops import Call, pull_back
from ...ops.derivative import Pull
from ...values import may_look_at
from ..base import Account, Refused, Rule, Site
from . import probe
from .account import Evaluated, account_of, expected_of
from .branch import Branch, Mapper, Modifying, branches_of, check_params, modified_params
from .held import is_tuned
from .reading import Reading, Use, reading_of
from .spelled import spelled
from .stabilizer import quickened
from .traced import TracedMapper, traced

__all__ = ["BasicRule", "is_basic"]


@dataclass(frozen=True, eq=False, repr=False)
class BasicRule(Rule):
    """A zennit `BasicHook`: modified inputs and parameters, a gradient mapper, a reducer.

    The branches are those of the hook, in its order. What is known to be the same or zero is not computed: a branch
    that modifies nothing takes the forward pass's output; a branch whose input is zero (``clamp(max=0)`` behind a ReLU)
    has the layer's bias for output; a gradient that the reducer does not read is not taken. Unlike zennit, the
    parameters are the graph's own and not ``param.data``: the relevance can be differentiated with respect to them.

    Where an op has several inputs (a sum), the modifiers and the reducer act on each: zennit, which sees a stack of
    the inputs, gives the same for elementwise modifiers and reducers, and there are no others.

    Attributes
    ----------
    hook : zennit.core.BasicHook
        The rule.
    branches, of_non_negative : tuple of Branch
        What `at` makes of it: its branches, and what they are if the model's own input is non-negative; empty if that
        is the same.
    mapper : callable or None
        What gives the same as the hook's gradient mapper.
    by_products : bool
        Whether its branches are one, see `_share_of_products`.
    """

    hook: BasicHook
    branches: tuple[Branch, ...] = ()
    of_non_negative: tuple[Branch, ...] = ()
    mapper: Mapper | None = None
    by_products: bool = False

    @property
    def name(self) -> str:
        return type(self.hook).__name__.lower()

    def __repr__(self) -> str:
        return spelled(self.hook)

    @property
    def needs_output(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        every = (*self.branches, *self.of_non_negative)
        return any(branch.keeps_input and branch.keeps_params for branch in every)

    def at(self, site: Site) -> BasicRule:
        """The rule with its branches.

        Parameters
        ----------
        site : Site
            What is known of the op.

        Returns
        -------
        BasicRule
            A rule that serves there alone.

        Raises
        ------
        RuleError
            If the hook's modifiers are not of one number, or one requires parameters that the op has not.
        """
        check_params(self.hook, list(site.op.params))
        return replace(self, branches=branches_of(self.hook))

    def modifying(self, branch: Branch, site: Site) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """How a branch modifies the parameters of the op at a site."""
        return Modifying(branch.param_modifier, tuple(site.op.params))

    @property
    def keeps_params(self) -> bool:
        """Whether the op's parameters are read as they are, by every branch."""
        return all(branch.keeps_params for branch in self.branches)

    def with_constants(self, params: Mapping[str, Tensor], site: Site) -> BasicRule:
        """The rule with its op's parameters modified here, where they are constants.

        Parameters
        ----------
        params : dict of str to Tensor
            The parameters.
        site : Site
            Where it serves.

        Raises
        ------
        Refused
            If a modifier gives something else than a parameter.
        """
        changed = lambda branch: self.changed_params(branch, params, list(site.op.params))
        stays = lambda branch: branch.keeps_params or is_tuned(branch.param_modifier)
        bound = lambda branches: tuple(b if stays(b) else replace(b, bound=changed(b)) for b in branches)
        return replace(self, branches=bound(self.branches), of_non_negative=bound(self.of_non_negative))

    def reading(self, site: Site) -> Reading | None:
        """How its mapper goes by its branches at a site, as far as their gradients are read; None if not known."""
        count = len(self.branches)
        wanted = [i for i in range(count) if probe.reads_gradient(self.hook.reducer, count, i, ())]
        return reading_of(self.hook.gradient_mapper, self._use(site, wanted))

    def _use(self, site: Site, wanted: Sequence[int]) -> Use:
        """How its mapper is used at a site, if the gradients of these branches are read."""
        shape, shapes = site.input_shape, dict(site.param_shapes)
        forward = tuple(
            i
            for i, branch in enumerate(self.branches)
            if probe.is_identity(branch.output_modifier, (64,), non_negative=False)
            and probe.is_identity(branch.input_modifier, shape, non_negative=site.non_negative)
            and probe.keeps_params(self.modifying(branch, site), shapes)
        )
        return Use(len(self.branches), tuple(wanted), forward, site.shut)

    def with_mapper(self, site: Site) -> Self:
        """The rule with a mapper that gives the same in fewer passes over memory."""
        wanted = [i for i, branch in enumerate(self.branches) if branch.reads_gradient]
        given = [i for i, branch in enumerate(self.branches) if branch.reads_output]
        return replace(self, mapper=self._cheaper_mapper(site, wanted, given) or quickened(self.hook.gradient_mapper))

    def _cheaper_mapper(self, site: Site, wanted: Sequence[int], given: Sequence[int]) -> TracedMapper | None:
        return traced(self.hook.gradient_mapper, self._use(site, wanted), given)

    def takes_scale(self, site: Site) -> bool:
        branches = [b for b in (*self.branches, *self.of_non_negative) if not b.keeps_params]
        return all(probe.keeps_scale(self.modifying(b, site), dict(site.param_shapes)) for b in branches)

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        if self.by_products:
            return [self._share_of_products(call, relevance)]
        exact = relevance.dtype
        zero = torch.zeros((), dtype=exact, device=relevance.device)
        calls, inputs, outputs, pulls, computed = [], [], [], [], []
        branches = self._of_this_input(call)
        for branch in branches:
            if not (branch.reads_output or branch.reads_gradient):
                calls.append(call)
                inputs.append([zero] * len(call.slots))
                outputs.append(zero)
                computed.append(exact)
                pulls.append(None)
                continue
            modified = not (branch.keeps_input or branch.zero_input)
            at = call.with_inputs([_at(branch, x) for x in call.inputs]) if modified else call
            if not branch.keeps_params:
                at = at.with_params(self.changed_params(branch, call.params, list(call.op.params)))
            value, pull = _value(branch, at, output)
            calls.append(at)
            inputs.append([zero] * len(call.slots) if branch.zero_input else [x.to(exact) for x in at.inputs])
            outputs.append(value.to(exact))
            computed.append(value.dtype)
            pulls.append(pull)
        mapped = self._mapped(relevance, outputs, branches)
        gradients: list[list[Tensor]] = []
        for branch, at, dtype, pull, wanted in zip(branches, calls, computed, pulls, mapped, strict=True):
            if not branch.reads_gradient:
                gradients.append([zero] * len(call.slots))
                continue
            (gradient,) = (wanted,) if pull is None else pull(wanted)
            gradients.append([taken.to(exact) for taken in at.vjp(gradient.to(dtype))])
        return [
            self._reduced([i[slot] for i in inputs], [g[slot] for g in gradients], x)
            for slot, x in enumerate(call.inputs)
        ]

    def _of_this_input(self, call: Call) -> Sequence[Branch]:
        """The branches; of the model's own input, those for a non-negative one, if it is."""
        looks = len(self.of_non_negative) > 0 and may_look_at(*call.inputs)
        return self.of_non_negative if looks and all(bool((x >= 0).all()) for x in call.inputs) else self.branches

    def changed_params(
        self, branch: Branch, params: Mapping[str, Tensor], names: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """An op's parameters as a branch has them: of these names, as far as it reads them."""
        if branch.bound is not None:
            return branch.bound
        read = branch.needed(params)
        rectified = {name: read.pop(name).relu() for name in branch.rectified if name in read}
        found = modified_params(branch.param_modifier, read, names)
        for name, param in read.items():
            _same_shape(f"a param modifier made of the {name}", found[name], param.shape)
        return {**found, **rectified}

    def _mapped(self, relevance: Tensor, outputs: list[Tensor], branches: Sequence[Branch]) -> list[Tensor]:
        """The gradient of each branch's output."""
        mapped = (self.mapper or self.hook.gradient_mapper)(relevance, outputs)
        mapped = [mapped] if isinstance(mapped, Tensor) else list(mapped) if isinstance(mapped, Iterable) else []
        if len(mapped) != len(branches):
            raise Refused(f"its gradient mapper gave {len(mapped)} tensors for {len(branches)} branches")
        for gradient, branch in zip(mapped, branches, strict=True):
            if branch.reads_gradient:
                _same_shape("its gradient mapper gave", gradient, relevance.shape)
        return mapped

    def _reduced(self, inputs: list[Tensor], gradients: list[Tensor], x: Tensor) -> Any:
        """What the reducer makes of an input's branches; of none but such as are left out, one number for all."""
        found = self.hook.reducer(inputs, gradients)
        nothing = all(value.ndim == 0 for value in (*inputs, *gradients))
        return found.expand(x.shape) if nothing and isinstance(found, Tensor) else found

    def _share_of_products(self, call: Call, relevance: Tensor) -> Tensor:
        """Where each value has one input, the branches of z+ are one: ``relu(x w) R / (relu(x w) + relu(b))``."""
        assert call.op.products is not None
        assert call.op.at_zero is not None
        products = call.op.products(call).to(relevance.dtype).relu()
        bias = call.op.at_zero(call.with_params({"bias": call.params["bias"].relu()}))
        outputs = [products if bias is None else products + bias]
        outputs += [products.new_zeros(())] * (len(self.branches) - 1)
        return products * (self.mapper or self.hook.gradient_mapper)(relevance, outputs)[0]

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """Every branch evaluated anew, without shortcuts: see `fxlrp.rules.zennit.account`."""
        found = account_of(self.hook, self._evaluated(call), relevance)
        return super().account(call, output, relevance) if found is None else found

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """As `account`: every branch anew."""
        return expected_of(self.hook, self._evaluated(call), relevance, weights)

    def _evaluated(self, call: Call) -> list[Evaluated]:
        params = lambda modifier: modified_params(modifier, call.params, list(call.op.params))
        return [
            Evaluated(
                call.with_inputs([branch.input_modifier(x) for x in call.inputs]).with_params(
                    params(branch.param_modifier)
                ),
                branch.output_modifier,
            )
            for branch in branches_of(self.hook)
        ]


def _at(branch: Branch, x: Tensor) -> Tensor:
    value = branch.input_modifier(x)
    _same_shape("an input modifier gave", value, x.shape)
    return value


def _value(branch: Branch, at: Call, output: Tensor) -> tuple[Tensor, Pull | None]:
    """A branch's output, and the pull-back of its output modifier (None where it changes nothing)."""
    if branch.is_forward:
        return output, None
    if branch.zero_input:
        assert at.op.at_zero is not None
        value = at.op.at_zero(at)
        return (at.inputs[0].new_zeros(()) if value is None else value), None
    value = output if branch.keeps_input and branch.keeps_params else at.run()
    if branch.keeps_output:
        return value, None
    modified, pull = pull_back(branch.output_modifier, value)
    _same_shape("an output modifier gave", modified, value.shape)
    return modified, pull


def _same_shape(what: str, value: object, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor):
        raise Refused(f"{what} a {type(value).__name__}, where a tensor of shape {tuple(shape)} is due")
    if value.shape != shape:
        raise Refused(f"{what} a tensor of shape {tuple(value.shape)}, where {tuple(shape)} is due")


def is_basic(hook: Hook) -> TypeGuard[BasicHook]:
    """Whether a zennit hook is nothing but the data of a `BasicHook`, its methods not overridden."""
    kind = type(hook)
    return isinstance(hook, BasicHook) and all(
        getattr(kind, method) is getattr(BasicHook, method)
        for method in ("forward", "backward", "pre_forward", "post_forward", "pre_backward")
    )
