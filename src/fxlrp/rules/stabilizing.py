"""Stabilizers of a rule's denominator: "vanilla", "sign" and "quadratic_mean", for zennit's ``stabilizer=``.

Bermudez Schettino, 2.1.5, items 1 to 3. Each takes its epsilon, a number or a tensor of one, which may require a
gradient, and gives what any rule of zennit's takes for its ``stabilizer`` (of `zennit.rules.Epsilon`: ``epsilon``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from zennit.core import Stabilizer

from ..errors import RuleError
from ..wording import did_you_mean

__all__ = ["QuadraticMean", "Vanilla", "sign", "stabilizers"]

Epsilon = float | Tensor


class Vanilla(Stabilizer):
    """``z + epsilon``: nothing keeps it from zero where z is negative.

    Parameters
    ----------
    epsilon : float or Tensor
        What is added.
    """

    def __init__(self, epsilon: Epsilon = 1e-6) -> None:
        super().__init__()
        self.epsilon: Epsilon = epsilon

    def __call__(self, input: Tensor) -> Tensor:
        return input + self.epsilon


class QuadraticMean(Stabilizer):
    """``z + epsilon sqrt(mean(z^2)) + 1e-9``: epsilon relative to the layer's values.

    The mean is over all of a sample's values (the source, which has one sample, takes it over all): what a sample's
    heatmap is does not depend on the others in its batch.

    Parameters
    ----------
    epsilon : float or Tensor
        The share of the quadratic mean.
    """

    def __init__(self, epsilon: Epsilon = 1e-6) -> None:
        super().__init__()
        self.epsilon: Epsilon = epsilon

    def __call__(self, input: Tensor) -> Tensor:
        of_sample = tuple(range(1, input.ndim)) or None
        return input + (self.epsilon * input.square().mean(of_sample, keepdim=True).sqrt() + 1e-9)


def sign(epsilon: Epsilon = 1e-6) -> Stabilizer:
    """``z + epsilon sign(z)``, with sign(0) = 1: zennit's own.

    Parameters
    ----------
    epsilon : float or Tensor
        How far values are moved away from zero.
    """
    found: Any = Stabilizer
    return found(epsilon=epsilon)


class _Stabilizers(Mapping[str, Callable[..., Stabilizer]]):
    """The stabilizers by name, and as attributes.

    Examples
    --------
    >>> import fxlrp
    >>> from zennit.rules import Epsilon, Gamma
    >>> rule = Gamma(0.25, stabilizer=fxlrp.rules.stabilizers["vanilla"](1e-9))
    >>> rule = Epsilon(fxlrp.rules.stabilizers.quadratic_mean(0.25))
    >>> sorted(fxlrp.rules.stabilizers)
    ['quadratic_mean', 'sign', 'vanilla']
    """

    vanilla = Vanilla
    sign = staticmethod(sign)
    quadratic_mean = QuadraticMean

    _KINDS: Mapping[str, Callable[..., Stabilizer]] = {
        "vanilla": vanilla,
        "sign": sign,
        "quadratic_mean": quadratic_mean,
    }

    def __getitem__(self, name: str) -> Callable[..., Stabilizer]:
        """The stabilizer of this name: give it an epsilon.

        Raises
        ------
        RuleError
            If there is none.
        """
        if name not in self._KINDS:
            raise RuleError(
                f"there is no stabilizer {name!r}{did_you_mean(name, self._KINDS)} The names are: "
                f"{', '.join(self._KINDS)}."
            )
        return self._KINDS[name]

    def __contains__(self, name: object) -> bool:
        return name in self._KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(self._KINDS)

    def __len__(self) -> int:
        return len(self._KINDS)


stabilizers = _Stabilizers()
"""The stabilizers by name: ``stabilizers["quadratic_mean"](0.25)``."""
