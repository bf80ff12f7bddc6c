"""Derivatives of any function, backward and forward, also of one that functorch cannot read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["NoDerivative", "along", "pull_back"]

Value = TypeVar("Value")
Pull = Callable[[Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]


class NoDerivative(Exception):
    """An op has no derivative that could be checked against: it may be right all the same."""


def pull_back(function: Callable[..., Value], *inputs: Tensor) -> tuple[Value, Pull]:
    """A function's value at `inputs`, and the function that takes a gradient of the value back to each of them."""
    try:
        value, pull = torch.func.vjp(function, *inputs)[:2]
    except RuntimeError as error:
        # An op of a library has the old kind of derivative, that functorch cannot read.
        if "setup_context" not in str(error):
            raise
        return _pull_back_by_autograd(function, inputs)
    return value, pull


def _pull_back_by_autograd(function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Any, Pull]:
    if torch._C._are_functorch_transforms_active():
        # By then, the transform is left.
        def again(gradient: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return pull_back(function, *inputs)[1](gradient)

        return function(*inputs), lambda gradient: _SeedBySeed.apply(again, gradient)
    differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # A view is differentiated as a leaf is, and keeps the way to what it is of.
        at = [x.view_as(x) if x.requires_grad else _own(x).requires_grad_() for x in inputs]
        value = function(*at)

    def pull(gradient: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
    def forward(pull: Pull, gradient: Tensor) -> tuple[Tensor, ...]:
        return pull(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Pull, Tensor], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: the derivative is that of what `vmap` runs."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        pull, gradient = args
        each = [pull(one) for one in gradient.unbind(in_dims[1] or 0)]
        found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return found, (0,) * len(found)


def along(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Tensor | tuple[Tensor, ...]:
    """How a function's value, or its values, change to first order with the inputs along `tangents`.

    It is the derivative of the transpose: an op that relevance goes back through has that one, but need have no
    forward derivative, for which `torch.func.jvp` may give zero without a word: it is held against the transpose.

    Raises
    ------
    NoDerivative
        If there is neither.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        value = function(*inputs)
        single = isinstance(value, Tensor)
        outputs = [value] if single else list(value)
        # Any will do, as the transpose is linear in them.
        ramps = [torch.linspace(1, 2, o.numel(), dtype=o.dtype, device=o.device) for o in outputs]
        seeds = [ramp.view(o.shape).requires_grad_() for ramp, o in zip(ramps, outputs, strict=True)]
        taken_back = _gradients(outputs, inputs, seeds, create_graph=True)
        try:
            found = _of_transpose(taken_back, seeds, tangents)
        except NoDerivative:
            found = _forward(function, inputs, tangents)
    products = [(t.detach() * tangent).double() for t, tangent in zip(taken_back, tangents, strict=True)]
    off = sum((s * f).double().sum() for s, f in zip(seeds, found, strict=True)) - sum(p.sum() for p in products)
    # What autograd does not see, on the way there or on the way back, gives zero without a word.
    if not abs(off) <= 1e-2 * sum(p.abs().sum() for p in products):
        raise NoDerivative("it has a derivative that autograd does not see")
    return found[0] if single else tuple(found)


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


def _forward(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        value = function(*inputs)
        return (value,) if isinstance(value, Tensor) else tuple(value)

    try:
        # An expanded value is written to, as a dual number.
        return torch.func.jvp(run, tuple(x.contiguous() for x in inputs), tuple(tangents))[1]
    except RuntimeError as error:
        raise NoDerivative(f"it has no forward derivative: {error}") from error
