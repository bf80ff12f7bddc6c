"""zennit's `BasicHook` evaluated on the graph's own values: a rule as data, for every present and future one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from zennit.core import BasicHook, ParamMod, zero_wrap

from ..errors import RuleError
from ..values import may_look_at
from ..vocabulary import Call, pull_back
from . import probe
from .account import Evaluated, account_of, expected_of
from .base import Account, Rule
from .spelled import spelled
from .stabilizer import quickened

__all__ = ["BasicRule", "modified_params"]


def modified_params(modifier: Any, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters as a zennit `ParamMod` changes them, without a module around them.

    Parameters
    ----------
    modifier : zennit.core.ParamMod or callable
        As in a `BasicHook`'s ``param_modifiers``.
    params : dict of str to Tensor
        The op's parameters.
    names : sequence of str
        The names of all parameters that the op can have; one of ``param_keys`` beyond them is missing.

    Returns
    -------
    dict of str to Tensor
        All of `params`, those named by ``param_keys`` (all, if None) modified or, by ``zero_params``, zeroed.

    Raises
    ------
    RuleError
        If ``require_params`` is set and a parameter named by ``param_keys`` is missing.
    """
    mod = ParamMod.ensure(modifier)
    keys = list(params) if mod.param_keys is None else mod.param_keys
    missing = [key for key in keys if key not in names]
    if mod.require_params and missing:
        raise RuleError(
            f"the rule requires the parameters {missing}, which the op has not (it has {list(names)}): give it to "
            "another layer, or set require_params=False"
        )
    modify = zero_wrap(mod.zero_params or [])(mod.modifier)
    return dict(params) | {key: modify(params[key], key) for key in keys if key in params}


