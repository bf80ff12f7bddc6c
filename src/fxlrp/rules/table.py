"""fxlrp's policy on one page: what stands for each op before a composite, and its rule where the composite has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import fx, nn
from zennit.layer import Sum
from zennit.rules import Norm

from ..ops import Slot
from ..ops.activation import thresholded_relu
from ..ops.affine import affine, constant_map
from ..ops.arithmetic import LINEAR_MAPS
from ..ops.attention import ATTENTION, PRODUCTS, SOFTMAX
from ..ops.linear import LINEAR, TRANSPOSED, layer_of
from ..ops.linear import OPS as LAYERS
from ..ops.normalization import group_norm_map, layer_norm_map
from ..ops.pooling import REDUCTIONS, max_pooled
from ..ops.structure import OPS as STRUCTURE
from ..ops.structure import added, dropped, flipped
from ..reading import argument, unwrap
from ..signature import Target
from . import stand_ins
from .attnlrp import STABILIZER, Attention, Bilinear, Gate, Half, Linearized, Softmax
from .base import Rule
from .gates import is_bounded
from .plain import Gradient, Pass, Transpose
from .stand_ins import StandIn, of, output_size, window
from .zennit.basic import BasicRule

__all__ = ["Policy", "forget", "policy_of", "set_policy", "stand_in_of"]

aten = torch.ops.aten

Slots = Mapping[Slot, fx.Node]
Default = Callable[[fx.Node, Slots], Rule | None]


class Policy(NamedTuple):
    """What is done with an op.

    Attributes
    ----------
    default : Rule or callable
        The rule for a node that the composite leaves without one, or ``(node, slots) -> Rule or None``: given the
        operands that relevance can flow to, by their slots; None if there is no rule for these.
    stand_in : callable
        ``(node) -> nn.Module or None``: the module that stands for a functional call of the op before a composite.
    """

    default: Rule | Default
    stand_in: StandIn = lambda node: None

    def rule(self, node: fx.Node, slots: Slots) -> Rule | None:
        """The rule for a node, given its operands."""
        return self.default if isinstance(self.default, Rule) else self.default(node, slots)


GRADIENT, TRANSPOSE, PASS = Gradient(), Transpose(), Pass()
PROPORTIONAL = BasicRule(Norm(stabilizer=STABILIZER))
"""Of a linear map: relevance goes to each input in proportion to its contribution (LRP-0, stabilized)."""


def _same_shape(node: fx.Node, operand: fx.Node) -> bool:
    return node.meta["val"].shape == operand.meta["val"].shape


_EXPANSIONS = (aten.expand.default, aten.expand_as.default, aten._to_copy.default, aten.to.dtype)


def _before_expansion(factor: fx.Node) -> fx.Node:
    """A factor as it is before it is expanded by the model itself, which a product would do as well."""
    while factor.target in _EXPANSIONS:
        factor = factor.all_input_nodes[0]
    return factor


def _product(node: fx.Node, slots: Slots) -> Rule:
    """A factor that does not depend on the input scales; a gate gates (Pahde et al.); two activations share."""
    if len(slots) == 1:
        (operand,) = slots.values()
        return PASS if _same_shape(node, operand) else PROPORTIONAL
    factors = list(slots.values())
    gates = [is_bounded(factor) for factor in factors]
    if gates[0] == gates[1]:
        gates = [not _same_shape(node, _before_expansion(factor)) for factor in factors]
    return Gate(signal=gates.index(False)) if gates[0] != gates[1] else Half()


def _quotient(node: fx.Node, slots: Slots) -> Rule | None:
    """What is divided by a value is normalized with it: as a normalization's deviation, that value is a constant."""
    if set(slots) == {(0, None)}:
        return _product(node, slots)
    return Gate(signal=0) if (0, None) in slots else None


def _matrix_product(node: fx.Node, slots: Slots) -> Rule | None:
    factors = len(argument(node, "tensors")) if unwrap(node)[0] is aten.einsum.default else 2
    if len(slots) == 1:
        return PROPORTIONAL
    return Bilinear() if factors == len(slots) == 2 else None


