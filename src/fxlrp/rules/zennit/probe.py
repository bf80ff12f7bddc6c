"""What a modifier of a zennit rule does, found out by trying it on numbers, whatever the rule's class.

The numbers span thirty orders of magnitude and both signs, so that a modifier which changes nothing on them, but does
on others, has to be made for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import RuleError
from ...values import on_the_cpu
from .branch import Mapper, Modifier, Reducer
from .held import is_tuned
from .memory import remembered

__all__ = [
    "Alone",
    "coefficients",
    "inputs",
    "is_identity",
    "is_negative_part",
    "is_relu",
    "is_zero",
    "keeps_params",
    "keeps_scale",
    "keeps_zero",
    "numbers",
    "reads_gradient",
    "rectified",
    "shares_positive_products",
    "small",
]

_SMALL = 8
_ENOUGH = 64
_KEPT = 2**16


def numbers(shape: Sequence[int], *, non_negative: bool = False, seed: int = 0) -> Tensor:
    """Random float64 numbers of many magnitudes, zeros among them; the caller's own."""
    draw = _drawn if math.prod(shape) <= _KEPT else _drawn.__wrapped__
    return draw(tuple(shape), non_negative, seed).clone()


@lru_cache(maxsize=64)
def _drawn(shape: tuple[int, ...], non_negative: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(shape, generator=generator, dtype=torch.float64)
    values = 10 ** (30 * draw() - 15) * (draw() > 0.1)
    return values if non_negative else values * torch.where(draw() < 0.5, -1.0, 1.0).to(values)


def _agrees(function: Modifier, reference: Modifier, inputs: Sequence[Tensor]) -> bool:
    if is_tuned(function):
        return False
    for x in inputs:
        try:
            value = function(x.clone())
        # A user's modifier may refuse numbers that are not its layer's: then nothing is known of it.
        except Exception:
            return False
        if not _equal(value, reference(x)):
            return False
    return True


def _equal(value: object, expected: Tensor) -> bool:
    return isinstance(value, Tensor) and torch.equal(value, expected)


def _rounds(shapes: Iterable[Sequence[int]]) -> range:
    """How often to try, so that small shapes too are filled with numbers of both signs: each a seed."""
    fewest = min((math.prod(shape) for shape in shapes), default=_ENOUGH)
    return range(2 + _ENOUGH // max(fewest, 1))


def inputs(shape: Sequence[int], non_negative: bool) -> list[Tensor]:
    """As many tensors of a shape as it takes to have both signs, and zeros, at many magnitudes."""
    return [numbers(shape, non_negative=non_negative, seed=seed) for seed in _rounds([shape])]


@remembered
def is_identity(modifier: Modifier, shape: Sequence[int], *, non_negative: bool) -> bool:
    """Whether an input or output modifier changes nothing (on non-negative numbers, if ``non_negative``)."""
    return _agrees(modifier, lambda x: x, inputs(shape, non_negative))


@remembered
def is_zero(modifier: Modifier, shape: Sequence[int], *, non_negative: bool) -> bool:
    """Whether an input modifier gives zero (on non-negative numbers, if ``non_negative``)."""
    return _agrees(modifier, torch.zeros_like, inputs(shape, non_negative))


@remembered
def keeps_zero(modifier: Modifier, shape: Sequence[int]) -> bool:
    """Whether an input modifier gives zero for zero."""
    return _agrees(modifier, torch.zeros_like, [torch.zeros(tuple(shape), dtype=torch.float64)])


def small(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Shapes of few parameters to try, of the same names and ranks."""
    return {name: [min(size, _SMALL) for size in shape] for name, shape in shapes.items()}


@dataclass(frozen=True)
class Alone:
    """How one of an op's parameters is modified, given by itself."""

    modify: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    name: str

    def __call__(self, param: Tensor) -> Tensor:
        return self.modify({self.name: param})[self.name]


@remembered
def keeps_params(modify: Callable[[dict[str, Tensor]], dict[str, Tensor]], shapes: dict[str, Sequence[int]]) -> bool:
    """Whether a parameter modifier changes none of the parameters of these names and ranks (tried on small ones)."""
    tried, tuned = small(shapes), is_tuned(modify)
    for seed in _rounds(tried.values()):
        params = {name: numbers(shape, seed=seed) for name, shape in tried.items()}
        try:
            modified = modify({name: param.clone() for name, param in params.items()})
        except RuleError:
            raise
        # As above.
        except Exception:
            return False
        if tuned or not all(_equal(modified[name], param) for name, param in params.items()):
            return False
    return True


@remembered
def is_relu(modifier: Modifier, shape: Sequence[int]) -> bool:
    """Whether an input modifier is a ReLU, however it is written."""
    return _agrees(modifier, torch.relu, inputs(shape, non_negative=False))


@remembered
def is_negative_part(modifier: Modifier, shape: Sequence[int]) -> bool:
    """Whether an input modifier keeps what is negative alone, however it is written."""
    return _agrees(modifier, lambda x: x.clamp(max=0), inputs(shape, non_negative=False))


@remembered
def rectified(modify: Callable[[dict[str, Tensor]], dict[str, Tensor]], shapes: dict[str, Sequence[int]]) -> list[str]:
    """The parameters on which a parameter modifier is a ReLU, however it is written (tried on small ones)."""
    tried = small(shapes).items()
    return [name for name, shape in tried if _agrees(Alone(modify, name), torch.relu, inputs(shape, False))]


@remembered
def keeps_scale(modify: Callable[[dict[str, Tensor]], dict[str, Tensor]], shapes: dict[str, Sequence[int]]) -> bool:
    """Whether a parameter modifier commutes with positive factors of the weight, as a clamp does (tried on small)."""
    tried = small(shapes)
    if "weight" not in tried or is_tuned(modify):
        return False
    for seed in _rounds(tried.values()):
        params = {name: numbers(shape, seed=seed) for name, shape in tried.items()}
        # Powers of two: no rounding.
        factor = 2.0 ** (numbers(tried["weight"], seed=seed + 1).sign() * (1 + seed % 5))
        try:
            modified = modify({name: param.clone() for name, param in params.items()})
            scaled = modify({**params, "weight": params["weight"] * factor})
            expected = {name: modified[name] * (factor if name == "weight" else 1) for name in tried}
        # As above.
        except Exception:
            return False
        if not all(_equal(scaled[name], expected[name]) for name in tried):
            return False
    return True


@remembered
def reads_gradient(reducer: Reducer, count: int, index: int, zero_inputs: Sequence[int]) -> bool:
    """Whether a reducer's value depends on the gradient of branch `index`, where some branches' inputs are zero."""
    shape = (64,)
    inputs = [torch.zeros(shape).double() if i in zero_inputs else numbers(shape, seed=i) for i in range(count)]
    gradients = [numbers(shape, seed=count + i) for i in range(count)]
    others = list(gradients)
    others[index] = numbers(shape, seed=2 * count)
    try:
        same = torch.equal(reducer(list(inputs), gradients), reducer(list(inputs), others))
        return not same or is_tuned(reducer)
    # As above: a reducer that refuses these numbers is taken to read everything.
    except Exception:
        return True


@remembered
def shares_positive_products(
    modifiers: Sequence[Modifier],
    modify: Sequence[Callable[[dict[str, Tensor]], dict[str, Tensor]]],
    mapper: Mapper,
    reducer: Reducer,
) -> bool:
    """Whether a rule without output modifiers shares a unit's relevance by the positive part of each ``x_i w_i``.

    That is, by the positive part of the bias beside them: the products of all branches come to that, the mapper reads
    their outputs' sum alone and gives each branch the same, and the reducer is the sum of inputs times gradients.
    """
    count, shape = len(modifiers), (64,)
    x, w, b, seed = (numbers(shape, seed=i) for i in range(4))
    outputs = [torch.randn(shape, generator=torch.Generator().manual_seed(i)).double() for i in range(count)]
    zeros = [torch.zeros_like(x)] * (count - 1)
    try:
        params = [change({"weight": w.clone(), "bias": b.clone()}) for change in modify]
        products = sum(at(x.clone()) * p["weight"] for at, p in zip(modifiers, params, strict=True))
        joint = mapper(seed, [torch.stack(outputs).sum(0), *zeros])
        mapped = [*mapper(seed, outputs), *joint]
        same = all(torch.allclose(each, joint[0], rtol=1e-9, atol=0.0) for each in mapped)
        biases = torch.stack([p["bias"] for p in params]).sum(0)
    # As above: of what refuses these numbers, nothing is known.
    except Exception:
        return False
    return (
        same
        and len(mapped) == 2 * count
        and torch.equal(torch.as_tensor(products), (x * w).relu())
        and torch.equal(biases, b.relu())
        and coefficients(reducer, count) == ([1.0] * count, [0.0] * count)
    )


@remembered
@on_the_cpu
@torch.no_grad()
def coefficients(reducer: Reducer, count: int) -> tuple[list[float], list[float]] | None:
    """The a and b of a reducer ``sum_i a_i x_i g_i + b_i g_i`` of `count` branches; None if it is not of this form."""
    zeros = [torch.zeros(1, dtype=torch.float64)] * count
    ones = [torch.ones(1, dtype=torch.float64)] * count
    try:
        of_gradients, of_products = [], []
        for i in range(count):
            gradients = [ones[j] if j == i else zeros[j] for j in range(count)]
            of_gradients.append(float(reducer(list(zeros), gradients)))
            of_products.append(float(reducer(list(ones), gradients)) - of_gradients[-1])
        inputs, gradients = ([numbers((64,), seed=shift + i) for i in range(count)] for shift in (0, count))
        found = reducer(list(inputs), list(gradients))
    # As above: of a reducer that refuses these numbers, nothing is known.
    except Exception:
        return None
    expected = sum((a * x + b) * g for a, b, x, g in zip(of_products, of_gradients, inputs, gradients, strict=True))
    same = torch.allclose(found, torch.as_tensor(expected), rtol=1e-9, atol=0.0)
    return (of_products, of_gradients) if same else None
