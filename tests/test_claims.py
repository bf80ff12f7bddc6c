"""Every claim of the vocabulary is tried: guards against a fact taken on trust, of an op whose arguments make it false.

Arguments and inputs are drawn; an entry that takes a number or a dtype and claims something must bring its draws.
"""

from __future__ import annotations

import inspect
import math
import random

import pytest
import torch
import zennit.rules as zr
from test_ops import CALLS, SPLITS, call_of
from torch import fx, nn
from zennit.composites import LayerMapComposite
from zennit.types import Activation, Convolution

import fxlrp
from fxlrp import ops
from fxlrp.relevance.assign import _offer
from fxlrp.vocabulary import lookup

aten = torch.ops.aten
SHAPE = (2, 3, 4, 5)
DRAWS = 24


def tensor(shape, zeros=False):
    return torch.randn(shape, dtype=torch.float64) * 10 ** random.uniform(-1, 1)


def number():
    return random.choice([random.uniform(-3, 3), float(random.randint(-3, 3)), random.randint(-3, 3), 0.0])


def bound():
    return random.choice([None, number(), number(), math.inf, -math.inf])


def dtype():
    return random.choice([None, torch.float64, torch.float32, torch.int64, torch.int8, torch.uint8])


def casts(*others):
    return lambda x: ((x, *others), {"dtype": dtype()})


def pads():
    return [random.randint(-1, 2) for _ in range(4)]


NUMBERS = {
    aten.masked_fill.Scalar: lambda x: ((x, torch.rand(SHAPE) < 0.5, number()), {}),
    aten.scatter.value: lambda x: ((x, 1, torch.randint(3, (1, 2, 4, 5)), number()), {}),
    aten.constant_pad_nd.default: lambda x: ((x, pads(), *random.choice([(), (number(),)])), {}),
    aten.pad.default: lambda x: ((x, pads()), random.choice([{}, {"value": number()}, {"mode": "constant"}])),
    aten.clamp.default: lambda x: (
        ((x, number(), bound()), {}) if random.random() < 0.5 else ((x, bound(), number()), {})
    ),
    aten.clamp_min.default: lambda x: ((x, number()), {}),
    aten.clamp_max.default: lambda x: ((x, number()), {}),
    aten.hardtanh.default: lambda x: ((x, number(), number()), {}) if random.random() < 0.7 else ((x,), {}),
    aten.softplus.default: lambda x: ((x, number() or 1.0, number()), {}) if random.random() < 0.7 else ((x,), {}),
    aten.threshold.default: lambda x: ((x, number(), number()), {}),
    aten.leaky_relu.default: lambda x: ((x, number()), {}),
    aten.hardshrink.default: lambda x: ((x, abs(number())), {}),
    aten.softshrink.default: lambda x: ((x, abs(number())), {}),
    aten.elu.default: lambda x: ((x, number(), number(), number()), {}),
    aten.celu.default: lambda x: ((x, number() or 1.0), {}),
    aten.add.Tensor: lambda x: (
        (x, random.choice([number(), tensor(SHAPE)])),
        random.choice([{}, {"alpha": number()}]),
    ),
    aten.add.Scalar: lambda x: ((x, number(), number()), {}),
    aten.sub.Tensor: lambda x: (
        (x, random.choice([number(), tensor(SHAPE)])),
        random.choice([{}, {"alpha": number()}]),
    ),
    aten.sub.Scalar: lambda x: ((x, number(), number()), {}),
    aten.rsub.Tensor: lambda x: ((x, tensor(SHAPE)), {"alpha": number()}),
    aten.rsub.Scalar: lambda x: ((x, number(), number()), {}),
    aten.mul.Scalar: lambda x: ((x, number()), {}),
    aten.mul.Tensor: lambda x: ((x, random.choice([number(), tensor(SHAPE)])), {}),
    aten.div.Scalar: lambda x: ((x, number() or 1.0), {}),
    aten.linalg_vector_norm.default: lambda x: ((x, random.choice([0, 1, 2, 0.5, -1, math.inf, -math.inf])), {}),
    aten.avg_pool2d.default: lambda x: ((x, [2, 2]), {"divisor_override": random.choice([None, 3, -3])}),
    aten.avg_pool3d.default: lambda x: ((x, [2, 2, 2]), {"divisor_override": random.choice([None, 3, -3])}),
    aten.sum.dim_IntList: casts([1]),
    aten.mean.dim: lambda x: ((x, [1]), {"dtype": random.choice([None, torch.float32])}),
    aten.cumsum.default: casts(1),
    aten.softmax.int: lambda x: ((x, 1), {"dtype": random.choice([None, torch.float32])}),
    aten.to.dtype: lambda x: ((x, dtype() or torch.float64), {}),
    aten.to.dtype_layout: casts(),
    aten._to_copy.default: casts(),
}
"""For each op that takes a number or a dtype, a call at `x` with others."""


