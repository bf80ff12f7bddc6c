"""The variants of ISNet: which maps each one makes of an image, by which rules and from which seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import BasicHook, Composite, Hook, Stabilizer, stabilize
from zennit.layer import Sum
from zennit.rules import Epsilon, NoMod, Norm, Pass, ZBox, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Linear

from ..composites import Bounds
from ..errors import VariantError
from ..recipe import Method
from ..wording import did_you_mean

__all__ = ["VARIANTS", "Settings", "Variant", "variant_of"]


@dataclass(frozen=True)
class Settings:
    """What the variants have in common; the parameters of `fxlrp.ISNet`."""

    epsilon: float
    first_layer: str | None
    bounds: Bounds
    eta: str
    mu: float
    flex: bool


@dataclass(frozen=True)
class Variant:
    """The maps that are made of an image.

    Attributes
    ----------
    methods : sequence of Method
        One for each kind of map.
    seeds : callable
        Logits (B, C) to the seed of each method, (B, C), or (K, B, C) for K maps.
    several : bool
        Whether there are several maps for each image.
    """

    methods: Sequence[Method]
    seeds: Callable[[Tensor], Sequence[Tensor]]
    several: bool = False


def epsilon_composite(settings: Settings) -> Composite:
    """LRP-epsilon at every linear layer, pool and sum, (2), (33), (34); LRP-zB in the first layer, if asked for."""
    epsilon = settings.epsilon
    return _composite(settings, Epsilon(epsilon), Norm(epsilon))


def positive_composite(settings: Settings) -> Composite:
    """LRP-z+ at every linear layer (4), pool and sum (35), (36); LRP-zB in the first layer, if asked for."""
    return _composite(settings, ZPlus(settings.epsilon), PositiveSum(settings.epsilon))


def _composite(settings: Settings, linear: Hook, total: Hook) -> Composite:
    layers = [(Activation, Pass()), (Sum, total), (AvgPool, total), (BatchNorm, linear), (Linear, linear)]
    if settings.first_layer is None:
        return LayerMapComposite(layers)
    low, high = settings.bounds
    return SpecialFirstLayerMapComposite(layers, [(Linear, ZBox(low, high, settings.epsilon))])


class PositiveSum(BasicHook):
    """LRP-z+ of a sum or a mean: shared in proportion to the positive part of each term, (35), (36).

    zennit's `ZPlus` needs weights; those of a sum are one.

    Parameters
    ----------
    epsilon : float
        The stabilizer.
    """

    def __init__(self, epsilon: float) -> None:
        stabilizer = Stabilizer.ensure(epsilon)
        super().__init__(
            input_modifiers=[lambda input: input.clamp(min=0)],
            param_modifiers=[NoMod()],
            output_modifiers=[lambda output: output],
            gradient_mapper=lambda out_grad, outputs: out_grad / stabilizer(outputs[0]),
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )


class JointPositive(ZPlus):
    """LRP-z+ of the output layer, whose relevance is the sum of positive contributions to each logit, (5).

    The seed is one for each logit that takes part.

    Parameters
    ----------
    epsilon : float
        The stabilizer.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__(epsilon)
        share = self.gradient_mapper
        self.gradient_mapper = lambda out_grad, outputs: share(out_grad * sum(outputs), outputs)


class TimesInput(BasicHook):
    """LRP-0 of the output layer, from the explained quantity's gradient with respect to the logits, (26), (30).

    ``R_j = a_j sum_k w_jk dq/dz_k``: nothing is divided by a logit.
    """

    def __init__(self) -> None:
        super().__init__(
            input_modifiers=[lambda input: input],
            param_modifiers=[NoMod()],
            output_modifiers=[lambda output: output],
            gradient_mapper=lambda out_grad, outputs: out_grad,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )


