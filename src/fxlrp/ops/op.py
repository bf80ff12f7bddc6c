"""What fxlrp knows of an op whatever the rule: where relevance can flow, its parameters, its transpose, its facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..reading import unwrap
from ..signature import Target, positions
from .derivative import NoDerivative, along, pull_back

__all__ = ["WEIGHT_AND_BIAS", "Call", "Channels", "Op", "Slot", "slots_of"]

Slot = tuple[int, int | None]
"""Where an operand stands in a call: its position, and its index where the argument there is a list."""

WEIGHT_AND_BIAS = {"weight": "weight", "bias": "bias"}


class Channels(NamedTuple):
    """The dimension of an op's output channels in its weight, and in its value."""

    of_weight: int
    of_value: int


@dataclass(frozen=True, eq=False)
class Op:
    """What fxlrp knows of an op.

    Attributes
    ----------
    inputs : tuple of int
        Positions of the arguments through which relevance can flow; an argument may be a list of tensors.
    params : dict of str to str
        Names of the op's parameters: as zennit's ``param_modifiers`` see them, and as the op's schema has them.
    vjp : callable or None
        ``(call, gradient) -> tuple of Tensor``: the op's transpose at its inputs, a gradient for each of the call's
        slots; None for `torch.func.vjp`, or autograd where the op knows no other.
    at_zero : callable or None
        ``(call) -> Tensor or None``: the op's value, up to broadcasting, at inputs that are all zero; None for zero.
        Given by ops that are affine in their inputs; a rule may then leave out a branch whose input is zero.
    products : callable or None
        ``(call) -> Tensor``: of an affine op with a weight and a bias, each of whose values has one input, input times
        weight; None of any other.
    channels : Channels or None
        Of an op that makes each of its output channels from all of its input: where these stand.
    run : callable or None
        ``(call) -> Tensor``: the op's value, in a form that is cheaper to differentiate; None to call the target.
    non_negative : callable
        ``(node, inputs_are_non_negative) -> bool``: whether the value is known to be non-negative.
    structural : bool
        Whether the op only moves values about. Relevance moves back with them, whatever the composite says.
    clips : bool
        Whether each of the values is the input's or a constant in its place. Relevance that is to pass unchanged then
        goes back to where the input's stood; the constant's share is the model's, as that of a bias.
    carries_zeros : bool
        Whether a value that is made of zeros alone is zero. Of structure, and of an op that is one-to-one or picks one
        of its inputs.
    shuts : callable
        ``(node) -> bool``: whether the op is one-to-one, and its value zero where the input is not positive, as a
        ReLU's.
    linear : bool
        Whether the op is linear in its inputs, up to a constant: a factor that they share may be moved to behind it.
    """

    inputs: tuple[int, ...] = (0,)
    params: Mapping[str, str] = field(default_factory=dict)
    vjp: Callable[[Call, Any], tuple[Tensor, ...]] | None = None
    at_zero: Callable[[Call], Tensor | None] | None = None
    products: Callable[[Call], Tensor] | None = None
    channels: Channels | None = None
    run: Callable[[Call], Tensor] | None = None
    non_negative: Callable[[fx.Node, bool], bool] = lambda node, inputs: False
    structural: bool = False
    clips: bool = False
    carries_zeros: bool = False
    shuts: Callable[[fx.Node], bool] = lambda node: False
    linear: bool = False


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

    ``call["stride"]`` is an argument by its name in the op's schema.

    Attributes
    ----------
    op, target
        The vocabulary's entry and the function that is called.
    args, kwargs
        The values: all arguments that have a position, in their order, and the others.
    slots : sequence of Slot
        Where the inputs stand that relevance flows to.
    names : dict of str to int
        The positions of the arguments; None for those of the target's schema.
    """

    op: Op
    target: Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    slots: Sequence[Slot]
    names: Mapping[str, int] = field(default=None, repr=False)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.names is None:
            object.__setattr__(self, "names", positions(self.target))

    def __getitem__(self, name: str) -> Any:
        """An argument by its name."""
        return self.args[self.names[name]] if name in self.names else self.kwargs[name]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs that relevance flows to, one for each slot."""
        return tuple(self.args[p] if i is None else self.args[p][i] for p, i in self.slots)

    @property
    def params(self) -> dict[str, Tensor]:
        """The op's parameters that are not None, by name."""
        values = {name: self[own] for name, own in self.op.params.items()}
        return {name: value for name, value in values.items() if value is not None}

    def with_inputs(self, inputs: Sequence[Tensor]) -> Call:
        """The same call at other inputs."""
        args = [list(a) if isinstance(a, (list, tuple)) else a for a in self.args]
        for (position, index), value in zip(self.slots, inputs, strict=True):
            if index is None:
                args[position] = value
            else:
                args[position][index] = value
        return replace(self, args=tuple(args))

    def with_params(self, params: Mapping[str, Tensor | None]) -> Call:
        """The same call with other parameters."""
        args = list(self.args)
        for name, value in params.items():
            args[self.names[self.op.params[name]]] = value
        return replace(self, args=tuple(args))

    def run(self) -> Any:
        """The op's value; of an op that gives others beside it (indices of a pooling), the value alone."""
        return self._value() if self.op.run is None else self.op.run(self)

    def _value(self) -> Any:
        # Derivatives to check against are those of the target itself.
        value = self.target(*self.args, **self.kwargs)
        return value[0] if isinstance(value, tuple) and not self.op.structural else value

    def vjp(self, gradient: Tensor | Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The vector-Jacobian product: `gradient` (of the op's value) taken back to each of the inputs."""
        if self.op.vjp is not None:
            return self.op.vjp(self, gradient)
        if not isinstance(gradient, Tensor):
            return self._vjp_of_several(gradient)
        inputs = self.inputs
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

    def jvp(self, tangents: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The Jacobian-vector product: how the op's value changes, to first order, with its inputs along `tangents`.

        Parameters
        ----------
        tangents : sequence of Tensor
            One for each input, of its shape.

        Returns
        -------
        Tensor or tuple of Tensor
            Of the value's shape.

        Raises
        ------
        NoDerivative
            If the op has neither a transpose that can be differentiated nor a forward derivative.
        """
        tangents = [t.to(x.dtype) for t, x in zip(tangents, self.inputs, strict=True)]
        value = lambda *inputs: self.with_inputs(inputs)._value()
        try:
            return along(value, self.inputs, tangents)
        except NoDerivative:
            if not self.op.linear or self.op.structural:
                raise
            return value(*tangents) - value(*(torch.zeros_like(x) for x in self.inputs))