def draw(case, seed, keywords):
    """A call like `case`, at other numbers; by keyword, what can be, if asked for."""
    torch.manual_seed(seed)
    random.seed(seed)
    target, *args = case
    if target in NUMBERS:
        args, kwargs = NUMBERS[target](tensor(SHAPE))
    else:
        args, kwargs = tuple(map(renewed, args)), {}
    if keywords and isinstance(target, torch._ops.OpOverload) and random.random() < 0.5:
        first = max(lookup(target).inputs) + 1
        names = [a.name for a in target._schema.arguments]
        kwargs = dict(zip(names[first:], args[first:], strict=False)) | kwargs
        args = args[:first]
    return target, tuple(args), kwargs


def draws_of(case):
    """Many where arguments are drawn, few where tensors alone are."""
    return range(DRAWS if case[0] in NUMBERS else 3)


def renewed(value):
    if isinstance(value, list):
        return [renewed(each) for each in value]
    drawn = isinstance(value, torch.Tensor) and value.is_floating_point()
    return tensor(value.shape) if drawn else value


CASES = [*CALLS, *((target, torch.zeros(4, 3).double(), *rest) for target, rest in SPLITS.items())]
CASES.append((aten.detach.default, torch.zeros(SHAPE).double()))
name_of = lambda case: getattr(case[0], "__name__", str(case[0]))
claims = lambda holds: pytest.mark.parametrize("case", [c for c in CASES if holds(lookup(c[0]))], ids=name_of)


def test_every_op_is_tried_and_every_number_is_drawn():
    assert {case[0] for case in CASES} == set(ops._OPS)
    nothing = inspect.signature(ops.Op).parameters["non_negative"].default
    for target, op in ops._OPS.items():
        if not isinstance(target, torch._ops.OpOverload) or (op.non_negative is nothing and not op.linear):
            continue
        kinds = [(a.name, str(a.type), str(a.real_type)) for a in target._schema.arguments]
        takes = [k for k in kinds if "number" in k[1] or "ScalarType" in k[2] or k[0] in ("value", "divisor_override")]
        assert not takes or target in NUMBERS, f"{target} takes {takes}: give it a draw in NUMBERS"


