"""The vocabulary: every transpose is that of the dense Jacobian, every default rule is its formula, and conserves."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import Stabilizer, stabilize
from zennit.layer import Sum
from zennit.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZBox,
    ZPlus,
)
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

import fxlrp
from fxlrp import errors, ops, vocabulary
from fxlrp.ops.activation import thresholded_relu
from fxlrp.ops.affine import affine, constant_map
from fxlrp.ops.convolution import Geometry, convolve, transpose
from fxlrp.ops.linear import TRANSPOSED, layer_of, padded_convolution, with_bias_map, with_scale
from fxlrp.ops.pooling import max_pooled
from fxlrp.ops.structure import added, dropped, flipped, written
from fxlrp.reading import unwrap
from fxlrp.signature import normal, positions
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative
from fxlrp.vocabulary import Call, lookup

aten = torch.ops.aten


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


IMAGE = (2, 4, 6, 5)

CALLS = [
    (aten.linear.default, rand(2, 3, 4), rand(5, 4), rand(5)),
    (aten.conv1d.default, rand(2, 4, 7), rand(6, 2, 3), rand(6), [2], [1], [2], 2),
    (aten.conv1d.padding, rand(2, 4, 7), rand(6, 4, 3), None, [1], "same"),
    (aten.conv2d.default, rand(*IMAGE), rand(6, 4, 3, 2), rand(6), [2, 1], [1, 0], [1, 2]),
    (aten.conv2d.default, rand(*IMAGE), rand(4, 1, 3, 3), None, [1, 1], [1], [1], 4),
    (aten.conv2d.padding, rand(*IMAGE), rand(6, 4, 2, 2), rand(6), [1, 1], "same"),
    (aten.conv2d.padding, rand(*IMAGE), rand(6, 4, 3, 3), rand(6), [1, 1], "same", [2, 2]),
    (aten.conv2d.padding, rand(*IMAGE), rand(6, 4, 3, 3), rand(6), [2, 2], "valid"),
    (aten.conv3d.default, rand(1, 2, 4, 4, 3), rand(3, 2, 2, 2, 2), rand(3), [1, 2, 1]),
    (aten.conv_transpose1d.default, rand(2, 4, 5), rand(4, 3, 3), rand(6), [2], [1], [1], 2),
    (aten.conv_transpose2d.input, rand(*IMAGE), rand(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 0], 1, [1, 1]),
    (aten.conv_transpose3d.input, rand(1, 2, 3, 3, 2), rand(2, 3, 2, 2, 2), rand(3)),
    (padded_convolution, rand(*IMAGE), rand(6, 2, 3, 3), rand(6), [2, 2], [0, 1], [1, 1], 2, [0, 1, 2, 1]),
    (affine, rand(*IMAGE), rand(4), rand(4)),
    (constant_map, rand(*IMAGE), rand(1, 4, 1, 1), rand(1, 1, 6, 5)),
    (aten.relu.default, rand(*IMAGE)),
    (aten.hardtanh.default, 4 * rand(*IMAGE), 0.0, 6.0),
    (aten.silu.default, rand(*IMAGE)),
    (aten.gelu.default, rand(*IMAGE)),
    (aten.prelu.default, rand(*IMAGE), rand(4)),
    (aten.max_pool1d.default, rand(2, 4, 7), [3], [2], [1]),
    (aten.max_pool2d.default, rand(*IMAGE), [3, 3], [2, 2], [1, 1]),
    *(
        (
            max_pooled,
            x := rand(2, 3, *[5] * n),
            *(window := ([3] * n, [2] * n, [1] * n, [1] * n, False)),
            pool(x, *window)[1],
        )
        for n, pool in (
            (1, aten.max_pool1d_with_indices),
            (2, aten.max_pool2d_with_indices),
            (3, aten.max_pool3d_with_indices),
        )
    ),
    (aten.max_pool2d.default, rand(*IMAGE), [2], [], [0], [1], True),
    (aten.max_pool3d.default, rand(1, 2, 4, 4, 4), [2, 2, 2]),
    (aten.adaptive_max_pool2d.default, rand(*IMAGE), [2, 2]),
    (aten.avg_pool1d.default, rand(2, 4, 7), [3], [2], [1]),
    (aten.avg_pool2d.default, rand(*IMAGE), [3, 2], [2, 1], [1, 0], True, False),
    (aten.avg_pool2d.default, rand(*IMAGE), [2, 2]),
    (aten.avg_pool3d.default, rand(1, 2, 4, 4, 4), [2, 2, 2]),
    (aten.adaptive_avg_pool1d.default, rand(2, 4, 7), [3]),
    (aten.adaptive_avg_pool2d.default, rand(*IMAGE), [1, 1]),
    (aten.adaptive_avg_pool2d.default, rand(*IMAGE), [8, 3]),
    (aten.adaptive_avg_pool3d.default, rand(1, 2, 4, 4, 4), [2, 2, 2]),
    (aten.view.default, rand(*IMAGE), [2, -1]),
    (aten.flatten.using_ints, rand(*IMAGE), 1),
    (aten.unsqueeze.default, rand(*IMAGE), 1),
    (aten.squeeze.dim, rand(2, 1, 3), 1),
    (aten.permute.default, rand(*IMAGE), [0, -2, -1, 1]),
    (aten.transpose.int, rand(*IMAGE), 1, 2),
    (aten.expand.default, rand(2, 1, 3), [2, 4, 3]),
    (aten.repeat.default, rand(2, 3), [2, 2]),
    (aten.repeat_interleave.self_int, rand(2, 3), 2, 1),
    (aten.slice.Tensor, rand(*IMAGE), 2, 1, 6, 2),
    (aten.select.int, rand(*IMAGE), 1, 2),
    (aten.roll.default, rand(*IMAGE), [1, -2], [2, 3]),
    (aten.flip.default, rand(*IMAGE), [3]),
    (aten.unfold.default, rand(*IMAGE), 2, 3, 2),
    (aten.pixel_shuffle.default, rand(*IMAGE), 2),
    (aten.channel_shuffle.default, rand(*IMAGE), 2),
    (aten.pad.default, rand(*IMAGE), [1, 2, 0, 1], "reflect"),
    (aten.constant_pad_nd.default, rand(*IMAGE), [1, 2, -1, 1], 0.5),
    (aten.col2im.default, rand(2, 12, 12), [4, 5], [2, 2], [1, 1], [0, 0], [1, 1]),
    (aten.expand_as.default, rand(2, 1, 3), rand(2, 4, 3)),
    (aten.reshape_as.default, rand(2, 6), rand(3, 4)),
    (aten.masked_fill.Scalar, rand(2, 3), torch.tensor([True, False, True]), 0.5),
    (aten.where.self, torch.tensor([True, False, True]), rand(2, 3), rand(1, 3)),
    (aten.max.dim, rand(*IMAGE), 1),
    (aten.linalg_vector_norm.default, rand(*IMAGE), 2, [2, 3], True),
    (aten.amax.default, rand(*IMAGE), [2, 3], True),
    (aten.min.dim, rand(*IMAGE), 1),
    (aten.amin.default, rand(*IMAGE), [2, 3]),
    (aten.median.dim, rand(*IMAGE), 2),
    (aten.sort.default, rand(2, 5)),
    (aten.topk.default, rand(2, 5), 3),
    (aten.gather.default, rand(2, 5), 1, torch.tensor([[4, 0, 0], [1, 2, 1]])),
    (aten.cumsum.default, rand(2, 3, 4), 1),
    (aten.grid_sampler.default, rand(1, 2, 4, 3), 0.5 * rand(1, 2, 5, 2).tanh(), 0, 0, False),
    (aten._upsample_bilinear2d_aa.vec, rand(1, 2, 5, 4), [3, 3], False, None),
    (aten._upsample_nearest_exact2d.vec, rand(1, 2, 5, 4), [3, 3], None),
    (aten.log_softmax.int, rand(2, 3), 1),
    (aten.maximum.default, rand(2, 3), rand(1, 3)),
    (aten.im2col.default, rand(*IMAGE), [2, 2], [1, 1], [0, 0], [2, 2]),
    (aten.index_select.default, rand(*IMAGE), 1, torch.tensor([3, 0, 0])),
    (aten.index.Tensor, rand(*IMAGE), [None, torch.tensor([3, 0, 0])]),
    (aten.matmul.default, rand(2, 3, 4), rand(2, 4, 5)),
    (aten.einsum.default, "bij,bkj->bik", [rand(2, 3, 4), rand(2, 5, 4)]),
    (aten.cat.default, [rand(2, 3), rand(2, 1), rand(2, 2)], 1),
    (aten.stack.default, [rand(2, 3), rand(2, 3)], -1),
    (aten.add.Tensor, rand(2, 3, 4), rand(3, 1)),
    (aten.sub.Tensor, rand(1, 4), rand(2, 3, 4)),
    (aten.rsub.Scalar, rand(2, 3), 1.5),
    (aten.neg.default, rand(2, 3)),
    (aten.sum.dim_IntList, rand(*IMAGE), [2, 3], True),
    (aten.sum.dim_IntList, rand(*IMAGE), [-1]),
    (aten.mean.dim, rand(*IMAGE), [1]),
    (aten.mean.dim, rand(*IMAGE), [-1, -2], True),
    (aten.mean.dim, rand(*IMAGE), [3, 1]),
    (aten.select_scatter.default, rand(*IMAGE), rand(2, 6, 5), 1, 0),
    (aten.slice_scatter.default, rand(*IMAGE), rand(2, 4, 2, 5), 2, 1, 3),
    (aten.slice_scatter.default, rand(*IMAGE), rand(2, 4, 6, 3), -1, 0, 2**63 - 1, 2),
    (aten.diagonal_scatter.default, rand(*IMAGE), rand(2, 4, 5), -1, 2, 3),
    (aten.index_put.default, rand(*IMAGE), [None, torch.tensor([2, 0])], rand(2, 6, 5)),
    (aten.index_put.default, rand(3, 4), [torch.tensor([2, 0]), torch.tensor([1, 3])], rand(1)),
    (aten.index_put.default, rand(2, 3), [torch.tensor([[True, False, True], [False, True, False]])], rand(3)),
    (aten.scatter.src, rand(3, 4), 1, torch.tensor([[2, 0], [3, 1]]), rand(2, 2)),
    (aten.scatter.value, rand(3, 4), 0, torch.tensor([[2, 0, 1]]), 0.5),
    (aten.scatter_add.default, rand(3, 4), 1, torch.tensor([[2, 2], [3, 1]]), rand(2, 2)),
    (added, rand(*IMAGE), [None, torch.tensor([2, 2])], rand(2, 6, 5)),
    (added, rand(3, 4), [torch.tensor([2, 0]), torch.tensor([1, 3])], rand(1)),
    (aten.upsample_nearest2d.vec, rand(1, 2, 3, 3), [5, 4], None),
    (aten.upsample_bilinear2d.vec, rand(1, 2, 3, 3), None, True, [2.0, 2.0]),
    (aten.upsample_nearest1d.vec, rand(1, 2, 3), [5], None),
    (aten.upsample_nearest3d.vec, rand(1, 1, 2, 2, 3), [3, 4, 2], None),
    (aten.upsample_linear1d.vec, rand(1, 2, 3), [5], False, None),
    (aten.upsample_trilinear3d.vec, rand(1, 1, 2, 2, 3), [3, 4, 2], False, None),
    (aten.upsample_bicubic2d.vec, rand(1, 2, 3, 3), [5, 4], False, None),
    (thresholded_relu, rand(*IMAGE), rand(1, 4, 1, 1), torch.full((1, 4, 1, 1), torch.inf).double()),
    (aten.relu6.default, 4 * rand(*IMAGE)),
    (aten.sigmoid.default, rand(2, 3)),
    (aten.hardsigmoid.default, 4 * rand(2, 3)),
    (aten.softplus.default, rand(2, 3)),
    (aten.tanh.default, rand(2, 3)),
    (aten.hardswish.default, 4 * rand(2, 3)),
    (aten.leaky_relu.default, rand(2, 3), 0.2),
    (aten.elu.default, rand(2, 3)),
    (aten.selu.default, rand(2, 3)),
    (aten.celu.default, rand(2, 3)),
    (aten.log_sigmoid.default, rand(2, 3)),
    (aten.hardshrink.default, rand(2, 3)),
    (aten.softshrink.default, rand(2, 3)),
    (aten.threshold.default, rand(2, 3), 0.1, 0.5),
    (aten.clamp.default, rand(2, 3), -0.5, 0.5),
    (aten.clamp.Tensor, rand(2, 3), rand(3).abs().neg(), rand(3).abs()),
    (aten.clamp_min.default, rand(2, 3), 0.1),
    (aten.clamp_max.default, rand(2, 3), 0.1),
    (aten.mish.default, rand(2, 3)),
    *((f, rand(2, 3)) for f in (aten.abs.default, aten.exp.default, aten.square.default, aten.erf.default)),
    *((f, rand(2, 3)) for f in (aten.sin.default, aten.cos.default)),
    *((f, 0.5 + rand(2, 3).abs()) for f in (aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default)),
    *((f, 0.5 + rand(2, 3).abs()) for f in (aten.log.default, aten.log1p.default)),
    (aten.pow.Tensor_Scalar, rand(2, 3), 3),
    (aten.minimum.default, rand(2, 3), rand(1, 3)),
    (aten.add.Scalar, rand(2, 3), 1.5),
    (aten.sub.Scalar, rand(2, 3), 1.5),
    (aten.rsub.Tensor, rand(2, 3), rand(3)),
    (aten.mul.Tensor, rand(2, 3), rand(2, 3)),
    (aten.mul.Scalar, rand(2, 3), -2.0),
    (aten.div.Tensor, rand(2, 3), 2 + rand(2, 3).abs()),
    (aten.div.Scalar, rand(2, 3), -2.0),
    (aten.softmax.int, rand(2, 3), 1),
    (aten._softmax.default, rand(2, 3), 1, False),
    (aten.bmm.default, rand(2, 3, 4), rand(2, 4, 2)),
    (aten.mm.default, rand(3, 4), rand(4, 2)),
    (aten.scaled_dot_product_attention.default, rand(1, 2, 3, 2), rand(1, 2, 3, 2), rand(1, 2, 3, 2)),
    (aten.conv3d.padding, rand(1, 2, 3, 3, 2), rand(2, 2, 2, 1, 1), rand(2), [1, 1, 1], "same"),
    (aten.layer_norm.default, rand(2, 3, 4), [4], rand(4), rand(4)),
    (aten.group_norm.default, rand(*IMAGE), 2, rand(4), rand(4)),
    (aten.rms_norm.default, rand(2, 3, 4), [4], rand(4)),
    (aten.max_pool1d_with_indices.default, rand(2, 4, 7), [3], [2], [1]),
    (aten.max_pool2d_with_indices.default, rand(*IMAGE), [3, 3], [2, 2], [1, 1]),
    (aten.max_pool3d_with_indices.default, rand(1, 2, 4, 4, 4), [2, 2, 2]),
    (aten.adaptive_max_pool1d.default, rand(2, 4, 7), [3]),
    (aten.adaptive_max_pool3d.default, rand(1, 2, 4, 4, 4), [2, 2, 2]),
    (aten.reshape.default, rand(*IMAGE), [2, -1]),
    (aten._unsafe_view.default, rand(*IMAGE), [2, 120]),
    (aten.unflatten.int, rand(*IMAGE), 1, [2, 2]),
    (aten.squeeze.default, rand(2, 1, 3)),
    (aten.squeeze.dims, rand(2, 1, 3, 1), [1, 3]),
    (aten.contiguous.default, rand(2, 3)),
    (aten.clone.default, rand(2, 3)),
    (aten.alias.default, rand(2, 3)),
    (aten.t.default, rand(2, 3)),
    (aten.movedim.intlist, rand(*IMAGE), [1], [-1]),
    (aten.narrow.default, rand(*IMAGE), 2, 1, 3),
    (aten.pixel_unshuffle.default, rand(1, 2, 4, 6), 2),
    (aten.diagonal.default, rand(2, 3, 3), 0, 1, 2),
    (aten.to.dtype, rand(2, 3), torch.float64),
    (aten.to.dtype_layout, rand(2, 3)),
    (aten._to_copy.default, rand(2, 3)),
    (aten.type_as.default, rand(2, 3), rand(1)),
    (written, rand(2, 3), rand(3)),
    (dropped, rand(2, 3), torch.tensor([[True, False, True], [False, True, True]]), 0.25),
    (flipped, rand(*IMAGE), rand(1, 4, 1, 1).sign()),
]


def channels_of(case):
    """How many output channels a linear layer has."""
    target, _, weight, *_ = case
    return weight.shape[0] if layer_of(target) not in TRANSPOSED else weight.shape[1] * groups_of(case)


def groups_of(case):
    return normal(case[0], case[1:], {})[0][positions(case[0])["groups"]]


MAPPED = [
    (with_bias_map[case[0]], *case[1:3], rand(*[1] * (case[1].ndim - 1), 1), *case[4:])
    for case in CALLS
    if case[0] in with_bias_map
]
CALLS += MAPPED
CALLS += [
    (with_scale[case[0]], *normal(case[0], case[1:], {})[0], rand(channels_of(case)))
    for case in CALLS
    if case[0] in with_scale
]


def test_every_op_is_here():
    """Ops with several outputs are in the next tests; what is detached has no Jacobian (`test_trainable`)."""
    others = {*SPLITS, aten.detach.default}
    assert {case[0] for case in CALLS} | others == set(ops._OPS)


def call_of(target, *args, **kwargs):
    op = lookup(target)
    slots = []
    for position in op.inputs:
        argument = args[position] if position < len(args) else None
        if isinstance(argument, torch.Tensor):
            slots.append((position, None))
        elif isinstance(argument, list) and isinstance(argument[0], torch.Tensor):
            slots += [(position, index) for index in range(len(argument))]
    return Call(op, target, *normal(target, args, kwargs), slots)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: getattr(case[0], "__name__", str(case[0])))
def test_transposes_and_derivatives_are_the_dense_jacobians(case):
    call = call_of(*case)
    value = call.run()
    gradient = torch.randn_like(value)
    jacobians = torch.autograd.functional.jacobian(lambda *xs: call.with_inputs(xs).run(), call.inputs)
    found = call.vjp(gradient)
    tangents = [torch.randn_like(x) for x in call.inputs]
    pushed = torch.zeros(value.numel(), dtype=torch.float64)
    assert len(found) == len(call.slots) == len(jacobians)
    for ours, jacobian, x, tangent in zip(found, jacobians, call.inputs, tangents, strict=True):
        matrix = jacobian.reshape(value.numel(), x.numel())
        torch.testing.assert_close(ours.flatten(), gradient.flatten() @ matrix, rtol=1e-10, atol=1e-10)
        pushed += matrix @ tangent.flatten()
    # Torch has no forward derivative of its fused attention; the rule of attention does not ask for one.
    if case[0] is not aten.scaled_dot_product_attention.default:
        along = call.jvp(tangents)
        assert isinstance(along, torch.Tensor)
        torch.testing.assert_close(along.flatten(), pushed, rtol=1e-10, atol=1e-10)


SPLITS = {
    aten.split.Tensor: (2,),
    aten.split_with_sizes.default: ([1, 3],),
    aten.unsafe_split.Tensor: (2,),
    aten.chunk.default: (2,),
    aten.unbind.int: (),
}


@pytest.mark.parametrize("target", SPLITS)
def test_of_several_outputs_only_some_may_have_relevance(target):
    x = rand(4, 3)
    call = call_of(target, x, *SPLITS[target])
    values = call.run()
    gradients = [None] * (len(values) - 1) + [torch.ones_like(values[-1])]
    (found,) = call.vjp(gradients)
    expected = torch.zeros_like(x)
    expected[-values[-1].reshape(-1, 3).shape[0] :] = 1
    assert torch.equal(found, expected)


def affine_ops():
    return [case for case in CALLS if lookup(case[0]).at_zero is not None]


@pytest.mark.parametrize("case", affine_ops(), ids=lambda case: getattr(case[0], "__name__", str(case[0])))
def test_the_value_at_zero(case):
    call = call_of(*case)
    value = call.with_inputs([torch.zeros_like(x) for x in call.inputs]).run()
    at_zero = call.op.at_zero(call)
    torch.testing.assert_close(value, torch.zeros_like(value) if at_zero is None else at_zero.expand_as(value))


def test_what_has_one_input_for_each_value_says_its_products():
    for case in CALLS:
        call = call_of(*case)
        if call.op.products is not None:
            torch.testing.assert_close(call.op.products(call) + call.op.at_zero(call), call.run())


# Rules of zennit on single layers, against arithmetic on the layer's dense matrix.

LAYERS = [
    (nn.Linear(6, 4), (2, 6)),
    (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 5, 4)),
    (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 2, 4)),
    (nn.Conv1d(1, 1, 1), (2, 1, 5)),
    (nn.Linear(1, 1), (3, 1)),
    (nn.Conv1d(2, 3, 3, padding=2, dilation=2), (2, 2, 6)),
    (nn.Conv2d(3, 2, 2, padding="same"), (2, 3, 3, 4)),
    (nn.Conv3d(2, 2, (1, 2, 2), stride=(1, 2, 1), padding=(0, 1, 0), bias=False), (2, 2, 2, 3, 3)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 2, 3, 3)),
    (nn.ConvTranspose3d(1, 2, 2), (2, 1, 2, 2, 3)),
    (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)), (2, 2, 3, 4)),
    (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)), (2, 2, 3, 4)),
    (nn.Sequential(nn.BatchNorm1d(2), nn.ConvTranspose1d(2, 3, 3)), (2, 2, 4)),
    (nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(12, 3)), (2, 2, 3, 2)),
    (nn.BatchNorm2d(3), (2, 3, 2, 3)),
]
STABILIZER = 0.03


def dense(layer, shape):
    """The layer's matrix (outputs, inputs) and its bias on the outputs."""
    zero = torch.zeros(1, *shape[1:], dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(layer, zero)
    return matrix.reshape(layer(zero).numel(), zero.numel()), layer(zero).flatten().detach()


def shares(z, bias, relevance):
    """``sum_k z_ki R_k / (sum_i z_ki + b_k)`` for contributions (B, outputs, inputs)."""
    return (z * (relevance / stabilize(z.sum(2) + bias, STABILIZER))[:, :, None]).sum(1)


def by_hand(name, x, w, b, relevance):
    """The rule's formula (Bach et al. 2015; Montavon et al. 2017, 2019; Lapuschkin et al. 2019), on dense matrices."""
    if name in ("epsilon", "norm"):
        return shares(x[:, None] * w, b, relevance)
    x, plus, minus = x[:, None], w.clamp(min=0), w.clamp(max=0)
    xp, xm = x.clamp(min=0), x.clamp(max=0)
    if name == "zplus":
        return shares(xp * plus + xm * minus, b.clamp(min=0), relevance)
    if name == "gamma":
        up = xp * (w + 0.5 * plus) + xm * (w + 0.5 * minus)
        down = xp * (w + 0.5 * minus) + xm * (w + 0.5 * plus)
        z = (x * w).sum(2) + b
        positive = shares(up, b + 0.5 * b.clamp(min=0), relevance * (z > 0))
        return positive + shares(down, b + 0.5 * b.clamp(max=0), relevance * (z < 0))
    if name == "zbox":
        return shares(x * w - (-2.0) * plus - 3.0 * minus, b - b.clamp(min=0) - b.clamp(max=0), relevance)
    if name.startswith("alphabeta"):
        alpha, beta = (2.0, 1.0) if name == "alphabeta" else (1.0, 0.0)
        positive = shares(xp * plus + xm * minus, b.clamp(min=0), relevance)
        return alpha * positive - beta * shares(xp * minus + xm * plus, b.clamp(max=0), relevance)
    w, b = (w**2, b**2) if name == "wsquare" else ((w != 0).double(), torch.zeros_like(b))
    return shares(w[None].expand(len(x), -1, -1), b, relevance)


RULES = {
    "epsilon": Epsilon(STABILIZER),
    "zplus": ZPlus(STABILIZER),
    "gamma": Gamma(0.5, STABILIZER),
    "alphabeta": AlphaBeta(2, 1, STABILIZER),
    "alphabeta, one": AlphaBeta(1, 0, STABILIZER),
    "zbox": ZBox(-2.0, 3.0, STABILIZER),
    "wsquare": WSquare(STABILIZER),
    "flat": Flat(STABILIZER),
    "norm": Norm(STABILIZER),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("layer", "shape", "behind_relu"),
    [(*case, False) for case in LAYERS] + [(*case, True) for case in LAYERS[:3]],
    ids=lambda v: type(v).__name__,
)
def test_rules_are_their_formulas(name, layer, shape, behind_relu):
    """Behind a ReLU, branches of negative inputs are left out: the formula knows nothing of that."""
    layer = trained(copy.deepcopy(layer)).eval()
    model = nn.Sequential(nn.ReLU(), layer) if behind_relu else layer
    x = rand(*shape)
    output = layer(x.relu() if behind_relu else x)
    seed = torch.randn_like(output)
    composite = LayerMapComposite([(Activation, Pass()), (BatchNorm, RULES[name]), (Linear, RULES[name])])
    found = fxlrp.convert(model, composite)(x, seed).relevance
    matrix, bias = dense(layer, shape)
    at = (x.relu() if behind_relu else x).flatten(1)
    expected = by_hand(name, at, matrix, bias, seed.flatten(1))
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-10)