class AttenuatedStep(BasicHook):
    """LRP-Flex's rule of a ReLU: the gradient, times ``a / (a + epsilon)`` of its value, (16), (23), (25).

    Parameters
    ----------
    epsilon : float
        Positive.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__(
            input_modifiers=[lambda input: input],
            param_modifiers=[NoMod()],
            output_modifiers=[lambda output: output],
            gradient_mapper=lambda out_grad, outputs: out_grad * outputs[0] / (outputs[0] + epsilon),
            reducer=lambda inputs, gradients: gradients[0],
        )


def bounded_eta_gradient(logits: Tensor, mu: float) -> Tensor:
    """The gradient of ``ln(P_c + mu) - ln(1 - P_c + mu)`` (32) with respect to the logits; c is the lowest logit.

    Parameters
    ----------
    logits : Tensor
        Shape (B, C).
    mu : float
        Bounds the quantity; positive.
    """
    lowest = logits.argmin(1, keepdim=True)
    p = logits.softmax(1)
    p_c = p.gather(1, lowest)
    slope = 1 / (p_c + mu) + 1 / (1 - p_c + mu)
    return slope * p_c * (_one_hot(logits, lowest) - p)


def pairwise_eta_gradient(logits: Tensor, mu: float, epsilon: float) -> Tensor:
    """The gradient of eta (6) with respect to the logits by (8)-(10), with their stabilizers; c is the lowest logit.

    Parameters
    ----------
    logits : Tensor
        Shape (B, C).
    mu : float
        In (9).
    epsilon : float
        In (8).
    """
    lowest = logits.argmin(1, keepdim=True)
    own = _one_hot(logits, lowest)
    difference = logits.gather(1, lowest) - logits
    # exp(-z_cc') overflows: both sides of the fraction of (9) are divided by the largest of them.
    largest = (-difference).amax(1, keepdim=True)
    weights = torch.exp(-difference - largest) * (1 - own)
    relevance = difference * weights / (weights.sum(1, keepdim=True) + mu * torch.exp(-largest))
    share = relevance / stabilize(difference, epsilon)
    return own * share.sum(1, keepdim=True) - share


def softmax_gradient(logits: Tensor) -> Tensor:
    """The gradient of the winning class's probability with respect to the logits (appendix D.1)."""
    p = logits.softmax(1)
    winner = logits.argmax(1, keepdim=True)
    return p.gather(1, winner) * (_one_hot(logits, winner) - p)


def stochastic_classes(logits: Tensor) -> Tensor:
    """For each image, the class of the highest logit with probability 1/2, else any other, each alike (section 2.3.3).

    Returns
    -------
    Tensor
        Classes, shape (B, 1).
    """
    highest = logits.argmax(1, keepdim=True)
    other = (highest + torch.randint_like(highest, 1, logits.shape[1])) % logits.shape[1]
    return torch.where(torch.rand(highest.shape, device=logits.device) < 0.5, highest, other)


def _one_hot(logits: Tensor, classes: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter(1, classes, 1.0)


def _of_logits(settings: Settings) -> tuple[Method, Callable[[Tensor], Tensor]]:
    """How logits are explained: the method, and what makes its seed of weights of the logits."""
    if settings.flex:
        return Method(LayerMapComposite([(nn.ReLU, AttenuatedStep(settings.epsilon))]), gradient=True), torch.ones_like
    return Method(epsilon_composite(settings)), lambda logits: logits


def _original(settings: Settings) -> Variant:
    method, value = _of_logits(settings)
    return Variant([method], lambda logits: [torch.diag_embed(value(logits)).movedim(1, 0)], several=True)


def _stochastic(settings: Settings) -> Variant:
    method, value = _of_logits(settings)
    return Variant([method], lambda logits: [_one_hot(logits, stochastic_classes(logits)) * value(logits)])


def _selective(settings: Settings) -> Variant:
    method, value = _of_logits(settings)
    if settings.eta == "bounded":
        return Variant([method], lambda logits: [bounded_eta_gradient(logits, settings.mu) * value(logits)])
    gradient = lambda logits: [pairwise_eta_gradient(logits, settings.mu, settings.epsilon)]
    return Variant([method if settings.flex else Method(method.composite, last=TimesInput())], gradient)


def _dual(settings: Settings) -> Variant:
    if settings.flex:
        raise VariantError("LRP-Flex has no z+ rule, and so no dual ISNet: leave out flex=True (section 2.4)")
    positive = Method(positive_composite(settings), last=JointPositive(settings.epsilon))
    seeds = lambda logits: [torch.ones_like(logits), logits]
    return Variant([positive, Method(epsilon_composite(settings))], seeds, several=True)


def _gradient_input(settings: Settings) -> Variant:
    return Variant([Method(None, gradient=True)], lambda logits: [softmax_gradient(logits)])


VARIANTS: dict[str, Callable[[Settings], Variant]] = {
    "original": _original,
    "stochastic": _stochastic,
    "selective": _selective,
    "dual": _dual,
    "gradient_input": _gradient_input,
}


def variant_of(name: str, settings: Settings) -> Variant:
    """The variant of that name.

    Raises
    ------
    VariantError
        If there is none, or a setting is not one of those that it can have.
    """
    if name not in VARIANTS:
        hint = did_you_mean(name, VARIANTS)
        raise VariantError(f"there is no ISNet variant {name!r}{hint} The variants are: {', '.join(VARIANTS)}.")
    if settings.first_layer not in (None, "zbox"):
        raise VariantError(f"first_layer is None or 'zbox', not {settings.first_layer!r}")
    if settings.eta not in ("bounded", "pairwise"):
        raise VariantError(f"eta is 'bounded' (eq. 32) or 'pairwise' (eq. 8 to 10), not {settings.eta!r}")
    if not settings.epsilon > 0:
        raise VariantError(f"epsilon is {settings.epsilon}: it stabilizes quotients, and must be positive (0.01)")
    if settings.first_layer is not None and (settings.flex or name == "gradient_input"):
        raise VariantError("the first layer's box rule goes with LRP-epsilon and z+, not with gradients: leave one out")
    return VARIANTS[name](settings)
