"""Batch norms in training mode, with the statistics that they normalized by as values that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..values import widened

__all__ = ["batch_norm_with_statistics", "synchronized_batch_norm_with_statistics"]

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
    _update(running_mean, running_var, mean, inverse, x.numel() // x.shape[1], momentum, eps)
    return value, mean, inverse


def synchronized_batch_norm_with_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm_with_statistics` of the batch that the processes of a group have together, of one size or several.

    Parameters
    ----------
    x : Tensor
        What this process has of the batch, shape (B, C, ...).
    weight, bias, running_mean, running_var : Tensor or None
        As of `batch_norm_with_statistics`.
    momentum, eps : float
        As of `batch_norm_with_statistics`.
    process_group : str or None
        Name of the group, None for the default one. If there is none, or this process is alone in it, nothing is
        synchronized.
    """
    group = _group(process_group)
    if group is None or dist.get_world_size(group) == 1:
        return batch_norm_with_statistics(x, weight, bias, running_mean, running_var, momentum, eps)
    exact = widened(x)
    others, channels = [d for d in range(x.ndim) if d != 1], (-1, *(1,) * (x.ndim - 2))
    number = exact.new_full((1,), x.numel() // x.shape[1])
    total, count = _SumOfProcesses.apply(torch.cat([exact.sum(others), number]), group.group_name).split(
        [x.shape[1], 1]
    )
    mean = total / count
    centered = exact - mean.view(channels)
    var = _SumOfProcesses.apply(centered.square().sum(others), group.group_name) / count
    inverse = (var + eps).rsqrt()
    value = centered * (inverse if weight is None else inverse * weight).view(channels)
    value = value if bias is None else value + bias.view(channels)
    _update(running_mean, running_var, mean, inverse, count, momentum, eps)
    return value.to(x.dtype), mean, inverse


for _op in (batch_norm_with_statistics, synchronized_batch_norm_with_statistics):
    _op.writes_buffers = True  # pyright: ignore[reportFunctionMemberAccess]


def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    count: int | Tensor,
    momentum: float,
    eps: float,
) -> None:
    """Take a batch's statistics into the running ones, the variance as the unbiased one."""
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = (inverse.square().reciprocal() - eps) * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)


def _group(name: str | None) -> dist.ProcessGroup | None:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if name is None else dist.distributed_c10d._resolve_process_group(name)  # pyright: ignore


class _SumOfProcesses(torch.autograd.Function):
    """The sum over a group, whose gradient is the sum of the gradients.

    Of PyTorch's own, one is deprecated, and the other has a gradient in new versions only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return torch.ops._c10d_functional.wait_tensor(torch.ops._c10d_functional.all_reduce(x, "sum", group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumOfProcesses.apply(grads[0].contiguous(), ctx.group), None


class _BatchNorm(torch.autograd.Function):
    """PyTorch's kernel gives its statistics out, but lets no gradient through them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        value, mean, inverse = aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        # Of an input in half precision, torch.compile takes them for halves, on the CPU, where they are none.
        return value, widened(mean), widened(inverse)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, float], output: tuple[Tensor, ...]
    ) -> None:
        x, weight, _, eps = inputs
        _, mean, inverse = output
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
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
