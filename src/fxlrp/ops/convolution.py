"""A convolution, its transpose and the gradient of its weight, each differentiable at the cost of the other two.

From ``<g, W^T s> = <W g, s>``: the derivative of a transpose along ``s`` is the convolution of ``g``, the one along
``W`` is the weight gradient of the convolution at ``g``. PyTorch's double backward computes the latter as a convolution
with a kernel as large as the image, which took a third of a training step through relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .affine import per_channel

__all__ = ["Geometry", "convolve", "transpose"]

aten = torch.ops.aten


class Geometry(NamedTuple):
    """How a convolution's kernel moves; spelled out for each spatial dimension."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    """A convolution; transposed, if its geometry says so. The bias is one of the channels, shape (C_out,)."""
    x, weight = in_autocast(x), in_autocast(weight)
    bias = None if bias is None else in_autocast(bias)
    if not _has_own_derivative():
        return _convolve(x, weight, geometry, bias)
    value = _Convolution.apply(x, weight, geometry)
    return value if bias is None else value + per_channel(bias, x.ndim)


def transpose(gradient: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """The transpose of `convolve`: from a gradient of its value to one of its input, which has this shape."""
    gradient, weight = in_autocast(gradient), in_autocast(weight)
    return (_Transpose.apply if _has_own_derivative() else _transpose)(gradient, weight, shape, geometry)


def in_autocast(value: Tensor) -> Tensor:
    """As `torch.autocast` casts what a convolution reads: the ops below are not on its list on every device."""
    kind, narrow = value.device.type, (torch.float32, torch.float16, torch.bfloat16)
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not is_on or value.dtype not in narrow:
        return value
    return value.to(torch.get_autocast_dtype(kind))


def _has_own_derivative() -> bool:
    """Whether a derivative is wanted, and may be given: to torch.compile, a function with one is not to be mapped."""
    mapped = torch.compiler.is_dynamo_compiling() and torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() and not mapped


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _convolve(x, weight, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Geometry], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.geometry = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), geometry = grads, ctx.saved_tensors, ctx.geometry
        of_x = transpose(gradient, weight, tuple(x.shape), geometry) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(gradient, x, weight, geometry) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        x, weight, geometry = args
        return _as_one_batch(lambda x, w: _Convolution.apply(x, w, geometry), x, weight, in_dims, info.batch_size)


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
        return _transpose(gradient, weight, shape, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[int], Geometry], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.geometry = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (gradient, weight), geometry = grads, ctx.saved_tensors, ctx.geometry
        of_gradient = convolve(g, weight, geometry) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(gradient, g, weight, geometry) if ctx.needs_input_grad[1] else None
        return of_gradient, of_weight, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        gradient, weight, shape, geometry = args
        run = lambda x, w: _Transpose.apply(x, w, (x.shape[0], *shape[1:]), geometry)
        return _as_one_batch(run, gradient, weight, in_dims, info.batch_size)


def _as_one_batch(
    run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, in_dims: tuple[int | None, ...], size: int
) -> tuple[Tensor, int]:
    """A map over several inputs as one batch: the derivative along the weight is not taken for each of them."""
    of_x, of_weight = in_dims[:2]
    if of_weight is not None:
        inputs = [x] * size if of_x is None else x.unbind(of_x)
        return torch.stack([run(each, w) for each, w in zip(inputs, weight.unbind(of_weight), strict=True)]), 0
    # One of the two is mapped over, or this was not called.
    assert of_x is not None
    x = x.movedim(of_x, 0)
    return run(x.flatten(0, 1), weight).unflatten(0, x.shape[:2]), 0


def _convolve(x: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    if _is_one_product(x, weight, geometry):
        product = weight.flatten(1) @ _columns(x)
        return _images(product if bias is None else product.add_(bias[:, None]), x)
    return aten.convolution(x, weight, bias, *geometry)


def _transpose(gradient: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    if _is_one_product(gradient, weight, geometry):
        return _images(weight.flatten(1).t() @ _columns(gradient), gradient)
    # The backward op reads the input's shape alone: values are not to be kept, nor cast, for it.
    like = gradient.new_empty(()).expand(shape)
    return aten.convolution_backward(gradient, like, weight, None, *geometry, [True, False, False])[0]


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """From a gradient of a convolution's value, at its input `x`, to one of its weight."""
    if _is_one_product(gradient, weight, geometry):
        columns = _columns(x)
    elif _is_large_for_its_positions(gradient, weight, geometry):
        columns = _columns(aten.im2col(x, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride))
    else:
        return aten.convolution_backward(gradient, x, weight, None, *geometry, [False, True, False])[1]
    found = (_columns(gradient) @ columns.t()).view_as(weight)
    # To a view, autograd does not add in place.
    return found if torch.is_grad_enabled() else found.detach()


def _is_one_product(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a pointwise convolution is best computed as one matrix product over the positions of all samples.

    On the CPU, PyTorch takes a product for each sample: 16 times slower for 2048 channels at 8 x 2 x 2 positions, as
    fast at 8 x 16 x 16 (float32, measured).
    """
    return (
        x.device.type == "cpu"
        and x.shape[2:].numel() <= 128
        and weight.shape[2:].numel() == 1
        and not (geometry.transposed or any(geometry.padding))
        and geometry.groups == 1
        and all(step == 1 for step in geometry.stride)
    )


def _is_large_for_its_positions(gradient: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the gradient of a weight is best computed as one matrix product.

    On the CPU, PyTorch's kernel takes 3 times as long for 512 channels at 8 x 2 x 2 positions, 1.7 times for 256 at
    8 x 4 x 4, but a third for 128 by 32 there (float32, 3 x 3, measured).
    """
    plain = gradient.device.type == "cpu" and gradient.ndim == 4 and geometry.groups == 1 and not geometry.transposed
    return plain and gradient.shape[0] * gradient.shape[2:].numel() <= 128 and weight.numel() >= 2**19


def _columns(x: Tensor) -> Tensor:
    """Channels (and what a kernel sees of them) by positions of all samples."""
    return x.transpose(0, 1).flatten(1)


def _images(columns: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_columns`, for samples and a spatial size like those of `like`."""
    return columns.view(columns.shape[0], like.shape[0], *like.shape[2:]).transpose(0, 1).contiguous()
