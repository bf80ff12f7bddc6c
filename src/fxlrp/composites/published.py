"""Composites of the literature that zennit has not: by the layers of VGG-16, and of any network by the same shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from zennit.canonizers import Canonizer
from zennit.core import Hook
from zennit.rules import Epsilon, Gamma, ZBox

from ..errors import CompositeError
from ..rules.stabilizing import sign
from .layers import ByLayer, by_layer

__all__ = ["decreasing_gamma", "tutorial"]

Bound = float | Tensor
Stabilizing = float | Callable[[Tensor], Tensor]

# Zennit, whose signatures have no types, takes all of these.
_BOX: Callable[..., Hook] = ZBox
_GAMMA: Callable[..., Hook] = Gamma
_EPSILON: Callable[..., Hook] = Epsilon

_VGG16 = 16
"""How many linear layers VGG-16 has: the 13 convolutions, of which the first reads pixels, and the head's three."""


def tutorial(
    low: Bound,
    high: Bound,
    gamma: float | Tensor = 0.25,
    epsilon: Stabilizing | Tensor = 0.25,
    *,
    stabilizer: Stabilizing = 1e-6,
    canonizers: list[Canonizer] | None = None,
) -> ByLayer:
    """LRP-Tutorial: the box rule for the pixels, then gamma, then epsilon, and LRP-0 for the head.

    Bermudez Schettino, table 2.4, after Montavon's tutorial: of VGG-16, gamma in layers 1-16 (of torchvision's
    ``features``, its linear layers 1-6), epsilon in 17-30 (7-12), LRP-0 from 31 on (13-15). Of any other network, the
    same shares of the linear layers in the order of execution: up to 7/16, up to 13/16, and the rest.

    Parameters
    ----------
    low, high : float or Tensor
        The lowest and highest values of the input, as of `zennit.rules.ZBox`.
    gamma : float or Tensor
        How much positive weights are favoured; at least 0.
    epsilon : float, Tensor or callable
        As of `zennit.rules.Epsilon`, or a tensor of one number. The tutorial itself, unlike the table, takes it
        relative to the layer's values:
        ``fxlrp.rules.stabilizers["quadratic_mean"](0.25)``.
    stabilizer : float or callable
        Of all other rules, LRP-0 among them.
    canonizers : list of zennit.canonizers.Canonizer or None
        For zennit's attributors; fxlrp needs none.

    Returns
    -------
    ByLayer
        A `zennit.core.Composite`. Max pooling is left to winner-take-all.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.vgg11(weights=None, num_classes=3).eval()
    >>> composite = fxlrp.composites.tutorial(low=-3.0, high=3.0)
    >>> fxlrp.check(model, composite, torch.randn(1, 3, 32, 32)).plans[0].rule
    'ZBox(-3, 3)'
    """
    rules = [
        ((0.0, 7 / _VGG16), _GAMMA(gamma, stabilizer=stabilizer)),
        ((7 / _VGG16, 13 / _VGG16), _EPSILON(sign(epsilon) if isinstance(epsilon, Tensor) else epsilon)),
        ((13 / _VGG16, 1.0), _EPSILON(stabilizer)),
    ]
    first = _BOX(low, high, stabilizer=stabilizer)
    return by_layer(rules, first=first, stabilizer=stabilizer, canonizers=canonizers)


def decreasing_gamma(
    low: Bound,
    high: Bound,
    gammas: Sequence[float | Tensor] = (0.5, 0.25, 0.1, 0.0),
    *,
    stabilizer: Stabilizing = 1e-6,
    canonizers: list[Canonizer] | None = None,
) -> ByLayer:
    """LRP-Decreasing-gamma: the box rule for the pixels, then gamma, which decreases towards the output.

    Bermudez Schettino, table 2.3, after Eberle et al. 2022: of VGG-16, the first gamma in layers 2-10 (of torchvision's
    ``features``, its linear layers 1-4), the second in 11-17 (5-7), the third in 18-24 (8-10), the last from 25 on
    (11-15; the table ends with 31, the head's first layer). Of any other network, the same shares of the linear layers
    in the order of execution: up to 5/16, 8/16, 11/16, and the rest.

    Parameters
    ----------
    low, high : float or Tensor
        As of `tutorial`.
    gammas : sequence of four floats or Tensors
        From the input to the output, each at least 0.
    stabilizer : float or callable
        Of all rules.
    canonizers : list of zennit.canonizers.Canonizer or None
        As of `tutorial`.

    Returns
    -------
    ByLayer
        A `zennit.core.Composite`. Max pooling is left to winner-take-all.

    Raises
    ------
    CompositeError
        If there are not four gammas.
    """
    ends = (0.0, 5 / _VGG16, 8 / _VGG16, 11 / _VGG16, 1.0)
    if len(gammas) != len(ends) - 1:
        raise CompositeError(
            f"decreasing_gamma has four ranges of layers, and {len(gammas)} gammas were given; for other ranges, "
            "fxlrp.composites.by_layer takes any"
        )
    rules = [((ends[i], ends[i + 1]), _GAMMA(gamma, stabilizer=stabilizer)) for i, gamma in enumerate(gammas)]
    first = _BOX(low, high, stabilizer=stabilizer)
    return by_layer(rules, first=first, stabilizer=stabilizer, canonizers=canonizers)
