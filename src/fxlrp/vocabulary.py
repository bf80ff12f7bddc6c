"""What fxlrp knows of each ATen op: where relevance can go, which module stands for it, how it is transposed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._library.custom_ops import CustomOpDef
from zennit.core import Hook

from .errors import RuleError
from .reading import unwrap
from .wording import did_you_mean

if TYPE_CHECKING:
    from .rules.base import Rule

__all__ = ["Call", "NoDerivative", "Op", "Slot", "Target", "lookup", "pull_back", "register", "slots_of"]

Slot = tuple[int, int | None]
"""Where an operand stands in a call: its position, and its index where the argument there is a list."""

Target = Callable[..., Any]
"""What a node calls."""


@dataclass(frozen=True, eq=False)
class Op:
    """What fxlrp knows of an op.

    Attributes
    ----------
    default : callable
        ``(node, slots) -> Rule or None``: the rule for a node that the composite leaves without one, given the operands
        that relevance can flow to, by their slots; None if there is no rule for these.
    inputs : tuple of int
        Positions of the arguments through which relevance can flow; an argument may be a list of tensors.
    params : dict of str to int
        Names (as zennit's ``param_modifiers`` see them) and positions of the op's parameters.
    stand_in : callable or None
        ``(node) -> nn.Module or None``: the module that stands for a functional call of this op before a composite.
    vjp : callable or None
        ``(call, gradient) -> tuple of Tensor``: the op's transpose at its inputs, a gradient for each of the call's
        slots; None for `torch.func.vjp`, or autograd where the op knows no other.
    at_zero : callable or None
        ``(call) -> Tensor or None``: the op's value, up to broadcasting, at inputs that are all zero; None for zero.
        Given by ops that are affine in their inputs; a rule may then leave out a branch whose input is zero.
    products : callable or None
        ``(call) -> Tensor``: of an affine op with a weight and a bias, each of whose values has one input, input times
        weight; None of any other.
    run : callable or None
        ``(call) -> Tensor``: the op's value, of one that can be given a `Call.channel_scale`; None to call the target.
    scaled : callable or None
        ``(call, scale) -> Tensor``: the weight of such an op, each output channel scaled.
    non_negative : callable
        ``(node, inputs_are_non_negative) -> bool``: whether the value is known to be non-negative.
    structural : bool
        Whether the op only moves values about. Relevance moves back with them, whatever the composite says.
    clips : bool
        Whether each of the values is the input's or a constant in its place. Relevance that is to pass unchanged then
        goes back to where the input's stood; the constant's share is the model's, as that of a bias.
    linear : bool
        Whether the op is linear in its inputs, up to a constant: a factor that they share may be moved to behind it.
    """

    default: Callable[[fx.Node, Mapping[Slot, fx.Node]], Rule | None]
    inputs: tuple[int, ...] = (0,)
    params: Mapping[str, int] = field(default_factory=dict)
    stand_in: Callable[[fx.Node], nn.Module | None] = lambda node: None
    vjp: Callable[[Call, Any], tuple[Tensor, ...]] | None = None
    at_zero: Callable[[Call], Tensor | None] | None = None
    products: Callable[[Call], Tensor] | None = None
    run: Callable[[Call], Tensor] | None = None
    scaled: Callable[[Call, Tensor], Tensor] | None = None
    non_negative: Callable[[fx.Node, bool], bool] = lambda node, inputs: False
    structural: bool = False
    clips: bool = False
    linear: bool = False


_OPS: dict[Target, Op] = {}


def pull_back(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Callable[[Any], tuple[Tensor, ...]]]:
    """A function's value at `inputs`, and the function that takes a gradient of the value back to each of them."""
    try:
        value, pull = torch.func.vjp(function, *inputs)[:2]
    except RuntimeError as error:
        # An op of a library has the old kind of derivative, that functorch cannot read.
        if "setup_context" not in str(error):
            raise
        return _pull_back_by_autograd(function, inputs)
    return value, pull


def _pull_back_by_autograd(
    function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[Any, Callable[[Any], tuple[Tensor, ...]]]:
    if torch._C._are_functorch_transforms_active():
        # By then, the transform is left.
        def again(gradient: Tensor) -> tuple[Tensor, ...]:
            return pull_back(function, *inputs)[1](gradient)

        return function(*inputs), lambda gradient: _SeedBySeed.apply(again, gradient)
    differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # A view is differentiated as a leaf is, and keeps the way to what it is of.
        at = [x.view_as(x) if x.requires_grad else _own(x).requires_grad_() for x in inputs]
        value = function(*at)

    def pull(gradient: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            try:
                found = torch.autograd.grad(
                    value, at, gradient, create_graph=differentiable, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                if "no autograd formula was registered" not in str(error):
                    raise
                raise NotImplementedError("it has no derivative; give it one, or register a rule for it") from error
        return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, at, strict=True))

    return value if differentiable else value.detach(), pull


def _own(x: Tensor) -> Tensor:
    """A leaf with the values of `x`."""
    return x.clone() if x.is_inference() else x.detach()


class _SeedBySeed(torch.autograd.Function):
    """Under vmap, a pull-back that cannot be traced is called for one seed after another."""

    @staticmethod
    def forward(pull: Callable[[Tensor], tuple[Tensor, ...]], gradient: Tensor) -> tuple[Tensor, ...]:
        return pull(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the derivative is that of what `vmap` runs."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        pull, gradient = args
        each = [pull(one) for one in gradient.unbind(in_dims[1])]
        found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return found, (0,) * len(found)


def register(*targets: Target, **fields: Any) -> Op:
    """Add an op to the vocabulary, or replace its entry.

    Parameters
    ----------
    *targets : torch._ops.OpOverload or callable
        The targets of `torch.fx` nodes that this entry speaks of, for example ``torch.ops.aten.relu.default``.
    **fields
        The fields of `Op`; ``default`` must be given.

    Returns
    -------
    Op
        The entry.

    Raises
    ------
    RuleError
        If a target is nothing that a graph calls, or a field is none or not of the form that `Op` says.

    Examples
    --------
    Pass relevance unchanged through an op of your own::

        import torch
        from fxlrp import rules, vocabulary

        vocabulary.register(torch.ops.mylib.clean.default, default=lambda node, slots: rules.Pass())
    """
    _fill()
    for target in targets:
        _check_target(target)
    _check_fields(fields)
    op = Op(**fields)
    for target in targets:
        _OPS[target] = op
    return op


def _check_target(target: Any) -> None:
    if isinstance(target, torch._ops.OpOverloadPacket):
        names = ", ".join(f"torch.ops.{target}.{name}" for name in target.overloads())
        raise RuleError(f"torch.ops.{target} stands for several ops, and a graph calls one of them. Name it: {names}")
    if isinstance(target, nn.Module) or (isinstance(target, type) and issubclass(target, nn.Module)):
        raise RuleError(
            f"{target!r} is a module, and an entry speaks of an op: name the ops that fxlrp.check(model, ...) lists "
            "for it, or give the module a rule in the composite, as in LayerMapComposite([(MyLayer, rule)])"
        )
    if isinstance(target, CustomOpDef):
        name = target._qualname.replace("::", ".")
        raise RuleError(f"a graph calls the op that the function defines: name it, torch.ops.{name}.default")
    of_torch = not isinstance(target, torch._ops.OperatorBase) and str(_home(target)).startswith("torch")
    if not callable(target) or isinstance(target, type) or of_torch:
        raise RuleError(
            f"{target!r} is nothing that a captured graph calls: give an op, such as torch.ops.aten.relu.default; "
            "fxlrp.check(model, ...) lists those of a model"
        )


def _home(target: Any) -> Any:
    return getattr(target, "__module__", None) or getattr(getattr(target, "__objclass__", None), "__module__", None)


def _check_fields(fields: Mapping[str, Any]) -> None:
    known = list(Op.__dataclass_fields__)
    for name in fields:
        if name not in known:
            raise RuleError(f"an entry has no field '{name}'{did_you_mean(name, known)} It has: {', '.join(known)}")
    _check_default(fields.get("default"))
    inputs = fields.get("inputs", ())
    if not isinstance(inputs, tuple | list) or not all(isinstance(position, int) for position in inputs):
        raise RuleError(f"inputs are positions of an op's arguments, such as (0, 1), not {inputs!r}")


def _check_default(default: Any) -> None:
    what = "default is a function of a node and the slots of its operands that returns a rule"
    form = "write it as default=lambda node, slots: {}"
    kind = default if isinstance(default, type) else type(default)
    if issubclass(kind, Hook):
        raise RuleError(f"{what}, not a zennit rule: {form.format(f'fxlrp.rules.BasicRule({kind.__name__}(...))')}")
    if issubclass(kind, nn.Module):
        raise RuleError(f"{what}, not a rule itself: {form.format(f'{kind.__name__}()')}")
    if isinstance(default, type) or not callable(default):
        raise RuleError(f"{what}, not {default!r}: {form.format('fxlrp.rules.Pass()')}")
    try:
        inspect.signature(default).bind(None, {})
    except TypeError as error:
        raise RuleError(f"{what}, and this one cannot be called so ({error}): {form.format('...')}") from error


def lookup(target: Target) -> Op | None:
    """The vocabulary's entry for a call's target, None if it has none."""
    _fill()
    return _OPS.get(target)


def _fill() -> None:
    """Have fxlrp's own entries in: whoever looks finds them, and an entry of the user's comes after them."""
    import_module(".ops", __package__)


def slots_of(node: fx.Node, op: Op, active: Callable[[fx.Node], bool]) -> dict[Slot, fx.Node]:
    """The operands of `node` that relevance can flow to, by their slots: those that `active` holds of."""
    found: dict[Slot, fx.Node] = {}
    args = unwrap(node)[1]
    for position in op.inputs:
        argument = args[position] if position < len(args) else None
        if isinstance(argument, fx.Node):
            found[position, None] = argument
        elif isinstance(argument, list | tuple):
            found.update({(position, i): element for i, element in enumerate(argument) if isinstance(element, fx.Node)})
    return {slot: operand for slot, operand in found.items() if active(operand)}


@dataclass(frozen=True)
class Call:
    """One call of an op with its values, while the relevance pass runs.

    Attributes
    ----------
    op, target
        The vocabulary's entry and the function that is called.
    args, kwargs
        The values.
    slots : sequence of Slot
        Where the inputs stand that relevance flows to.
    channel_scale : Tensor or None
        Of a linear layer, a factor of each output channel that has been left out of the weight.
    """

    op: Op
    target: Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    slots: Sequence[Slot]
    channel_scale: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs that relevance flows to, one for each slot."""
        return tuple(self.args[p] if i is None else self.args[p][i] for p, i in self.slots)

    @property
    def params(self) -> dict[str, Tensor]:
        """The op's parameters that are not None, by name."""
        values = {name: self.args[p] for name, p in self.op.params.items() if p < len(self.args)}
        return {name: value for name, value in values.items() if value is not None}

    def argument(self, position: int, default: Any = None) -> Any:
        """The argument at `position`, `default` where it was left out."""
        return self.args[position] if position < len(self.args) else default

    def with_inputs(self, inputs: Sequence[Tensor]) -> Call:
        """The same call at other inputs."""
        args = [list(a) if isinstance(a, list | tuple) else a for a in self.args]
        for (position, index), value in zip(self.slots, inputs, strict=True):
            if index is None:
                args[position] = value
            else:
                args[position][index] = value
        return replace(self, args=tuple(args))

    def with_params(self, params: Mapping[str, Tensor]) -> Call:
        """The same call with other parameters."""
        args = list(self.args)
        for name, value in params.items():
            args[self.op.params[name]] = value
        return replace(self, args=tuple(args))

    def run(self) -> Any:
        """The op's value; of an op that gives others beside it (indices of a pooling), the value alone."""
        return self._value() if self.op.run is None else self.op.run(self)

    def _value(self) -> Any:
        # Derivatives to check against are those of the target itself.
        value = self.target(*self.args, **self.kwargs)
        return value[0] if isinstance(value, tuple) and not self.op.structural else value

    def vjp(self, gradient: Any) -> tuple[Tensor, ...]:
        """The vector-Jacobian product: `gradient` (of the op's value) taken back to each of the inputs."""
        if self.op.vjp is not None:
            return self.op.vjp(self, gradient)
        inputs = self.inputs
        if not isinstance(gradient, Tensor):
            return self._vjp_of_several(gradient)
        if self.op.structural:
            # Moving values about is not to round their relevance.
            inputs = tuple(x.to(gradient.dtype) for x in inputs)
        return pull_back(lambda *inputs: self.with_inputs(inputs).run(), *inputs)[1](gradient)

    def _vjp_of_several(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Of an op with several outputs: one that no relevance reaches has none."""
        dtype = next(g.dtype for g in gradients if g is not None)
        inputs = [x.to(dtype) for x in self.inputs]
        outputs, pull = pull_back(lambda *inputs: tuple(self.with_inputs(inputs).run()), *inputs)
        return pull(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, gradients, strict=True)))

    def jvp(self, tangents: Sequence[Tensor]) -> Any:
        """The Jacobian-vector product: how the op's value changes, to first order, with its inputs along `tangents`.

        It is the derivative of the transpose: an op that relevance goes back through has that one, but need have no
        forward derivative, for which `torch.func.jvp` may give zero without a word: it is held against the transpose.

        Raises
        ------
        NoDerivative
            If the op has neither.
        """
        tangents = [t.to(x.dtype) for t, x in zip(tangents, self.inputs, strict=True)]
        try:
            return _derivative(self, tangents)
        except NoDerivative:
            if not self.op.linear or self.op.structural:
                raise
            zeros = [torch.zeros_like(x) for x in self.inputs]
            return self.with_inputs(tangents)._value() - self.with_inputs(zeros)._value()


class NoDerivative(Exception):
    """An op has no derivative that could be checked against: it may be right all the same."""


def _derivative(call: Call, tangents: Sequence[Tensor]) -> Any:
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in call.inputs]
        value = call.with_inputs(inputs)._value()
        several = isinstance(value, list | tuple)
        outputs = list(value) if several else [value]
        # Any will do, as the transpose is linear in them.
        ramps = [torch.linspace(1, 2, o.numel(), dtype=o.dtype, device=o.device) for o in outputs]
        seeds = [ramp.view(o.shape).requires_grad_() for ramp, o in zip(ramps, outputs, strict=True)]
        taken_back = _gradients(outputs, inputs, seeds, create_graph=True)
        try:
            found = _of_transpose(taken_back, seeds, tangents)
        except NoDerivative:
            found = _forward(call, tangents)
    products = [(t.detach() * tangent).double() for t, tangent in zip(taken_back, tangents, strict=True)]
    off = sum((s * f).double().sum() for s, f in zip(seeds, found, strict=True)) - sum(p.sum() for p in products)
    # What autograd does not see, on the way there or on the way back, gives zero without a word.
    if not abs(off) <= 1e-2 * sum(p.abs().sum() for p in products):
        raise NoDerivative(f"{call.target} has a derivative that autograd does not see")
    return tuple(found) if several else found[0]


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], *, create_graph: bool = False
) -> Sequence[Tensor]:
    options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
    try:
        return torch.autograd.grad(outputs, inputs, seeds, **options)
    except RuntimeError as error:
        raise NoDerivative(f"it cannot be differentiated: {error}") from error


def _of_transpose(
    taken_back: Sequence[Tensor], seeds: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The derivative of what was taken back, with respect to what it was taken back of."""
    on_graph = [(t, tangent) for t, tangent in zip(taken_back, tangents, strict=True) if t.requires_grad]
    if not on_graph:
        return [torch.zeros_like(seed) for seed in seeds]
    return _gradients([t for t, _ in on_graph], seeds, [tangent for _, tangent in on_graph])


def _forward(call: Call, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        value = call.with_inputs(inputs)._value()
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    try:
        # An expanded value is written to, as a dual number.
        return torch.func.jvp(run, tuple(x.contiguous() for x in call.inputs), tuple(tangents))[1]
    except RuntimeError as error:
        raise NoDerivative(f"it has no forward derivative: {error}") from error
