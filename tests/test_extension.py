"""What a user adds from outside: canonizers, ops, rules by a layer's number; each in its place, and gone again.

Guards against an extension that is not seen by a capture, runs in another order than it says, or stays behind.
"""

from __future__ import annotations

import pytest
import torch
import zennit.rules as zr
from torch import nn
from zennit.composites import LayerMapComposite, NameMapComposite
from zennit.core import Composite
from zennit.types import Activation, Linear

import fxlrp
from fxlrp import canonizers, rules, vocabulary
from fxlrp.errors import CaptureError
from fxlrp.graph import call
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

aten = torch.ops.aten


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net(activation):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), activation, nn.Flatten(), nn.Linear(64, 6), nn.ReLU()
    return trained(nn.Sequential(*layers, nn.Linear(6, 3))).eval()


@pytest.fixture
def x():
    return torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def registered():
    """Registers canonizers, and takes them out again."""
    mine = []

    def register(rewrite, **options):
        mine.append(canonizers.register(rewrite, **options))

    yield register
    for rewrite in mine:
        canonizers.remove(rewrite)


def read_clamps_as_relus(graph_module):
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.clamp.default):
        value, low, high = node.args
        if low == 0 and high is None:
            with graph_module.graph.inserting_before(node):
                relu = call(node, aten.relu.default, value, name=node.name)
            node.replace_all_uses_with(relu)


GUIDED = LayerMapComposite([(Activation, zr.ReLUGuidedBackprop()), (Linear, zr.Epsilon(0.1))])


def test_a_canonizer_of_ones_own_is_seen_by_composites(registered, x):
    clamps, relus = net(Of(lambda x: x.clamp(min=0))), net(nn.ReLU())
    expected = fxlrp.explain(relus, x, 1, GUIDED)
    assert relative(fxlrp.explain(clamps, x, 1, GUIDED).relevance, expected.relevance) > 1e-3
    registered(read_clamps_as_relus)
    found = fxlrp.explain(clamps, x, 1, GUIDED)
    assert relative(found.output, clamps(x)) < 1e-12
    assert relative(found.relevance, expected.relevance) < 1e-12
    canonizers.remove(read_clamps_as_relus)
    assert relative(fxlrp.explain(clamps, x, 1, GUIDED).relevance, expected.relevance) > 1e-3


@pytest.mark.parametrize("before", [None, "fold_affine_maps"])
def test_it_runs_where_it_says(registered, x, before):
    seen = []
    registered(lambda graph_module: seen.append({node.target for node in graph_module.graph.nodes}), before=before)
    history = fxlrp.canonize(net(nn.ReLU()), x).history
    names = [moment.rewrite for moment in history.moments]
    assert names.index("<lambda>") == (1 if before is None else names.index(before) - 1)
    assert (aten._native_batch_norm_legit_no_training.default in seen[0]) == (before is None)


def test_an_op_that_it_reads_is_captured_as_it_is(registered, x):
    seen = []

    def look(graph_module):
        seen.append(aten.glu.default in {node.target for node in graph_module.graph.nodes})

    model = trained(nn.Sequential(nn.GLU(1), nn.Flatten(), nn.Linear(36, 3)))
    registered(look)
    fxlrp.canonize(model, x)
    canonizers.remove(look)
    registered(look, reads=(aten.glu.default,))
    fxlrp.canonize(model, x)
    assert seen == [False, True]


def test_a_place_that_is_not_there():
    with pytest.raises(CaptureError, match=r"no rewrite 'fold_affine'; did you mean 'fold_affine_maps'"):
        canonizers.register(read_clamps_as_relus, before="fold_affine")
    assert read_clamps_as_relus not in canonizers.rewrites()


def test_the_history_is_what_happened(x):
    canonical = fxlrp.canonize(net(nn.ReLU()), x)
    moments = canonical.history.moments
    names = [canonizers.registry.name_of(rewrite) for rewrite in canonizers.rewrites()]
    assert [moment.rewrite for moment in moments] == ["capture", *names, "fold_constants"]
    by_name = {moment.rewrite: moment for moment in moments}
    assert "batch_norm" in by_name["capture"].code
    assert "affine(" in by_name["read_batch_norms_as_affine"].code
    assert " affine(" not in by_name["fold_affine_maps"].code
    assert moments[-1].ops == sum(node.op == "call_function" for node in canonical.graph.nodes)
    assert all(moment.seconds >= 0 for moment in moments)
    printed = str(canonical.history)
    assert printed.count("nothing changed") + printed.count("def forward") == len(moments)


def test_a_rule_by_the_layers_number(x):
    def by_number(context, name, module):
        if not isinstance(module, Linear):
            return None
        number = context["layers"] = context.get("layers", -1) + 1
        return zr.Gamma(0.25) if number < 2 else zr.Epsilon(0.1)

    named = NameMapComposite([(["0", "4"], zr.Gamma(0.25)), (["6"], zr.Epsilon(0.1))])
    model = net(nn.ReLU())
    # Twice with one composite: the numbers start anew.
    for _ in range(2):
        found = fxlrp.explain(model, x, 1, Composite(module_map=by_number)).relevance
        assert torch.equal(found, fxlrp.explain(model, x, 1, named).relevance)


@torch.library.custom_op("fxlrp_tests::softened", mutates_args=())
def softened(x: torch.Tensor, sharpness: float) -> torch.Tensor:
    return nn.functional.softplus(x, sharpness)


@softened.register_fake
def _(x, sharpness):
    return torch.empty_like(x)


def test_an_op_of_ones_own_under_a_composite(x):
    target = torch.ops.fxlrp_tests.softened.default
    vocabulary.register(
        target,
        default=lambda node, slots: rules.Pass(),
        stand_in=lambda node: nn.Softplus(),
        non_negative=lambda *_: True,
    )
    try:
        mine = fxlrp.explain(net(Of(lambda x: softened(x, 2.0))), x, 1, "epsilon_plus")
        assert vocabulary.lookup(target) is not None
    finally:
        vocabulary.remove(target)
    theirs = fxlrp.explain(net(nn.Softplus(2.0)), x, 1, "epsilon_plus")
    assert relative(mine.output, theirs.output) < 1e-12
    assert relative(mine.relevance, theirs.relevance) < 1e-12
    assert vocabulary.lookup(target) is None
    with pytest.raises(fxlrp.errors.UnsupportedOpError, match=r"fxlrp_tests\.softened"):
        fxlrp.explain(net(Of(lambda x: softened(x, 2.0))), x, 1, "epsilon_plus")


def test_an_entry_that_is_replaced_is_said_aloud():
    target = torch.ops.fxlrp_tests.softened.default
    share = lambda node, slots: rules.Pass()
    try:
        vocabulary.register(target, default=share)
        with pytest.warns(UserWarning, match=r"fxlrp_tests\.softened\.default is replaced.*replace=True"):
            vocabulary.register(target, default=share)
        vocabulary.register(target, default=share, replace=True)
    finally:
        vocabulary.remove(target)


def test_parameters_may_be_named_by_position():
    target = torch.ops.fxlrp_tests.softened.default
    try:
        entry = vocabulary.register(target, default=lambda node, slots: rules.Pass(), params={"weight": 1})
    finally:
        vocabulary.remove(target)
    assert entry.params == {"weight": "sharpness"}
