"""How a rule is evaluated by products of inputs and weights: what is computed, read and shared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from .sided import NONE, Sided

__all__ = ["Plan", "Product", "Share", "SidedBranch", "Transposed", "Value"]


@dataclass(frozen=True)
class SidedBranch:
    """A branch of a rule, and what the reducer multiplies it with."""

    input: Sided
    weight: Sided
    bias: Sided
    factor: float


@dataclass(frozen=True)
class Product:
    """The op's value at modified inputs, weight and bias."""

    input: Sided
    weight: Sided
    bias: Sided


@dataclass(frozen=True)
class Value:
    """What the mapper reads: a multiple of the forward pass's value, multiples of products, a bias beside."""

    forward: float
    factors: tuple[float, ...]
    bias: Sided


@dataclass(frozen=True)
class Transposed:
    """What a sum of gradients is taken back to by a modified weight.

    Attributes
    ----------
    weight : Sided
        How it is modified.
    gradients : tuple of (int, float)
        Branches, and the factors of their gradients.
    """

    weight: Sided
    gradients: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Share:
    """A part of the relevance: modified inputs times what is taken back, the sum of one or more."""

    input: Sided
    parts: tuple[Transposed, ...]


@dataclass(frozen=True)
class Plan:
    """How a rule is evaluated.

    Attributes
    ----------
    products : tuple of Product
        What is computed beside the forward pass.
    values : dict of int to Value
        The sums of branches that the mapper reads, each at the place of its first branch; it reads no others.
    shares : tuple of Share
        What the relevance is the sum of.
    """

    products: tuple[Product, ...]
    values: dict[int, Value]
    shares: tuple[Share, ...]

    @property
    def reads_forward(self) -> bool:
        """Whether the forward pass's value is needed."""
        return any(value.forward for value in self.values.values())

    def of_outputs(self, read: Collection[int]) -> Plan:
        """The same, where the mapper reads no others than these."""
        values = {i: value for i, value in self.values.items() if i in read}
        used = [k for k in range(len(self.products)) if any(value.factors[k] for value in values.values())]
        keep = lambda every: tuple(every[k] for k in used)
        values = {i: replace(value, factors=keep(value.factors)) for i, value in values.items()}
        return replace(self, products=keep(self.products), values=values)

    @property
    def inputs(self) -> set[Sided]:
        """How inputs are modified."""
        return {part.input for part in (*self.products, *self.shares)}

    @property
    def weights(self) -> set[Sided]:
        """How weights are modified."""
        return {part.weight for share in self.shares for part in share.parts} | {p.weight for p in self.products}

    @property
    def biases(self) -> set[Sided]:
        """How biases are modified, where they are not left out."""
        return {part.bias for part in (*self.products, *self.values.values())} - {NONE}

    @property
    def gradients(self) -> list[int]:
        """The branches whose gradients are read."""
        return sorted({i for share in self.shares for part in share.parts for i, _ in part.gradients})