POOLS = [
    (nn.AvgPool1d(2, 1, padding=1), (2, 2, 5)),
    (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (2, 2, 4, 5)),
    (nn.AvgPool3d(2), (2, 2, 2, 4, 3)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 3, 4)),
]


@pytest.mark.parametrize("rule", [Norm(STABILIZER), Epsilon(STABILIZER)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(("pool", "shape"), POOLS, ids=lambda v: type(v).__name__)
def test_rules_of_pools_are_their_formulas(rule, pool, shape):
    x = rand(*shape)
    seed = torch.randn_like(pool(x))
    found = fxlrp.convert(pool, LayerMapComposite([(AvgPool, rule)]))(x, seed).relevance
    matrix, bias = dense(pool, shape)
    expected = by_hand("norm", x.flatten(1), matrix, bias, seed.flatten(1))
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-10)


def test_rules_of_sums_are_their_formulas():
    """Norm and epsilon of ``x + y``: ``x R / (x + y)``; with no rule, all of R to both."""

    class Added(nn.Module):
        def forward(self, x, y):
            return x + y

    x, y, seed = rand(2, 3), rand(2, 3), rand(2, 3)
    for rule in (Norm(STABILIZER), Epsilon(STABILIZER)):
        of_x, of_y = fxlrp.convert(Added(), LayerMapComposite([(Sum, rule)]))((x, y), seed).relevance
        share = seed / stabilize(x + y, STABILIZER)
        torch.testing.assert_close((of_x, of_y), (x * share, y * share), rtol=1e-10, atol=1e-10)


ACTIVATION_RULES = {
    "pass": (Pass(), lambda x, r: r),
    "guided": (ReLUGuidedBackprop(), lambda x, r: r.clamp(min=0) * (x > 0)),
    "deconvnet": (ReLUDeconvNet(), lambda x, r: r.clamp(min=0)),
    "smooth": (ReLUBetaSmooth(3.0), lambda x, r: r * torch.sigmoid(3 * x)),
}


@pytest.mark.parametrize("name", ACTIVATION_RULES)
def test_rules_of_activations_are_their_formulas(name):
    rule, formula = ACTIVATION_RULES[name]
    x, seed = rand(4, 5), rand(4, 5)
    found = fxlrp.convert(nn.Sequential(nn.ReLU()), LayerMapComposite([(nn.ReLU, rule)]))(x, seed).relevance
    torch.testing.assert_close(found, formula(x, seed), rtol=1e-10, atol=1e-10)


# fxlrp's own defaults.

COMPOSITE = LayerMapComposite(
    [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm()), (BatchNorm, Pass()), (Linear, Epsilon(1e-9))]
)


