"""The ledger rests on no derivative that is not there, and masks, lost tails and tiny numbers do not upset it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import zennit.rules as zr
from test_ledger import composite_of, rand
from torch import nn
from torch.autograd.function import once_differentiable

import fxlrp
from fxlrp import rules, vocabulary
from fxlrp.ops import NoDerivative
from fxlrp.testing import trained
from fxlrp.vocabulary import Call

# Ops as users write them: with a backward pass, and no forward derivative.


@torch.library.custom_op("fxlrp_tests::cubed", mutates_args=())
def cubed(x: torch.Tensor) -> torch.Tensor:
    return x**3


@cubed.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fxlrp_tests::closed", mutates_args=())
def closed(x: torch.Tensor) -> torch.Tensor:
    return x**3


@closed.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fxlrp_tests::closed_backward", mutates_args=())
def closed_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 3 * x**2 * gradient


def keep_input(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def slope_of_cube(ctx, gradient):
    (x,) = ctx.saved_tensors
    return 3 * x**2 * gradient


cubed.register_autograd(slope_of_cube, setup_context=keep_input)
closed.register_autograd(lambda ctx, gradient: closed_backward(gradient, *ctx.saved_tensors), setup_context=keep_input)


class WithoutJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *gradients):
        return slope_of_cube(ctx, *gradients)


class Once(WithoutJvp):
    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return slope_of_cube(ctx, *gradients)


class OutOfSight(WithoutJvp):
    """A backward pass of numpy's: autograd does not see it."""

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * gradient.detach().numpy())


class RefusesGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("no second time")


class NotTwice(WithoutJvp):
    @staticmethod
    def backward(ctx, *gradients):
        return RefusesGradients.apply(slope_of_cube(ctx, *gradients))


def call_of(target, x, op=None):
    return Call(op or vocabulary.Op(), target, (x,), {}, [(0, None)])


@pytest.mark.parametrize("target", [cubed, WithoutJvp.apply], ids=["custom_op", "autograd.Function"])
def test_a_derivative_needs_no_forward_derivative(target):
    x, tangent = rand(3, 4), rand(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(call_of(target, x).jvp([tangent]), 3 * x**2 * tangent, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    "target",
    [closed, Once.apply, OutOfSight.apply, NotTwice.apply],
    ids=["custom_op", "once", "out of sight", "not twice"],
)
def test_what_has_no_derivative_to_check_against_says_so(target):
    with pytest.raises(NoDerivative, match=r"derivative"):
        call_of(target, rand(3, 4)).jvp([rand(3, 4)])


def test_a_forward_derivative_will_do_as_well():
    """PyTorch cannot differentiate this one twice; its slope of a sixth is a float32's."""
    x, tangent = rand(3, 4), rand(3, 4)
    call = call_of(torch.ops.aten.hardsigmoid.default, x)
    torch.testing.assert_close(call.jvp([tangent]), tangent * (x.abs() < 3) / 6, rtol=1e-7, atol=0.0)


@torch.library.custom_op("fxlrp_tests::affine", mutates_args=())
def affine(x: torch.Tensor) -> torch.Tensor:
    return 3 * x + 1


def test_what_is_linear_needs_no_derivative():
    tangent = rand(3, 4)
    found = call_of(affine, rand(3, 4), vocabulary.Op(linear=True)).jvp([tangent])
    torch.testing.assert_close(found, 3 * tangent)


class Custom(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op, self.head = op, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.op(x))


@pytest.mark.parametrize(("name", "checked"), [("cubed", True), ("closed", False)])
def test_an_op_of_a_users(request, name, checked):
    """The gradient of a cube hands on ``3 x^2`` of a unit's relevance."""
    op = getattr(torch.ops.fxlrp_tests, name).default
    vocabulary.register(op, default=lambda node, slots: rules.Gradient())
    request.addfinalizer(lambda: vocabulary.remove(op))
    model, x = trained(Custom(op)), rand(2, 4)
    seed = rand(2, 3)
    ledger = fxlrp.audit(fxlrp.convert(model, composite_of(zr.Epsilon(1e-9))), x, seed)
    row = ledger.rows[1]
    relevance = x**3 * ((seed / model(x)) @ model.head.weight)
    assert ledger.leak < 1e-9
    assert row.definition == pytest.approx((relevance * (1 - 3 * x**2)).sum().item(), rel=1e-6)
    assert (row.misplaced is not None) == checked
    assert ("not checked" in str(ledger)) != checked


# Masks: finite or not, of some of a row's positions or of all of them.


class Attending(nn.Module):
    """One head of attention, its mask spelled in one of three ways."""

    def __init__(self, mask, spelling, lowest=None):
        super().__init__()
        self.lowest = lowest
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 3)
        self.register_buffer("mask", mask)
        self.spelling = spelling

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.spelling == "fused":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        else:
            scores = q @ k.mT / math.sqrt(6)
            added = self.spelling == "added"
            scores = scores + self.mask if added else scores.masked_fill(self.mask < 0, self.lowest)
            y = scores.softmax(-1) @ v
        return self.head(y.mean(1))


