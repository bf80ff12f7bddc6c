"""Properties over networks that Hypothesis draws: every pass keeps f, all relevance is accounted for."""

from __future__ import annotations

import copy
import functools
import operator
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import fx, nn
from zennit import rules as zr
from zennit.composites import LayerMapComposite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear

import fxlrp
from fxlrp import canonizers
from fxlrp.canonizers import rewrites
from fxlrp.canonizers.batch_norm import inverse_deviation
from fxlrp.canonizers.statistics import batch_norm_with_statistics
from fxlrp.capture import capture
from fxlrp.graph import drop_dead_code
from fxlrp.reading import is_known, unwrap
from fxlrp.testing import assert_conserves, composites, inputs, networks
from fxlrp.testing.assertions import relative

aten = torch.ops.aten
BATCH_NORMS = (
    batch_norm_with_statistics,
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.no_stats,
)


def examples(count):
    # Not shrunk: that takes minutes, and what is drawn is small.
    phases = [Phase.generate]
    checks = list(HealthCheck)
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, derandomize=True, phases=phases)


def cases(**options):
    """A network, and an input for it."""
    return networks(**options).flatmap(lambda model: st.tuples(st.just(model), inputs(model.input_shape)))


def name_of(run):
    return (run.func if isinstance(run, functools.partial) else run).__name__


def seeded(function, x):
    """What is dropped is the same at each call."""
    torch.manual_seed(0)
    return function(x)


def every_pass_keeps_f(model, x, changed):
    """Run the passes one by one; count which of them changed the graph."""
    captured = capture(model, (x,), keep=canonizers.reads())
    graph_module = fx.GraphModule(captured.graph_module, copy.deepcopy(captured.graph_module.graph))
    expected = seeded(graph_module, x)
    if not any(isinstance(module, nn.Dropout) for module in model.modules()):
        assert relative(expected, model(x)) < 1e-10
    for run in rewrites():
        before = graph_module.graph.python_code("self").src
        run(graph_module)
        drop_dead_code(graph_module.graph)
        graph_module.graph.lint()
        graph_module.recompile()
        assert relative(seeded(graph_module, x), expected) < 1e-10, name_of(run)
        changed[name_of(run)] += graph_module.graph.python_code("self").src != before
    # A batch norm is a part of a layer, or an affine map that has a rule; its own op gives at most the value of those.
    for node in graph_module.graph.nodes:
        if node.target in BATCH_NORMS:
            assert all(is_known(reader) or reader.target is operator.getitem for reader in node.users)


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_every_pass_keeps_f(count):
    """In evaluation and in training mode; and each pass has something to do, in some of the networks.

    But for one: these inputs have a batch (`test_ways_of_calling`).
    """
    changed = Counter()

    @examples(count)
    @given(networks(live_statistics=True), st.booleans())
    def check(model, training):
        x = torch.randn(4, *model.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        every_pass_keeps_f(model.train(training), x, changed)

    check()
    every = {*map(name_of, rewrites())} - {"give_single_samples_a_batch"}
    assert {name for name in every if changed[name] >= count / 50} == every


@pytest.mark.parametrize("count", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_conserving_composites_conserve(count):
    """No leak, and nothing is dropped or added by definition."""

    @examples(count)
    @given(cases(), composites(conserving=True), st.booleans())
    def check(case, composite, threshold):
        model, x = case
        twin = fxlrp.convert(model, composite, threshold_relu=threshold)
        assert_conserves(twin, x, 1)
        assert relative(twin(x, 1).output, model(x)) < 1e-10

    check()


@pytest.mark.parametrize("count", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_other_composites_do_not_leak(count):
    @examples(count)
    @given(cases(), composites(conserving=False))
    def check(case, composite):
        model, x = case
        assert_conserves(fxlrp.convert(model, composite, unmatched="error"), x, 1, unconserved=None)

    check()


def layer_map(rule):
    base = [(Activation, zr.Pass()), (Sum, zr.Norm()), (AvgPool, zr.Norm()), (BatchNorm, zr.Pass())]
    return LayerMapComposite([*base, (Linear, rule)])


CONSERVING = [zr.Epsilon(), zr.ZPlus(), zr.Gamma(), zr.Flat(), zr.WSquare(), zr.ZBox(-3.0, 3.0), zr.Norm()]
OTHERS = [zr.AlphaBeta(2, 1), zr.AlphaBeta(1, 0), zr.AlphaBeta(1.5, 0.5)]


@pytest.mark.parametrize("count", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_every_rule_on_every_network(count):
    """Each network under each rule, not under one that is drawn."""

    @examples(count)
    @given(cases())
    def check(case):
        model, x = case
        for rule in CONSERVING:
            assert_conserves(fxlrp.convert(model, layer_map(rule), trainable=True), x, 1)
        for rule in OTHERS:
            assert_conserves(fxlrp.convert(model, layer_map(rule), trainable=True), x, 1, unconserved=None)
        for rule in [*CONSERVING, *OTHERS] if count > 1 else ():
            twins = (fxlrp.convert(model, layer_map(rule), trainable=True, optimize=each) for each in (True, False))
            assert relative(*(twin(x, 1).relevance for twin in twins)) < 1e-10

    check()


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_samples_are_apart_and_relevance_is_linear_in_the_seed(count):
    # Guided backpropagation and deconvnet are not linear: they clip.
    @examples(count)
    @given(cases(), composites(conserving=True))
    def check(case, composite):
        model, x = case
        twin = fxlrp.convert(model, composite)
        order = torch.tensor([1, 0])
        assert torch.allclose(twin(x[order], 1).relevance, twin(x, 1).relevance[order], rtol=1e-9, atol=1e-12)
        a, b = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        of_a, of_b = twin(x, a).relevance, twin(x, b).relevance
        scale = of_a.abs().max() + of_b.abs().max()
        assert (twin(x, 2 * a - b).relevance - (2 * of_a - of_b)).abs().max() <= 1e-9 * scale

    check()


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_training_mode(count):
    """Batch statistics and their updates are the model's; the ledger closes; snapshot and shared model agree."""

    @examples(count)
    @given(networks(live_statistics=True), composites(conserving=True))
    def check(model, composite):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        other = copy.deepcopy(model)
        x = torch.randn(4, *model.input_shape).double()
        twin = fxlrp.convert(model, composite, trainable=True)
        assert_conserves(twin, x, 1)
        out = twin(x, 1)
        assert relative(out.output, other(x)) < 1e-10
        for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
            assert torch.allclose(ours, theirs)

    check()


def test_batch_norms_depend_on_nothing_else():
    """What the passes write in evaluation mode are parameter expressions: none of them reads an activation."""

    @examples(10)
    @given(cases())
    def check(case):
        model, x = case
        found = fxlrp.canonize(model, x, trainable=True)
        targets = [unwrap(node)[0] for node in found.graph.nodes if node.op == "call_function"]
        assert batch_norm_with_statistics not in targets
        statistics = [node for node in found.graph.nodes if node.target is inverse_deviation]
        assert all(operand.op == "get_attr" for node in statistics for operand in node.all_input_nodes)

    check()
