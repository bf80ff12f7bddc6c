"""Rules for what zennit has no word for, each with its source: gates, products, normalizations, softmax, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import Call, Slot
from ..ops.normalization import NormalizedMap
from .base import Account, Rule, paired, total
from .zennit.stabilizer import stabilized

__all__ = ["STABILIZER", "Attention", "Bilinear", "Gate", "Half", "Linearized", "Softmax"]

STABILIZER = 1e-6
MASKED = -5e3
"""No score is as low as this: it is a mask. Those in use are -1e4, -1e9, the lowest finite number, minus infinity."""


@dataclass(frozen=True, eq=False, repr=False)
class Gate(Rule):
    """Signal x gate: all relevance to the signal, the gate is a constant (the signal-takes-it-all rule).

    Attributes
    ----------
    signal : int
        Which of the factors is the signal, 0 or 1.
    """

    signal: int
    needs_output = False

    def receivers(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        return [slot for slot in slots if slot[0] == self.signal]

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        return [relevance.sum_to_size(x.shape) for x in call.inputs]

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """All of it goes on."""
        return Account()

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """Each value's goes to the element of the signal that it was made of."""
        slots = zip(call.slots, weights, strict=True)
        return sum(paired(relevance, v) for (position, _), v in slots if position == self.signal)


class Half(Rule):
    """Product of two activations: half of the relevance to each factor (AttnLRP, arXiv 2402.05602, section 3.3)."""

    needs_output = False

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        return [(relevance / len(call.slots)).sum_to_size(x.shape) for x in call.inputs]

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """All of it goes on."""
        return Account()

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """A half of each value's goes to each of the elements that it was made of."""
        return sum(paired(relevance, v) for v in weights) / len(weights)


@dataclass(frozen=True, eq=False, repr=False)
class Linearized(Rule):
    """A normalization whose deviation is held constant: a linear map, and relevance in proportion (LRP-epsilon).

    Attributes
    ----------
    linearize : callable
        ``(call) -> NormalizedMap``: the linear map at the call's values.
    """

    linearize: Callable[[Call], NormalizedMap]

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        (x,) = call.inputs
        share = relevance / stabilized(output.to(relevance.dtype), STABILIZER)
        return (x * self.linearize(call).transposed(share),)

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """The linear map's constant term and the stabilizer take their shares of each unit's denominator."""
        (x,) = call.inputs
        stable = stabilized(output, STABILIZER)
        share = relevance / stable
        constant = self.linearize(call)(torch.zeros_like(x))
        return Account(bias=total(share * constant), stabilizer=total(share * (stable - output)))

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """``<R / z, L (v x)>``, of the linear map L."""
        (x,), linear = call.inputs, self.linearize(call)
        return paired(relevance / stabilized(output, STABILIZER), linear(weights[0] * x) - linear(torch.zeros_like(x)))


def _unmasked(x: Tensor) -> Tensor:
    """The scores that a softmax is of: a masked position has no share, also where all of a row's are masked."""
    return torch.where(x > MASKED, x, 0.0)


def softmax_relevance(x: Tensor, s: Tensor, relevance: Tensor, dim: int) -> Tensor:
    """AttnLRP's softmax rule: ``R_i = x_i (R_s,i - s_i sum_j R_s,j)`` (arXiv 2402.05602, proposition 3.1)."""
    share = relevance - s * relevance.sum(dim, keepdim=True)
    return _unmasked(x) * share