def _mean(node: fx.Node, slots: Slots) -> Rule:
    """Over space, it is a pool; any other is a linear map."""
    return PROPORTIONAL if stand_ins.mean(node) is None else GRADIENT


def _vector_norm(node: fx.Node, slots: Slots) -> Rule | None:
    """Homogeneous of degree one: by Euler's theorem x times the gradient sums up to the value, as of a linear map.

    Not so the number of elements that are not zero, as which a norm of order 0 counts.
    """
    return PROPORTIONAL if argument(node, "ord") != 0 else None


def _layer(target: Target) -> StandIn:
    layer = layer_of(target)
    if layer in LINEAR:
        return stand_ins.linear
    return stand_ins.transposed_convolution if layer in TRANSPOSED else stand_ins.convolution


_SUMS = (
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    added,
    aten.scatter_add.default,
)

_POLICIES: dict[Target, Policy] = {
    # What zennit can name gets the plain gradient where the composite leaves it, exactly as in zennit: layers with
    # weights, activations, pools, batch norms, sums. (A sum of a value and a constant is one, too: that is a bias.)
    **{target: Policy(GRADIENT, _layer(target)) for target in LAYERS},
    affine: Policy(GRADIENT, stand_ins.batch_norm),
    **dict.fromkeys(_SUMS, Policy(GRADIENT, of(Sum))),
    aten.sum.dim_IntList: Policy(GRADIENT, stand_ins.sum_of),
    aten.relu.default: Policy(GRADIENT, of(nn.ReLU)),
    aten.relu6.default: Policy(GRADIENT, of(nn.ReLU6)),
    aten.hardtanh.default: Policy(GRADIENT, of(nn.Hardtanh)),
    aten.sigmoid.default: Policy(GRADIENT, of(nn.Sigmoid)),
    aten.hardsigmoid.default: Policy(GRADIENT, of(nn.Hardsigmoid)),
    aten.softplus.default: Policy(GRADIENT, of(nn.Softplus)),
    aten.tanh.default: Policy(GRADIENT, of(nn.Tanh)),
    aten.silu.default: Policy(GRADIENT, of(nn.SiLU)),
    aten.hardswish.default: Policy(GRADIENT, of(nn.Hardswish)),
    aten.gelu.default: Policy(GRADIENT, of(nn.GELU)),
    aten.leaky_relu.default: Policy(GRADIENT, of(nn.LeakyReLU)),
    aten.elu.default: Policy(GRADIENT, of(nn.ELU)),
    aten.selu.default: Policy(GRADIENT, of(nn.SELU)),
    aten.celu.default: Policy(GRADIENT, of(nn.CELU)),
    aten.log_sigmoid.default: Policy(GRADIENT, of(nn.LogSigmoid)),
    aten.hardshrink.default: Policy(GRADIENT, of(nn.Hardshrink)),
    aten.softshrink.default: Policy(GRADIENT, of(nn.Softshrink)),
    aten.threshold.default: Policy(GRADIENT, lambda node: nn.Threshold(0.0, 0.0)),
    aten.prelu.default: Policy(GRADIENT, lambda node: nn.PReLU(device="meta")),
    **dict.fromkeys(
        (aten.max_pool1d.default, aten.max_pool1d_with_indices.default), Policy(GRADIENT, window(nn.MaxPool1d))
    ),
    **dict.fromkeys(
        (aten.max_pool2d.default, aten.max_pool2d_with_indices.default), Policy(GRADIENT, window(nn.MaxPool2d))
    ),
    **dict.fromkeys(
        (aten.max_pool3d.default, aten.max_pool3d_with_indices.default), Policy(GRADIENT, window(nn.MaxPool3d))
    ),
    max_pooled: Policy(GRADIENT, stand_ins.max_pooled),
    aten.adaptive_max_pool1d.default: Policy(GRADIENT, output_size(nn.AdaptiveMaxPool1d)),
    aten.adaptive_max_pool2d.default: Policy(GRADIENT, output_size(nn.AdaptiveMaxPool2d)),
    aten.adaptive_max_pool3d.default: Policy(GRADIENT, output_size(nn.AdaptiveMaxPool3d)),
    aten.avg_pool1d.default: Policy(GRADIENT, window(nn.AvgPool1d)),
    aten.avg_pool2d.default: Policy(GRADIENT, window(nn.AvgPool2d)),
    aten.avg_pool3d.default: Policy(GRADIENT, window(nn.AvgPool3d)),
    aten.adaptive_avg_pool1d.default: Policy(GRADIENT, output_size(nn.AdaptiveAvgPool1d)),
    aten.adaptive_avg_pool2d.default: Policy(GRADIENT, output_size(nn.AdaptiveAvgPool2d)),
    aten.adaptive_avg_pool3d.default: Policy(GRADIENT, output_size(nn.AdaptiveAvgPool3d)),
    aten.mean.dim: Policy(_mean, stand_ins.mean),
    # The winner takes all: the gradient of a maximum.
    **dict.fromkeys((*REDUCTIONS, aten.maximum.default, aten.minimum.default), Policy(GRADIENT)),
    # What only moves values about: relevance goes back to where they came from.
    **{target: Policy(TRANSPOSE) for target, op in STRUCTURE.items() if op.structural},
    thresholded_relu: Policy(TRANSPOSE, of(nn.ReLU)),
    # Elementwise and one-to-one, and without a word in zennit 0.5: relevance passes, as through activations with one.
    aten.mish.default: Policy(PASS, of(nn.Mish)),
    **dict.fromkeys(
        (
            aten.clamp.default,
            aten.clamp.Tensor,
            aten.clamp_min.default,
            aten.clamp_max.default,
            aten.abs.default,
            aten.exp.default,
            aten.sqrt.default,
            aten.rsqrt.default,
            aten.square.default,
            aten.erf.default,
            aten.log.default,
            aten.log1p.default,
            aten.pow.Tensor_Scalar,
            aten.reciprocal.default,
            aten.sin.default,
            aten.cos.default,
            aten.neg.default,
        ),
        Policy(PASS),
    ),
    # What it subtracts is the same for all classes, and held constant.
    aten.log_softmax.int: Policy(PASS),
    # With its deviation held, a factor for each value.
    aten.rms_norm.default: Policy(PASS),
    # Stops the gradients of training, which is no reason for relevance to stop: the value is the input's.
    aten.detach.default: Policy(PASS),
    # A scale that is constant, and zero where a unit was dropped; signs that belong to the model.
    dropped: Policy(PASS),
    flipped: Policy(PASS),
    # A frozen batch norm, but for its name: zennit leaves one without a rule to the gradient, which does not conserve.
    constant_map: Policy(PASS, stand_ins.batch_norm),
    # Products and quotients: a gate is a constant (the signal takes it all), two activations share.
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), Policy(_product)),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), Policy(_quotient)),
    # Linear maps share in proportion to what each input contributes.
    **dict.fromkeys(LINEAR_MAPS, Policy(PROPORTIONAL)),
    aten.linalg_vector_norm.default: Policy(_vector_norm),
    # Normalizations over a sample's own values, with the deviation constant (AttnLRP).
    aten.layer_norm.default: Policy(Linearized(layer_norm_map)),
    aten.group_norm.default: Policy(Linearized(group_norm_map)),
    # Attention and its parts (AttnLRP, arXiv 2402.05602, propositions 3.1 and 3.3).
    **dict.fromkeys(SOFTMAX, Policy(Softmax())),
    **dict.fromkeys((*PRODUCTS, aten.einsum.default), Policy(_matrix_product)),
    ATTENTION: Policy(Attention()),
}


def policy_of(target: Target) -> Policy | None:
    """What is done with an op, None if nothing is laid down."""
    return _POLICIES.get(target)


def set_policy(target: Target, policy: Policy) -> None:
    """Lay down what is done with an op, in place of what may be."""
    _POLICIES[target] = policy


def forget(target: Target) -> None:
    """Take back what was laid down for an op."""
    _POLICIES.pop(target, None)


def stand_in_of(node: fx.Node) -> nn.Module | None:
    """The module that stands for a node before a composite, None if there is none."""
    policy = policy_of(unwrap(node)[0])
    return None if policy is None else policy.stand_in(node)