def mask_of(low, whole, dtype):
    hidden = torch.ones(5, 5).triu(1).bool()
    if whole:
        hidden[2] = True
    return torch.zeros(5, 5, dtype=dtype).masked_fill(hidden, low)


LOWEST = {"lowest": None, "-inf": -math.inf, "-1e9": -1e9, "-1e4": -1e4}


@pytest.mark.parametrize(
    ("low", "dtype"), [*((low, torch.float64) for low in LOWEST), ("lowest", torch.float32)], ids=str
)
def test_masks(low, dtype):
    """A masked position has no share, in whichever spelling, and the sums close: also where a row has no other."""
    lowest = torch.finfo(dtype).min if low == "lowest" else LOWEST[low]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    x = rand(2, 5, 6).to(dtype)
    for whole in (False, True)[: 1 if low == "-inf" else 2]:
        found = []
        for spelling in ("fused", "added", "filled"):
            torch.manual_seed(0)
            model = trained(Attending(mask_of(lowest, whole, torch.float64), spelling, lowest)).to(dtype).eval()
            model.mask = mask_of(lowest, whole, dtype)
            twin = fxlrp.convert(model, composite_of(zr.Epsilon(1e-6)))
            # Large: where masks took part, it would overflow.
            seed = 50 * torch.ones(2, 3, dtype=dtype)
            assert fxlrp.audit(twin, x, seed).leak < tolerance
            found.append(twin(x, seed).relevance)
        # Of a whole row, what is filled in leaves nothing of the scores: another function. Stabilizers are others, too.
        for other in found[1:2] if whole else found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-3 * found[0].abs().max().item())


def test_a_row_that_is_masked_as_a_whole_by_booleans_attends_to_nothing():
    """PyTorch gives such a row zeros: it takes and hands on nothing."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[2] = False
    torch.manual_seed(0)
    model = trained(Attending(mask, "fused")).eval()
    x = rand(2, 5, 6)
    twin = fxlrp.convert(model, composite_of(zr.Epsilon(1e-6)))
    assert fxlrp.audit(twin, x, 1).leak < 1e-9
    relevance = twin(x, 1).relevance
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0


def test_shared_heads_and_a_causal_mask():
    """Fused attention's own formula, from the side of the output, with each of its options."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv, self.head = nn.Linear(6, 24), nn.Linear(6, 12), nn.Linear(24, 3)

        def forward(self, x):
            q = self.q(x).unflatten(-1, (4, 6)).transpose(1, 2)
            k, v = self.kv(x).unflatten(-1, (2, 1, 6)).unbind(2)
            k, v = k.transpose(1, 2).expand(-1, 2, -1, -1), v.transpose(1, 2).expand(-1, 2, -1, -1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
            return self.head(y.transpose(1, 2).flatten(2).mean(1))

    twin = fxlrp.convert(trained(Grouped()).eval(), composite_of(zr.Epsilon(1e-6)))
    x = rand(2, 5, 6)
    ledger = fxlrp.audit(twin, x, 1)
    assert ledger.leak < 1e-9
    assert all(row.misplaced is not None for row in ledger.rows)


def test_training_mode_with_dropout_and_a_recorded_module():
    """What was dropped, batch statistics and recorded paths are a call's own: there is no false alarm."""
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Flatten()]
    model = trained(nn.Sequential(*layers, nn.Linear(16, 3))).train()
    twin = fxlrp.convert(model, composite_of(zr.Epsilon()), trainable=True, record=("6",))
    assert fxlrp.audit(twin, rand(4, 2, 6, 6), 1).leak < 1e-9