class Head(nn.Module):
    """A change of the input, and a linear layer without bias behind it: its contributions are known."""

    def __init__(self, change, features):
        super().__init__()
        self.change, self.fc = change, nn.Linear(features, 3, bias=False)

    def forward(self, x):
        return self.fc(self.change(x).flatten(1))


def relevance_of(change, x, features=None):
    """Relevance of `x`, and of what `change` makes of it."""
    y = change(x)
    model = Head(change, y[0].numel()).double()
    out = fxlrp.convert(model, COMPOSITE, record=("fc",))(x, 1)
    assert relative(out.output, model(x)) < 1e-12
    return out.relevance, out.recorded["fc"].reshape(y.shape), y


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 3 * x,
        lambda x: x / 2,
        lambda x: -x,
        F.mish,
        lambda x: x.clamp(min=-0.5, max=0.5),
        lambda x: x * x.sigmoid(),
        lambda x: x.mean(1, keepdim=True).sigmoid() * x,
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x / (1 + x.square().sum(1, keepdim=True)),
        lambda x: F.normalize(x, dim=1),
    ],
)
def test_relevance_passes_through_scales_and_gates(change):
    found, above, _ = relevance_of(change, rand(2, 4, 3, 3))
    torch.testing.assert_close(found, above, rtol=1e-9, atol=1e-9)


