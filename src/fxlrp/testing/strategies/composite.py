"""Draws rules and composites of zennit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import hypothesis.strategies as st
import zennit.rules as zr
from torch import nn
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import BasicHook, Composite, Hook, Stabilizer
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

__all__ = ["composites", "rules"]

T = TypeVar("T")


def rules(*, conserving: bool | None = None) -> st.SearchStrategy[BasicHook]:
    """Draw rules for linear layers, with stabilizers and ``zero_params`` of all kinds.

    Parameters
    ----------
    conserving : bool or None
        True: rules that distribute all relevance, but for the shares of bias and stabilizer. False: alpha-beta rules,
        whose parts may each be empty. None: any of both.

    Returns
    -------
    SearchStrategy of zennit.core.BasicHook
        A new rule each time.
    """
    if conserving is None:
        return rules(conserving=True) | rules(conserving=False)
    e = st.sampled_from((1e-6, 1e-3)) | st.builds(Stabilizer, st.just(0.05), clip=st.just(True))
    zero = st.sampled_from((None, "bias"))
    if not conserving:
        # Of a power of two: zennit wants alpha - beta to be 1 to the last digit.
        betas = st.integers(0, 192).map(lambda n: n / 64)
        return betas.flatmap(lambda b: st.builds(zr.AlphaBeta, st.just(1 + b), st.just(b), e, zero_params=zero))
    return st.one_of(
        st.builds(zr.Epsilon, e, zero_params=zero),
        st.builds(zr.ZPlus, e, zero_params=zero),
        st.builds(zr.Gamma, st.floats(1e-4, 10.0), e, zero_params=zero),
        st.builds(zr.Flat, e),
        st.builds(zr.WSquare, e, zero_params=zero),
        st.builds(zr.ZBox, st.just(-3.0), st.just(3.0), e, zero_params=zero),
    )


def _present(entries: tuple[T | None, ...]) -> list[T]:
    return [entry for entry in entries if entry is not None]


def composites(*, conserving: bool | None = None) -> st.SearchStrategy[Composite]:
    """Draw zennit composites: maps from layer types to rules, sometimes with others for the first layer.

    Parameters
    ----------
    conserving : bool or None
        True: every type has a rule, and each conserves. False: any `rules`, activations with a rule that does not
        conserve or none, sums and average pools possibly without one (the gradient). None: any of both.

    Returns
    -------
    SearchStrategy of zennit.core.Composite
        Each a new instance, without canonizers.
    """
    if conserving is None:
        return composites(conserving=True) | composites(conserving=False)
    rule = rules(conserving=True if conserving else None)

    def entry(kind: type, *of_kind: Callable[..., Hook]) -> st.SearchStrategy[tuple[type, Hook]]:
        return st.tuples(st.just(kind), st.one_of(*(st.builds(build) for build in of_kind)))

    activation, pooled, added = entry(Activation, zr.Pass), entry(AvgPool, zr.Norm), entry(Sum, zr.Norm)
    if not conserving:
        beta = st.tuples(st.just(nn.ReLU), st.builds(zr.ReLUBetaSmooth, st.just(5.0)))
        activation |= entry(nn.ReLU, zr.ReLUGuidedBackprop, zr.ReLUDeconvNet) | beta | st.none()
        pooled, added = pooled | st.none(), added | st.none()
    linear = (st.tuples(st.just(kind), rule) for kind in (Convolution, nn.Linear))
    layers = st.tuples(activation, pooled, added, entry(BatchNorm, zr.Pass), *linear)
    layer_map = layers.map(_present)
    first = st.tuples(
        st.just(Linear),
        st.builds(zr.Flat) | st.builds(zr.ZBox, st.just(-3.0), st.just(3.0)) | st.builds(zr.WSquare),
    )
    special = st.builds(SpecialFirstLayerMapComposite, layer_map, st.tuples(first).map(list))
    return st.builds(LayerMapComposite, layer_map) | special
