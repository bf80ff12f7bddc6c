"""The fewest products of inputs and weights that a rule comes to, if what it modifies is sided.

Of inputs and weights there are four kinds of products by their signs, ``x+ w+, x+ w-, x- w+, x- w-``; two, if inputs
are non-negative. A branch of a rule whose modifiers are sided is a sum of these with coefficients ``p_i s_j``: a 2 x 2
matrix of rank one, as is the forward pass's (of ones), which is known. What the mapper reads, and what the reducer
makes of its gradients, are sums of branches: matrices too. One that is not of rank one is so after a multiple of the
ones is taken off (its determinant is linear in that): ``z+ = (|w| |x| + w x) / 2`` needs one product, and not two; and
of non-negative inputs all are sums of the forward pass's and of one other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import Plan, Product, Share, SidedBranch, Transposed, Value
from .sided import ALL, NONE, Sided

__all__ = ["plan_of"]


def plan_of(
    branches: Sequence[SidedBranch],
    sums: Sequence[Sequence[int]],
    alike: Sequence[Sequence[tuple[int, float]]],
    *,
    non_negative: bool,
    subtract: bool,
) -> Plan:
    """The plan of the fewest products.

    Parameters
    ----------
    branches : sequence of SidedBranch
        The rule's.
    sums : sequence of sequences of int
        The branches that the mapper reads, by the sums that it reads them in.
    alike : sequence of sequences of (int, float)
        The branches whose gradients are wanted, by what these are multiples of: that of the first in each.
    non_negative : bool
        Whether inputs are known to be non-negative.
    subtract : bool
        Whether something may be found as a difference of others, which cancel where it is small against these.
    """
    of = [_outer(b.input, b.weight, non_negative) for b in branches]
    products, values = _values(branches, of, sums, non_negative, subtract)
    shares: dict[Sided, list[Transposed]] = {}
    for form, part in _transposed(branches, of, alike, subtract):
        shares.setdefault(form, []).append(part)
    return Plan(tuple(products), values, tuple(Share(form, tuple(parts)) for form, parts in shares.items()))


def _outer(input: Sided, weight: Sided, non_negative: bool) -> Tensor:
    found = torch.outer(torch.tensor(input, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64))
    return found[:1] if non_negative else found


def _factored(matrix: Tensor) -> tuple[Sided, Sided] | None:
    """The two sided functions that a matrix is the product of; None if its rank is two."""
    if len(matrix) == 1:
        return ALL, _sided(matrix[0])
    row = int(matrix.abs().sum(1).argmax())
    column = int(matrix[row].abs().argmax())
    # The weight has the size, and the input the signs.
    input, weight = matrix[:, column] / matrix[row, column], matrix[row]
    off = (torch.outer(input, weight) - matrix).abs().max()
    return (_sided(input), _sided(weight)) if off <= 1e-13 * matrix.abs().max() else None


def _sided(values: Tensor) -> Sided:
    positive, negative = (float(value) for value in values)
    return Sided(positive, negative)


def _without_ones(matrix: Tensor) -> tuple[float, tuple[Sided, Sided]] | None:
    """Which multiple of ones taken off leaves a matrix of rank one, and the pair that this is; None if none does.

    ``[[a, b], [c, d]] - (a d - b c) / (a + d - b - c)`` is ``(a - b, c - d)`` times ``(a - c, b - d) / (a + d - b -
    c)``: found so, it has no rounding of a difference of nearly equal numbers.
    """
    if len(matrix) == 1:
        return 0.0, (ALL, _sided(matrix[0]))
    (a, b), (c, d) = matrix.tolist()
    input, weight = (a - b, c - d), (a - c, b - d)
    mixed = input[0] - input[1]
    if abs(mixed) <= 1e-9 * matrix.abs().max():
        return None
    size = max(input, key=abs)
    pair = Sided(input[0] / size, input[1] / size), _times(Sided(*weight), size / mixed)
    return a - input[0] * weight[0] / mixed, pair


def _combined(matrix: Tensor, basis: Sequence[Tensor]) -> list[float] | None:
    """The factors of a sum of matrices that gives this one; None if there is none."""
    columns = torch.stack([each.flatten() for each in basis], 1)
    # Of one size, so that a small one is not lost in rounding.
    sizes = columns.abs().amax(0)
    factors = torch.linalg.lstsq(columns / sizes, matrix.flatten()[:, None], driver="gelsd").solution[:, 0] / sizes
    off = (columns @ factors - matrix.flatten()).abs().max()
    if off > 1e-12 * matrix.abs().max():
        return None
    rounding = 1e-15 * float(matrix.abs().max())
    return [_unrounded(factor, rounding / size) for factor, size in zip(factors.tolist(), sizes.tolist(), strict=True)]


def _unrounded(factor: float, rounding: float = 0.0) -> float:
    """A factor as it was before it was rounded: most are small multiples of a power of two."""
    near = round(factor * 64) / 64
    return near if abs(near - factor) < max(1e-13 * max(1.0, abs(factor)), rounding) else factor


def _values(
    branches: Sequence[SidedBranch],
    of: Sequence[Tensor],
    sums: Sequence[Sequence[int]],
    non_negative: bool,
    subtract: bool,
) -> tuple[list[Product], dict[int, Value]]:
    ones = torch.ones_like(of[0])
    products: list[Product] = []
    found: list[Tensor] = []
    chosen: dict[int, tuple[list[float], Sided]] = {}
    for members in sums:
        matrix, bias = torch.stack([of[i] for i in members]).sum(0), _total([branches[i].bias for i in members])
        known = [ones, *found]
        factors = _combined(matrix, known) if subtract else _multiple_of_one(matrix, known)
        if factors is None:
            forward, new = 0.0, _of_rank_one(matrix)
            if subtract and len(new) > 1 and (off := _without_ones(matrix)) is not None:
                forward, new = off[0], [off[1]]
            left = _plus(bias, Sided(-forward, -forward))
            products += [Product(*new[0], left), *(Product(*each, NONE) for each in new[1:])]
            factors = [forward, *[0.0] * len(found), *[1.0] * len(new)]
            found += [_outer(*each, non_negative) for each in new]
        chosen[members[0]] = factors, bias
    return products, {i: _value(factors, bias, products) for i, (factors, bias) in chosen.items()}


def _of_rank_one(matrix: Tensor) -> list[tuple[Sided, Sided]]:
    """The fewest pairs of sided functions whose products sum up to a matrix."""
    whole = _factored(matrix)
    if whole is not None:
        return [whole]
    return [(Sided(1.0, 0.0), _sided(matrix[0])), (Sided(0.0, 1.0), _sided(matrix[1]))]


def _multiple_of_one(matrix: Tensor, known: Sequence[Tensor]) -> list[float] | None:
    for i, each in enumerate(known):
        factors = _combined(matrix, [each])
        if factors is not None:
            return [factors[0] if i == j else 0.0 for j in range(len(known))]
    return None


def _value(factors: Sequence[float], bias: Sided, products: Sequence[Product]) -> Value:
    forward, *rest = factors
    rest += [0.0] * (len(products) - len(rest))
    have = _total([Sided(forward, forward), *(_times(p.bias, f) for p, f in zip(products, rest, strict=True))])
    beside = _plus(bias, _times(have, -1.0))
    negligible = max(map(abs, beside)) < 1e-12
    return Value(forward, tuple(rest), NONE if negligible else beside)


def _plus(a: Sided, b: Sided) -> Sided:
    return Sided(a.positive + b.positive, a.negative + b.negative)


def _times(a: Sided, factor: float) -> Sided:
    return Sided(a.positive * factor, a.negative * factor)


def _total(parts: Sequence[Sided]) -> Sided:
    found = NONE
    for part in parts:
        found = _plus(found, part)
    return found


_Part = tuple[Sided, Transposed]


def _transposed(
    branches: Sequence[SidedBranch],
    of: Sequence[Tensor],
    alike: Sequence[Sequence[tuple[int, float]]],
    subtract: bool,
) -> Sequence[_Part]:
    """The parts of the relevance, each with how the inputs that it is multiplied with are modified."""
    wanted = [(same[0][0], [branches[i].factor * factor * of[i] for i, factor in same]) for same in alike]
    matrices = {i: matrix for i, parts in wanted if bool((matrix := torch.stack(parts).sum(0)).any())}
    direct = [
        (input, Transposed(weight, ((i, 1.0),)))
        for i, matrix in matrices.items()
        for input, weight in _of_rank_one(matrix)
    ]
    if len(direct) <= 2 or not subtract:
        return direct
    return _joint(matrices) or direct


def _joint(matrices: dict[int, Tensor]) -> Sequence[_Part]:
    """All of them by the same two products, each of a sum of gradients; nothing if there is no such pair."""
    for first in matrices.values():
        off = _without_ones(first)
        if off is None:
            continue
        forms = [(ALL, ALL), off[1]]
        pair = [_outer(*form, len(first) == 1) for form in forms]
        factors = {i: _combined(matrix, pair) for i, matrix in matrices.items()}
        known = {i: each for i, each in factors.items() if each is not None}
        if len(known) == len(factors):
            parts = [[(i, each[k]) for i, each in known.items() if each[k]] for k in range(2)]
            return [_part(*form, part) for form, part in zip(forms, parts, strict=True) if part]
    return []


def _part(input: Sided, weight: Sided, gradients: Sequence[tuple[int, float]]) -> _Part:
    """With a factor that all gradients have in the weight."""
    first = gradients[0][1]
    factors = tuple((i, _unrounded(factor / first)) for i, factor in gradients)
    return input, Transposed(_times(weight, first), factors)