def test_a_product_of_two_activations_is_shared_by_halves():
    x = rand(2, 4, 3, 3)
    found, above, _ = relevance_of(lambda x: x[:, :2] * (2 * x[:, 2:]), x)
    torch.testing.assert_close(found, torch.cat([above, above], 1) / 2, rtol=1e-9, atol=1e-9)


def test_a_smaller_factor_is_the_gate():
    x = rand(2, 4, 3, 3)
    found, above, _ = relevance_of(lambda x: x * x[:, :1, :1, :1], x)
    torch.testing.assert_close(found, above, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: x @ torch.eye(3).double().flip(0),
        lambda x: x + x.mean(1, keepdim=True),
        lambda x: x - 0.3 * x.flip(1),
        lambda x: torch.cat([x.split(2, 1)[1], x[:, :1]], 1),
    ],
)
def test_linear_maps_share_in_proportion(change):
    """LRP-0 of a linear map: ``x * J^T (R / y)``, for any of them, however it is written."""
    x = rand(2, 4, 3, 3)
    found, above, y = relevance_of(change, x)
    jacobian = torch.autograd.functional.jacobian(change, x).reshape(y.numel(), x.numel())
    expected = x.flatten() * ((above / y).flatten() @ jacobian)
    assert relative(found.flatten(), expected) < 1e-3
    assert relative(found.sum(), above.sum()) < 1e-3


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)], ids=str)
def test_normalizations_of_large_halves(norm):
    """Of float16, whose squares overflow from 256 on, as torch's own."""
    torch.manual_seed(0)
    model = nn.Sequential(norm, nn.Linear(8, 3)).eval()
    x = (2000 * torch.randn(4, 8)).half().float()
    expected = fxlrp.explain(model, x, composite="epsilon_plus", target=1).relevance
    found = fxlrp.explain(model.half(), x.half(), composite="epsilon_plus", target=1).relevance
    assert relative(found.float(), expected) < 0.02


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((4, 3, 3)), nn.LayerNorm(3), nn.GroupNorm(2, 4), nn.RMSNorm(3, eps=1e-6)], ids=str
)
def test_normalizations_are_linear_with_their_deviation_held(norm):
    norm = trained(norm)
    for parameter in norm.parameters():
        parameter.data.uniform_(0.5, 1.5)
    x = rand(2, 4, 3, 3)
    found, above, y = relevance_of(norm, x)
    if isinstance(norm, nn.RMSNorm):
        scale = lambda x: (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        linear = lambda z: z * scale(x) * norm.weight
    else:
        groups = x.reshape(2, 2, -1) if isinstance(norm, nn.GroupNorm) else x
        dims = (-1,) if isinstance(norm, nn.GroupNorm) else tuple(range(-len(norm.normalized_shape), 0))
        deviation = (groups.var(dims, correction=0, keepdim=True) + norm.eps).sqrt()

        def linear(z):
            z = z.reshape(groups.shape)
            z = ((z - z.mean(dims, keepdim=True)) / deviation).reshape(x.shape)
            params = [p.reshape(-1, 1, 1) if isinstance(norm, nn.GroupNorm) else p for p in (norm.weight, norm.bias)]
            return z * params[0] + params[1]

    torch.testing.assert_close(linear(x), y)
    jacobian = torch.autograd.functional.jacobian(linear, x).reshape(y.numel(), x.numel())
    # Where each value has one input, nothing needs to be stabilized: relevance passes.
    divisor = y if isinstance(norm, nn.RMSNorm) else stabilize(y)
    expected = x.flatten() * ((above / divisor).flatten() @ jacobian)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-8, atol=1e-8)