def matmul_relevance(a: Tensor, v: Tensor, o: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """AttnLRP's rule for ``o = a @ v``: half to each factor (arXiv 2402.05602, proposition 3.3)."""
    share = relevance / stabilized(2 * o, STABILIZER)
    return a * share.matmul(v.mT), v * a.mT.matmul(share)


def softmax_remainder(x: Tensor, s: Tensor, relevance: Tensor, dim: int) -> float:
    """What the softmax rule does not hand on: ``sum_j R_s,j (1 - x_j + sum_i s_i x_i)``."""
    return total(relevance) - paired(relevance, softmax_weights(x, s, torch.ones_like(x), dim))


def softmax_weights(x: Tensor, s: Tensor, weights: Tensor, dim: int) -> Tensor:
    """What weights of the softmax rule's inputs are as weights of its outputs: ``v_j x_j - sum_i s_i v_i x_i``."""
    weighted = weights * _unmasked(x)
    return weighted - (s * weighted).sum(dim, keepdim=True)


def matmul_weights(a: Tensor, v: Tensor, o: Tensor, of_a: Tensor, of_v: Tensor) -> Tensor:
    """What weights of the matmul rule's factors are as weights of its outputs."""
    return ((of_a * a).matmul(v) + a.matmul(of_v * v)) / stabilized(2 * o, STABILIZER)


def matmul_remainder(o: Tensor, relevance: Tensor) -> float:
    """What the stabilizer of the matmul rule takes."""
    stable = stabilized(2 * o, STABILIZER)
    return total(relevance / stable * (stable - 2 * o))


class Softmax(Rule):
    """AttnLRP's first-order rule; its remainder does not conserve (arXiv 2402.05602, proposition 3.1)."""

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        x = call.args[0].to(relevance.dtype)
        return (softmax_relevance(x, output.to(relevance.dtype), relevance, call["dim"]),)

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """The remainder of the expansion."""
        return Account(definition=softmax_remainder(call.args[0], output, relevance, call["dim"]))

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """``sum_j R_s,j (v_j x_j - sum_i s_i v_i x_i)``."""
        return paired(relevance, softmax_weights(call.args[0], output, weights[0], call["dim"]))


class Bilinear(Rule):
    """Product of two tensors that both depend on the input: half to each (arXiv 2402.05602, proposition 3.3).

    ``R_a = a * J_a^T (R / (2 o))`` of any product that is linear in each factor.
    """

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        call, output = _in_precision_of(relevance, call, output)
        gradients = call.vjp(relevance / stabilized(2 * output, STABILIZER))
        return [x * gradient for x, gradient in zip(call.inputs, gradients, strict=True)]

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """The stabilizer's share."""
        return Account(stabilizer=matmul_remainder(_in_precision_of(relevance, call, output)[1], relevance))

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """``<R / (2 o), f(v a, b) + f(a, v b)>``."""
        call, output = _in_precision_of(relevance, call, output)
        (a, b), (of_a, of_b) = call.inputs, weights
        weighted = call.with_inputs([of_a * a, b]).run() + call.with_inputs([a, of_b * b]).run()
        return paired(relevance / stabilized(2 * output, STABILIZER), weighted)


def _in_precision_of(relevance: Tensor, call: Call, output: Tensor) -> tuple[Call, Tensor]:
    """A call and its value in the precision of relevance, which the model's own may be below."""
    if output.dtype == relevance.dtype:
        return call, output
    call = call.with_inputs([x.to(relevance.dtype) for x in call.inputs])
    return call, call.run()


class Attention(Rule):
    """Scaled dot-product attention, as the softmax and the two matrix products that it is made of (AttnLRP)."""

    def propagate(self, call: Call, output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        q, k, v, scores, weights = self._parts(call, relevance)
        of_weights, of_v = matmul_relevance(weights, v, output.to(relevance.dtype), relevance)
        of_scores = softmax_relevance(scores, weights, of_weights, -1)
        of_q, of_k_transposed = matmul_relevance(q, k.mT, scores, of_scores)
        found = {0: of_q, 1: of_k_transposed.mT, 2: of_v}
        return [_of_shared(found[position], x) for (position, _), x in zip(call.slots, call.inputs, strict=True)]

    def account(self, call: Call, output: Tensor, relevance: Tensor) -> Account:
        """The stabilizers of the two products, the softmax's remainder, and the half that a constant factor takes."""
        _, _, v, scores, weights = self._parts(call, relevance)
        of_weights, _ = matmul_relevance(weights, v, output, relevance)
        of_scores = softmax_relevance(scores, weights, of_weights, -1)
        of_factor = total(of_scores * scores / stabilized(2 * scores, STABILIZER))
        halves = {0: of_factor, 1: of_factor, 2: total(relevance * output / stabilized(2 * output, STABILIZER))}
        active = {position for position, _ in call.slots}
        return Account(
            bias=sum(half for position, half in halves.items() if position not in active),
            stabilizer=matmul_remainder(output, relevance) + matmul_remainder(scores, of_scores),
            definition=softmax_remainder(scores, weights, of_weights, -1),
        )

    def expected(self, call: Call, output: Tensor, relevance: Tensor, weights: Sequence[Tensor]) -> float | None:
        """Weights of queries and keys as weights of the scores, those as of the attention weights, and of the value."""
        q, k, v, scores, _ = self._parts(call, relevance)
        given = {position: of for (position, _), of in zip(call.slots, weights, strict=True)}
        of_q, of_k, of_v = (given[i] if i in given else torch.zeros_like(x) for i, x in enumerate(call.args[:3]))
        of_k, of_v = _for_each_head(call, q, of_k, of_v)
        of_scores = matmul_weights(q, k.mT, scores, of_q, of_k.mT)
        attention = _attention_weights(call, relevance.dtype)
        of_attention = softmax_weights(scores, attention, of_scores, -1)
        return paired(relevance, matmul_weights(attention, v, output, of_attention, of_v))

    @staticmethod
    def _parts(call: Call, relevance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries (scaled), keys, values, their scores (zero where they are masked), and the attention weights."""
        q, k, v = (x.to(relevance.dtype) for x in call.args[:3])
        k, v = _for_each_head(call, q, k, v)
        mask, causal = call["attn_mask"], call["is_causal"]
        scale = call.kwargs.get("scale")
        q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = q.matmul(k.mT)
        logits = scores
        if causal:
            keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            logits = logits.masked_fill(~keep, -torch.inf)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        # Of a row that is masked as a whole, PyTorch's value is zero.
        weights = torch.where((logits == -torch.inf).all(-1, keepdim=True), 0.0, logits.softmax(-1))
        return q, k, v, torch.where(logits > MASKED, scores, 0.0), weights


def _for_each_head(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What keys and values have, for each head of the queries: several may share one of theirs."""
    if not call.kwargs.get("enable_gqa"):
        return k, v
    return k.repeat_interleave(q.shape[-3] // k.shape[-3], -3), v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)


def _attention_weights(call: Call, dtype: torch.dtype) -> Tensor:
    """The attention weights as the op itself has them: its value, where the values are the rows of an identity."""
    q, k, _, *options = (x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in call.args)
    each = torch.eye(k.shape[-2], dtype=dtype, device=k.device).expand(*k.shape[:-1], -1)
    return call.target(q, k, each, *options, **call.kwargs)


def _of_shared(relevance: Tensor, x: Tensor) -> Tensor:
    """Of an operand that several heads share, one group of heads after another: the sum of what they give it."""
    if relevance.ndim > 2 and relevance.shape[-3] != x.shape[-3]:
        relevance = relevance.unflatten(-3, (x.shape[-3], -1)).sum(-3)
    return relevance.sum_to_size(x.shape)
