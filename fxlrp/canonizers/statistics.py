"""Batch norms in training mode, with the statistics that they normalized by as values that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_norm_with_statistics"]

aten = torch.ops.aten


def batch_norm_with_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch norm in training mode, its batch's mean and inverse deviation; running statistics are updated in place.

    Parameters
    ----------
    x : Tensor
        Shape (B, C, ...).
    weight, bias, running_mean, running_var : Tensor or None
        The batch norm's own, shape (C,).
    momentum, eps : float
        As of `torch.nn.functional.batch_norm`.

    Returns
    -------
    tuple of Tensor
        The value, of the shape of `x`; the mean and ``(var + eps)^(-1/2)`` with the biased variance, shape (C,). All
        three can be differentiated.
    """
    value, mean, inverse = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = (inverse.square().reciprocal() - eps) * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return value, mean, inverse


batch_norm_with_statistics.writes_buffers = True  # pyright: ignore[reportFunctionMemberAccess]


class _BatchNorm(torch.autograd.Function):
    """PyTorch's kernel gives its statistics out, but lets no gradient through them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, eps = inputs
        _, mean, inverse = output
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_value, of_mean, of_inverse = grads
        x, weight, mean, inverse = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if of_value is not None:
            of_x, of_weight, of_bias = aten.native_batch_norm_backward(
                of_value, x, weight, None, None, mean, inverse, True, ctx.eps, list(ctx.needs_input_grad[:3])
            )
        if ctx.needs_input_grad[0] and not (of_mean is None and of_inverse is None):
            # d mean / dx = 1 / n, d inverse / dx = - inverse^3 (x - mean) / n.
            count, channels = x.numel() // x.shape[1], (-1, *(1,) * (x.ndim - 2))
            slope = torch.zeros_like(mean) if of_inverse is None else -of_inverse * inverse**3 / count
            level = -slope * mean if of_mean is None else of_mean / count - slope * mean
            along = torch.addcmul(level.view(channels), x, slope.view(channels)).to(x.dtype)
            of_x = along if of_x is None else of_x + along
        return of_x, of_weight, of_bias, None