def graph_of(target, args, kwargs, known):
    """The call as a graph, its inputs behind ReLUs where they are to be known; and those inputs."""
    graph, inputs = fx.Graph(), []

    def node_of(value, position):
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [node_of(each, position) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder("x") if position in lookup(target).inputs else graph.get_attr("constant")
        node.meta["val"] = value
        if node.op == "placeholder" and known:
            node = graph.call_function(aten.relu.default, (node,))
            node.meta["val"] = value.relu_()
        inputs.append(value)
        return node

    called = [node_of(value, position) for position, value in enumerate(args)]
    named = {name: node_of(value, -1) for name, value in kwargs.items()}
    node = graph.call_function(target, tuple(called), named)
    node.meta["val"] = target(*args, **kwargs)
    return graph, node


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_is_known_to_be_non_negative_is_not_negative(case):
    for seed in draws_of(case):
        target, args, kwargs = draw(case, seed, keywords=True)
        with torch.no_grad():
            graph, node = graph_of(target, args, kwargs, known=seed % 4 > 0)
        value = node.meta["val"]
        if node in _offer(graph, set(), None)[1]:
            parts = value if isinstance(value, list) else [value[0] if isinstance(value, tuple) else value]
            assert all(bool((part.nan_to_num() >= 0).all()) for part in parts), (args, kwargs)


def functions(case):
    """The op as a function of its inputs, and these, for each draw whose value is floating."""
    for seed in draws_of(case):
        target, args, kwargs = draw(case, seed, keywords=False)
        call = call_of(target, *args, **kwargs)

        def run(*inputs, call=call):
            value = call.with_inputs(inputs)._value()
            parts = value if isinstance(value, list | tuple) else [value]
            return torch.cat([part.flatten() for part in parts])

        value = run(*call.inputs)
        # A claim is about floating-point values; to those of less precision, it holds up to that.
        if value.is_floating_point():
            yield run, call, 1e-9 if value.dtype == torch.float64 else 1e-4


@claims(lambda op: op.linear)
def test_what_is_linear_keeps_sums_and_multiples(case):
    for run, call, tolerance in functions(case):
        xs = call.inputs
        ys, zeros = [torch.randn_like(x) for x in xs], [torch.zeros_like(x) for x in xs]
        a, b = random.uniform(-2, 2), random.uniform(-2, 2)
        mixed = run(*(a * x + b * y for x, y in zip(xs, ys, strict=True))) - run(*zeros)
        expected = a * (run(*xs) - run(*zeros)) + b * (run(*ys) - run(*zeros))
        torch.testing.assert_close(mixed, expected, rtol=tolerance, atol=100 * tolerance)


@claims(lambda op: op.structural)
def test_what_is_structural_moves_each_element_or_a_constant(case):
    for run, call, tolerance in functions(case):
        jacobians = torch.autograd.functional.jacobian(run, call.inputs)
        matrix = torch.cat([j.flatten(1) for j in jacobians], 1)
        assert bool(((matrix == 0) | (matrix == 1)).all())
        assert bool((matrix.sum(1) <= 1).all())
        flat = torch.cat([x.flatten() for x in call.inputs])
        constant = run(*(torch.zeros_like(x) for x in call.inputs))
        expected = torch.where(matrix.any(1), matrix.to(flat) @ flat, constant.to(flat))
        torch.testing.assert_close(run(*call.inputs).to(flat), expected, rtol=tolerance, atol=tolerance)


@claims(lambda op: op.at_zero is not None)
def test_the_value_at_zero_is_what_is_said(case):
    for run, call, tolerance in functions(case):
        value = call.with_inputs([torch.zeros_like(x) for x in call.inputs])._value()
        said = call.op.at_zero(call)
        expected = torch.zeros_like(value) if said is None else said.expand(value.shape)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(run(*call.inputs), call.run().flatten(), rtol=tolerance, atol=tolerance)


BETWEEN = {
    "masked": lambda x: x.relu().masked_fill(torch.arange(6) % 2 == 0, -2.0),
    "padded": lambda x: nn.functional.pad(x.relu()[..., 1:-1], (1, 1), value=-2.0),
    "clamped": lambda x: x.clamp(min=0.0, max=-1.0),
    "hardtanh": lambda x: aten.hardtanh.default(x, 0.0, -1.0),
    "softplus": lambda x: nn.functional.softplus(x, -1.0),
    "pooled": lambda x: nn.functional.avg_pool2d(x.relu(), 1, divisor_override=-2),
    "scaled": lambda x: x.relu() * -2.0,
}


@pytest.mark.parametrize("name", BETWEEN)
def test_no_branch_of_zplus_is_dropped_that_is_needed(name):
    """z+ as one layer at a time gives it: ``sum_k (x+ w+ + x- w-) R / z+``."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 1, bias=False).double()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(BETWEEN[name](x))

    x = torch.randn(2, 2, 6, 6).double()
    seed = torch.randn(2, 3, 6, 6).double()
    composite = LayerMapComposite([(Activation, zr.Pass()), (Convolution, zr.ZPlus(1e-9))])
    found = fxlrp.convert(Model(), composite, record=("conv",))(x, seed).recorded["conv"]
    y, w = BETWEEN[name](x), conv.weight[:, :, 0, 0].detach()
    plus = torch.einsum("nchw,kc->nkchw", y.clamp(min=0), w.clamp(min=0))
    plus = plus + torch.einsum("nchw,kc->nkchw", y.clamp(max=0), w.clamp(max=0))
    expected = (plus * (seed / (plus.sum(2) + 1e-9))[:, :, None]).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