@dataclass(frozen=True)
class _Branch:
    """One of a rule's branches, and what was found out about it."""

    input_modifier: Callable[[Tensor], Tensor]
    param_modifier: Any
    output_modifier: Callable[[Tensor], Tensor]
    keeps_input: bool
    keeps_params: bool
    keeps_scale: bool
    rectified: Sequence[str]
    keeps_output: bool
    zero_input: bool
    reads_gradient: bool

    @property
    def is_forward(self) -> bool:
        """Whether the branch's output is the forward pass's."""
        return self.keeps_input and self.keeps_params and self.keeps_output

    def needed(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of an op's parameters those that the branch reads: of a layer whose input is zero, the value is the bias."""
        unread = "weight" if self.zero_input and not self.reads_gradient else None
        return {name: value for name, value in params.items() if name != unread}


class BasicRule(Rule):
    """A zennit `BasicHook`: modified inputs and parameters, a gradient mapper, a reducer.

    The branches are those of the hook, in its order. What is provably the same or zero is not computed: a branch that
    modifies nothing takes the forward pass's output; a branch whose input is zero (``clamp(max=0)`` behind a ReLU) has
    the layer's bias for output; a gradient that the reducer does not read is not taken. Unlike zennit, the parameters
    are the graph's own and not ``param.data``: the relevance can be differentiated with respect to them.

    Where an op has several inputs (a sum), the modifiers and the reducer act on each: zennit, which sees a stack of
    the inputs, gives the same for elementwise modifiers and reducers, and there are no others.

    Parameters
    ----------
    hook : zennit.core.BasicHook
        The rule.
    """

    def __init__(self, hook: BasicHook) -> None:
        super().__init__()
        self.hook = hook
        self._mapper = quickened(hook.gradient_mapper)
        self._bound: list[dict[str, Tensor]] | None = None

    @property
    def name(self) -> str:
        return type(self.hook).__name__.lower()

    def __repr__(self) -> str:
        return spelled(self.hook)

    def analyse(self, input_shape: Sequence[int], param_shapes: Mapping[str, Sequence[int]]) -> None:
        """Find out, before anything runs, which of the rule's branches need computing.

        Parameters
        ----------
        input_shape : sequence of int
            A small shape like an input's: same rank and channels.
        param_shapes : dict of str to sequence of int
            The shapes of the op's parameters that are not None.
        """
        self.branches = self._branches(input_shape, param_shapes, self.non_negative)
        # Of the model's input, nothing is known before it is there (`_of_this_input`).
        self._of_non_negative = self._branches(input_shape, param_shapes, True) if self.from_outside else self.branches
        self._by_products = (
            self.op.products is not None
            and all(branch.keeps_output for branch in self.branches)
            and probe.shares_positive_products(
                [branch.input_modifier for branch in self.branches],
                [lambda p, m=branch.param_modifier: self._modified(m, p) for branch in self.branches],
                self.hook.gradient_mapper,
                self.hook.reducer,
            )
        )
        every = [*self.branches, *self._of_non_negative]
        self.needs_output = any(branch.keeps_input and branch.keeps_params for branch in every)
        self.takes_scale = all(branch.keeps_params or branch.keeps_scale for branch in every)

    def _branches(
        self, input_shape: Sequence[int], param_shapes: Mapping[str, Sequence[int]], non_negative: bool
    ) -> list[_Branch]:
        hook, domain = self.hook, {"non_negative": non_negative}
        parts: list[Any] = [hook.input_modifiers, hook.param_modifiers, hook.output_modifiers]
        counts = [len(part) for part in parts]
        if len(set(counts)) > 1:
            raise RuleError(
                "it has {} input modifiers, {} param modifiers and {} output modifiers: each of its branches needs one "
                "of each".format(*counts)
            )
        modifiers = list(zip(*parts, strict=True))
        affine = self.op.at_zero is not None
        zero = [
            i
            for i, (at_input, _, at_output) in enumerate(modifiers)
            if affine
            and probe.is_identity(at_output, (64,), non_negative=False)
            and probe.is_zero(at_input, input_shape, **domain)
        ]
        return [
            _Branch(
                input_modifier=_without_mask(at_input, input_shape),
                param_modifier=at_params,
                output_modifier=at_output,
                keeps_input=probe.is_identity(at_input, input_shape, **domain),
                keeps_params=probe.keeps_params(lambda p, m=at_params: self._modified(m, p), dict(param_shapes)),
                keeps_scale=probe.keeps_scale(lambda p, m=at_params: self._modified(m, p), dict(param_shapes)),
                rectified=probe.rectified(lambda p, m=at_params: self._modified(m, p), dict(param_shapes)),
                keeps_output=probe.is_identity(at_output, (64,), non_negative=False),
                zero_input=i in zero,
                reads_gradient=probe.reads_gradient(hook.reducer, len(modifiers), i, zero),
            )
            for i, (at_input, at_params, at_output) in enumerate(modifiers)
        ]

    def _of_this_input(self, call: Call) -> Sequence[_Branch]:
        """The branches; of the model's own input, those for a non-negative one, if it is."""
        looks = self.from_outside and may_look_at(*call.inputs)
        return self._of_non_negative if looks and all(bool((x >= 0).all()) for x in call.inputs) else self.branches

    def bind(self, params: Mapping[str, Tensor]) -> None:
        """Take the op's parameters as constants: modify them once, here."""
        with torch.no_grad():
            self._bound = [
                dict(params) if branch.keeps_params else self._changed(branch.param_modifier, branch.needed(params))
                for branch in self.branches
            ]

    def _modified(self, modifier: Any, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return modified_params(modifier, params, list(self.op.params))

    def _changed(self, modifier: Any, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The op's own parameters, modified."""
        found = self._modified(modifier, params)
        for name, param in params.items():
            self._same_shape(f"a param modifier made of the {name}", found[name], param.shape)
        return found

    def _same_shape(self, what: str, value: Any, shape: Sequence[int]) -> None:
        if not isinstance(value, Tensor):
            raise self.refused(f"{what} a {type(value).__name__}, where a tensor of shape {tuple(shape)} is due")
        if value.shape != shape:
            raise self.refused(f"{what} a tensor of shape {tuple(value.shape)}, where {tuple(shape)} is due")

    def _with_modified_params(self, call: Call, branch: _Branch, index: int) -> Call:
        if self._bound is not None:
            return call.with_params(self._bound[index])
        params = branch.needed(call.params)
        if call.channel_scale is not None and "weight" in params:
            # What is left out of the weight is its scale's size, which the modifier commutes with.
            assert call.op.scaled is not None
            sign = call.channel_scale.detach().sign()
            if not (may_look_at(sign) and bool((sign > 0).all())):
                params["weight"] = call.op.scaled(call, sign)
            call = replace(call, channel_scale=call.channel_scale.abs())
        rectified = {name: params.pop(name).relu() for name in branch.rectified if name in params}
        return call.with_params({**self._changed(branch.param_modifier, params), **rectified})

    def propagate(self, call: Call, output: Any, relevance: Any) -> Sequence[Tensor]:
        if self._by_products:
            return [self._share_of_products(call, relevance)]
        exact = relevance.dtype
        zero = torch.zeros((), dtype=exact, device=relevance.device)
        calls, inputs, outputs, pulls, computed = [], [], [], [], []
        branches = self._of_this_input(call)
        for index, branch in enumerate(branches):
            modified = not (branch.keeps_input or branch.zero_input)
            at = call.with_inputs([self._at(branch, x) for x in call.inputs]) if modified else call
            if not branch.keeps_params:
                at = self._with_modified_params(at, branch, index)
            value, pull = self._value(branch, at, output)
            calls.append(at)
            inputs.append([zero] * len(self.slots) if branch.zero_input else [x.to(exact) for x in at.inputs])
            outputs.append(value.to(exact))
            computed.append(value.dtype)
            pulls.append(pull)
        mapped = self._mapped(relevance, outputs, branches)
        gradients: list[Any] = []
        for branch, at, dtype, pull, wanted in zip(branches, calls, computed, pulls, mapped, strict=True):
            if not branch.reads_gradient:
                gradients.append([zero] * len(self.slots))
                continue
            (gradient,) = (wanted,) if pull is None else pull(wanted)
            gradients.append([taken.to(exact) for taken in at.vjp(gradient.to(dtype))])
        found: list[Any] = [
            self._reduced([i[slot] for i in inputs], [g[slot] for g in gradients], x)
            for slot, x in enumerate(call.inputs)
        ]
        return found

    def _at(self, branch: _Branch, x: Tensor) -> Tensor:
        value = branch.input_modifier(x)
        self._same_shape("an input modifier gave", value, x.shape)
        return value

    def _mapped(self, relevance: Tensor, outputs: list[Tensor], branches: Sequence[_Branch]) -> list[Any]:
        """The gradient of each branch's output."""
        mapped: Any = self._mapper(relevance, outputs)
        mapped = [mapped] if isinstance(mapped, Tensor) else list(mapped) if isinstance(mapped, Iterable) else []
        if len(mapped) != len(branches):
            raise self.refused(f"its gradient mapper gave {len(mapped)} tensors for {len(branches)} branches")
        for gradient, branch in zip(mapped, branches, strict=True):
            if branch.reads_gradient:
                self._same_shape("its gradient mapper gave", gradient, relevance.shape)
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
        return products * self._mapper(relevance, outputs)[0]

    def account(self, call: Call, output: Any, relevance: Any) -> Account:
        """Every branch evaluated anew, without shortcuts: see `fxlrp.rules.account`."""
        found = account_of(self.hook, self._evaluated(call), relevance)
        return super().account(call, output, relevance) if found is None else found

    def expected(self, call: Call, output: Any, relevance: Any, weights: Sequence[Tensor]) -> float | None:
        """As `account`: every branch anew."""
        return expected_of(self.hook, self._evaluated(call), relevance, weights)

    def _evaluated(self, call: Call) -> list[Evaluated]:
        hook = self.hook
        parts: list[Any] = [hook.input_modifiers, hook.param_modifiers, hook.output_modifiers]
        return [
            Evaluated(
                call.with_inputs([at_input(x) for x in call.inputs]).with_params(
                    self._modified(at_params, call.params)
                ),
                at_output,
            )
            for at_input, at_params, at_output in zip(*parts, strict=True)
        ]

    def _value(self, branch: _Branch, at: Call, output: Any) -> tuple[Tensor, Any]:
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
        self._same_shape("an output modifier gave", modified, value.shape)
        return modified, pull


def _without_mask(modifier: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The same input modifier; of a clamp at zero, one whose derivative takes no mask."""
    if probe.is_relu(modifier, shape):
        return torch.relu
    if probe.is_negative_part(modifier, shape):
        return partial(nn.functional.hardtanh, min_val=-math.inf, max_val=0.0)
    return modifier


def is_basic(hook: Any) -> TypeGuard[BasicHook]:
    """Whether a zennit hook is nothing but the data of a `BasicHook`, its methods not overridden."""
    kind = type(hook)
    return isinstance(hook, BasicHook) and all(
        getattr(kind, method) is getattr(BasicHook, method)
        for method in ("forward", "backward", "pre_forward", "post_forward", "pre_backward")
    )