def test_attention_is_attnlrp():
    """arXiv 2402.05602: the softmax rule, and half to each factor of both products, written out with sums."""
    q, k, v = (rand(1, 1, 3, 2) for _ in range(3))

    class Attend(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.fused, self.fc = fused, nn.Linear(6, 2, bias=False)

        def forward(self, q, k, v):
            if self.fused:
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                y = ((q * 2**-0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.fc(y.flatten(1))

    torch.manual_seed(0)
    model = Attend(True).double()
    out = fxlrp.convert(model, COMPOSITE, record=("fc",))((q, k, v), 1)
    above = out.recorded["fc"].reshape(3, 2)
    scaled = q[0, 0] * 2**-0.5
    scores, value = scaled @ k[0, 0].T, v[0, 0]
    a = scores.softmax(-1)
    o = a @ value
    r_a, r_v, r_q, r_k = (torch.zeros_like(t) for t in (a, value, scaled, scaled))
    for j in range(3):
        for i in range(3):
            for p in range(2):
                share = a[j, i] * value[i, p] * above[j, p] / stabilize(2 * o[j, p])
                r_a[j, i] += share
                r_v[i, p] += share
    r_s = scores * (r_a - a * r_a.sum(-1, keepdim=True))
    for j in range(3):
        for i in range(3):
            for p in range(2):
                share = scaled[j, p] * k[0, 0, i, p] * r_s[j, i] / stabilize(2 * scores[j, i])
                r_q[j, p] += share
                r_k[i, p] += share
    for ours, expected in zip(out.relevance, (r_q, r_k, r_v), strict=True):
        torch.testing.assert_close(ours[0, 0], expected, rtol=1e-8, atol=1e-8)
    parts = Attend(False).double()
    parts.load_state_dict(model.state_dict())
    for ours, expected in zip(fxlrp.convert(parts, COMPOSITE)((q, k, v), 1).relevance, out.relevance, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


def test_a_masked_attention_has_no_nan():
    x = rand(2, 1, 4, 3)
    keep = torch.ones(4, 4).tril().bool()
    added = torch.zeros(4, 4).double().masked_fill(~keep, -torch.inf)
    changes = [
        lambda x: F.scaled_dot_product_attention(x, 2 * x, -x, is_causal=True),
        lambda x: F.scaled_dot_product_attention(x, 2 * x, -x, attn_mask=keep),
        lambda x: F.scaled_dot_product_attention(x, 2 * x, -x, attn_mask=added),
    ]
    found = [relevance_of(change, x)[0] for change in changes]
    assert all(relevance.isfinite().all() for relevance in found)


@pytest.mark.parametrize(("heads", "options"), [(2, {"enable_gqa": True}), (1, {"enable_gqa": True}), (1, {})])
def test_keys_and_values_that_heads_share(heads, options):
    fc = nn.Linear(24, 3).double()

    class Attend(nn.Module):
        def __init__(self, repeats):
            super().__init__()
            self.fc, self.repeats = fc, repeats

        def forward(self, q, k, v):
            if self.repeats:
                k, v = (x.repeat_interleave(4 // heads, 1) for x in (k, v))
            return self.fc(F.scaled_dot_product_attention(q, k, v, **({} if self.repeats else options)).flatten(1))

    inputs = rand(2, 4, 3, 2), rand(2, heads, 5, 2), rand(2, heads, 5, 2)
    shared, repeated = (fxlrp.convert(Attend(repeats), COMPOSITE)(inputs, 1).relevance for repeats in (False, True))
    for ours, expected in zip(shared, repeated, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


ANOTHER_WAY = {
    "glu": (lambda x: F.glu(x, 1), lambda x: x[:, :2] * x[:, 2:].sigmoid()),
    "tile": (lambda x: x.tile(1, 2, 1, 1), lambda x: x.repeat(1, 2, 1, 1)),
    "rot90": (lambda x: x.rot90(1, (2, 3)), lambda x: x.flip(3).transpose(2, 3)),
    "lerp": (lambda x: torch.lerp(x, x.flip(1), 0.25), lambda x: x + 0.25 * (x.flip(1) - x)),
    "addcmul": (lambda x: torch.addcmul(x, x, x.flip(1), value=2), lambda x: x + 2 * x * x.flip(1)),
    "instance norm": (F.instance_norm, lambda x: F.group_norm(x, x.shape[1])),
}


@pytest.mark.parametrize("name", ANOTHER_WAY)
def test_one_op_or_several(name):
    """What torch can spell out in other ops gets these ops' rules."""
    x = rand(*IMAGE)
    found = []
    for change in ANOTHER_WAY[name]:
        torch.manual_seed(0)
        found.append(relevance_of(change, x)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_an_entry_comes_before_what_torch_could_spell_out():
    vocabulary.register(aten.glu.default, default=lambda node, slots: fxlrp.rules.Gradient())
    try:
        preview = fxlrp.check(nn.Sequential(nn.Linear(4, 6), nn.GLU()), COMPOSITE, torch.randn(2, 4))
    finally:
        vocabulary.remove(aten.glu.default)
    found = [(plan.op, plan.rule.partition("(")[0]) for plan in preview.plans]
    assert found == [("linear.default", "Epsilon"), ("glu.default", "Gradient")]


@pytest.mark.parametrize("training", [False, True])
def test_an_instance_norm_with_statistics(training):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.ReLU())
    trained(model).train(training)
    x = rand(*IMAGE)
    if training:
        with pytest.raises(errors.UnsupportedOpError, match="instance_norm"):
            fxlrp.convert(model, COMPOSITE)(x, 1)
        return
    other = copy.deepcopy(model)
    other[1] = nn.BatchNorm2d(4).double().eval()
    other[1].load_state_dict(model[1].state_dict())
    found, expected = (fxlrp.convert(m, COMPOSITE)(x, 1) for m in (model, other))
    torch.testing.assert_close(found.output, model(x))
    torch.testing.assert_close(found.relevance, expected.relevance)


def test_what_is_left_out_is_left_out_and_no_more():
    """Behind a ReLU, z+ needs one branch of two; on a signed input, both."""
    conv = nn.Conv2d(2, 3, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten()).eval()
    composite = LayerMapComposite([(Activation, Pass()), (Convolution, ZPlus())])
    twin = fxlrp.convert(model, composite, example_inputs=torch.randn(1, 2, 6, 6))
    steps = [node for node in twin.graph.nodes if "zplus" in str(node.target)]
    calls: dict[str, Any] = {node.name: twin.graph_module.get_submodule(node.target) for node in steps}
    branches = {name: step.rule.branches for name, step in calls.items()}
    first, second = branches["R_input_1"], branches["R__1"]
    assert [branch.zero_input for branch in first] == [False, False]
    assert [branch.zero_input for branch in second] == [False, True]
    assert [branch.reads_gradient for branch in second] == [True, False]
    assert unwrap(next(node for node in twin.graph.nodes if node.name == "_0"))[0] is aten.conv2d.default


def test_the_quick_stabilizer_is_zennits():
    """But for a zero with a sign, which is a sum of nothing else: no relevance goes through it, whatever the sign."""
    from fxlrp.rules.zennit.stabilizer import quickened, stabilized

    assert stabilized(torch.tensor([-0.0, 0.0]), 1e-6).tolist() == pytest.approx([-1e-6, 1e-6])
    values = [0.0, 1e-300, -1e-300, 1e-7, -1e-7, 3.0, -torch.inf, 1e-6, -1e-6]
    z = torch.tensor(values, dtype=torch.float64)
    for rule in (Epsilon(1e-6), Norm(0.5)):
        mapper = rule.gradient_mapper
        quick = quickened(mapper)
        assert quick.__closure__ is not mapper.__closure__
        torch.testing.assert_close(quick(torch.ones(()), [z]), mapper(torch.ones(()), [z]), rtol=1e-15, atol=0)
    for stabilizer in (Stabilizer(1e-3, clip=True), Stabilizer(1e-3, norm_scale=True)):
        mapper = Epsilon(stabilizer).gradient_mapper
        z = rand(3, 4)
        assert torch.equal(quickened(mapper)(torch.ones(()), [z]), mapper(torch.ones(()), [z]))


def test_a_convolution_has_a_shape_where_there_are_no_values():
    """Of a device that autocast knows nothing of."""
    x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
    geometry = Geometry([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    value = convolve(x, weight, geometry)
    assert value.shape == (2, 4, 6, 6)
    assert transpose(value, weight, tuple(x.shape), geometry).shape == x.shape


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_its_transpose_and_their_derivatives(kernel, transposed):
    """Against PyTorch's own, in every way that they are computed: values, derivatives, and derivatives of these."""
    torch.manual_seed(0)
    checked = 0
    for stride, padding, dilation, groups, samples, size in itertools.product(
        (1, 2), (0, 1), (1, 2), (1, 2), (1, 3), (5, 13)
    ):
        x = torch.randn(samples, 4, size, size, dtype=torch.float64, requires_grad=True)
        shape = (4, 6 // groups) if transposed else (6, 4 // groups)
        weight = torch.randn(*shape, kernel, kernel, dtype=torch.float64, requires_grad=True)
        geometry = Geometry([stride] * 2, [padding] * 2, [dilation] * 2, transposed, [0] * 2, groups)
        expected = aten.convolution(x, weight, None, *geometry)
        s, v = torch.randn_like(expected, requires_grad=True), torch.randn_like(x)
        value, back = convolve(x, weight, geometry), transpose(s, weight, tuple(x.shape), geometry)
        first = torch.autograd.grad(expected, (x, weight), s, create_graph=True)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(back, first[0])
        torch.testing.assert_close(torch.autograd.grad(value, (x, weight), s, create_graph=True), first)
        second = torch.autograd.grad((first[0] * v).sum(), (s, weight))
        torch.testing.assert_close(torch.autograd.grad((back * v).sum(), (s, weight)), second)
        many = torch.randn(3, *s.shape, dtype=torch.float64)
        found = torch.vmap(lambda each, w=weight, x=x, g=geometry: transpose(each, w, tuple(x.shape), g))(many)
        torch.testing.assert_close(found[1], transpose(many[1], weight, tuple(x.shape), geometry))
        checked += 1
    assert checked == 64
