"""A model that calls the same is not exported again, and one that calls anything else is."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import NameMapComposite
from zennit.rules import Epsilon, Gamma, Pass

import fxlrp
from fxlrp.canonizers import kept
from fxlrp.capture import rehearsed
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

SETTING = SimpleNamespace(scale=2.0)


class Small(nn.Module):
    """Two convolutions, each with its ReLU; what stands between them is `self.between`, and may be changed."""

    def __init__(self, pooled=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.one, self.two = nn.BatchNorm2d(6), nn.ReLU(), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(pooled), nn.Linear(6 * pooled**2, 4)
        self.factor = 1.0
        self.constant = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.0, 1.0])
        self.calls = 0

    def between(self, x):
        return x

    def forward(self, x):
        self.calls += 1
        x = self.between(self.one(self.first(x)))
        x = self.two(self.norm(self.second(x))) * self.factor * self.constant[:, None, None].to(x) * SETTING.scale
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return trained(Small()).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def exports(monkeypatch):
    """The classes of the models that torch.export was asked to follow, since nothing was known."""
    found, plain = [], torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda *args, **kwargs: found.append(type(args[0])) or plain(*args, **kwargs)
    )
    monkeypatch.setattr(fxlrp.capture, "_TRACES", type(fxlrp.capture._TRACES)())
    return found


def test_twins_of_one_model_share_what_was_exported(model, x, exports):
    first = fxlrp.convert(model, "epsilon_plus")(x, 1)
    again = fxlrp.convert(model, "epsilon_plus")(x, 1)
    other = fxlrp.convert(model, "epsilon_alpha2_beta1")(x, 1)
    trainable = fxlrp.convert(model, "epsilon_plus", trainable=True)
    assert len(exports) == 1
    assert torch.equal(first.relevance, again.relevance)
    assert relative(other.relevance, first.relevance) > 1e-3
    relevance = trainable(x, 1).relevance
    assert relative(relevance, first.relevance) < 1e-12
    relevance.square().sum().backward()
    assert model.first.weight.grad.abs().sum() > 0


def test_the_weights_are_each_models_own(model, x, exports):
    """Also another model of the class has the graph, with its own tensors."""
    torch.manual_seed(1)
    other = trained(Small(), seed=1).eval()
    fxlrp.convert(model, "epsilon_plus")(x, 1)
    found = fxlrp.convert(other, "epsilon_plus")(x, 1)
    assert len(exports) == 1
    torch.testing.assert_close(found.output, other(x), rtol=1e-12, atol=1e-12)
    before = found.relevance
    with torch.no_grad():
        other.first.weight.mul_(-1)
    assert relative(fxlrp.convert(other, "epsilon_plus")(x, 1).relevance, before) > 1e-3
    assert len(exports) == 1


def other_factor(model, monkeypatch):
    model.factor = 3.0


def other_constant(model, monkeypatch):
    model.constant[0] = 5.0


def other_module(model, monkeypatch):
    model.one = nn.SiLU()


def other_method(model, monkeypatch):
    monkeypatch.setattr(Small, "between", lambda self, x: x.square())


def other_global(model, monkeypatch):
    monkeypatch.setattr(SETTING, "scale", 7.0)


def other_kernel(model, monkeypatch):
    model.first = nn.Conv2d(3, 6, 5).double()


def other_width(model, monkeypatch):
    model.head = nn.Linear(6, 7).double()


def hook(model, monkeypatch):
    model.one.register_forward_hook(lambda module, args, output: output + 1)


def mode(model, monkeypatch):
    model.norm.train()


def no_gradient(model, monkeypatch):
    monkeypatch.setattr(Small, "between", lambda self, x: torch.no_grad()(torch.neg)(x))


def tied(model, monkeypatch):
    model.one, model.two = model.two, nn.Softplus()


def swapped(model, monkeypatch):
    """The same ops on the same tensors, of other modules: rules go by their names."""
    plain = Small.forward

    def forward(self, x):
        self.one, self.two = self.two, self.one
        try:
            return plain(self, x)
        finally:
            self.one, self.two = self.two, self.one

    monkeypatch.setattr(Small, "forward", forward)


CHANGES = [
    other_factor,
    other_constant,
    other_module,
    other_method,
    other_global,
    other_kernel,
    other_width,
    hook,
    mode,
    no_gradient,
    tied,
    swapped,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_calls_something_else_is_exported_again(change, model, x, exports, monkeypatch):
    """Whatever it is that changed: an attribute, code, a global value, of which nothing is in the model."""
    rules = [(["one"], Gamma(0.3)), (["first", "second", "head"], Epsilon(1e-3))]
    composite = NameMapComposite([*rules, (["two"], Pass())]) if change is not tied else "epsilon_plus"
    fxlrp.convert(model, composite)(x, 1)
    change(model, monkeypatch)
    found = fxlrp.convert(model, composite)(x, 1)
    assert len(exports) == 2
    torch.testing.assert_close(found.output, model(x), rtol=1e-12, atol=1e-12)


def test_another_size_is_not_exported_where_no_call_takes_one(model, x, exports):
    twin = fxlrp.convert(model, "epsilon_plus")
    larger = torch.randn(2, 3, 17, 13, dtype=torch.float64)
    twin(x, 1)
    found = twin(larger, 1)
    assert len(exports) == 1
    fresh = fxlrp.convert(copy.deepcopy(model), "epsilon_plus")(larger, 1)
    assert len(exports) == 2
    assert torch.equal(found.relevance, fresh.relevance)
    assert found.relevance.shape == larger.shape


class Resized(Small):
    """Its calls are the same at all sizes; spelled out, as nothing is known of one, they are not."""

    def between(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bicubic")


class BySize(Small):
    """It goes another way for large images."""

    def between(self, x):
        return x.square() if x.shape[-1] > 10 else x


class Padded(nn.Sequential):
    """The first batch norm's shift is a map, behind padding: of one size."""

    def __init__(self):
        super().__init__(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.extend([nn.Flatten(), nn.Linear(4, 4)])


@pytest.mark.parametrize("kind", [Resized, BySize, Padded])
def test_another_size_is_exported_where_it_may_be_another_graph(kind, x, exports):
    torch.manual_seed(0)
    model = trained(kind()).eval()
    twin, larger = fxlrp.convert(model, "epsilon_plus"), torch.randn(2, 3, 17, 13, dtype=torch.float64)
    twin(x, 1)
    found = twin(larger, 1)
    assert len(exports) == 2
    torch.testing.assert_close(found.output, model(larger), rtol=1e-12, atol=1e-12)


def test_attributes_that_make_no_difference_cost_no_export(model, x, exports):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    for _ in range(3):
        model.calls += 1
        twin(x, 1)
    assert len(exports) == 1


def test_a_rehearsal_leaves_no_trace(x):
    class Keeps(Small):
        def between(self, x):
            self.last, self.history = x, [*self.history, x]
            return x

    seen, model = [], trained(Keeps()).train()
    model.history = []
    model.one.register_forward_hook(lambda module, args, output: seen.append(output))
    before, running = dict(vars(model)), model.norm.running_mean.clone()
    assert rehearsed(model, (x,))
    assert seen == model.history == []
    assert vars(model) == before
    assert torch.equal(model.norm.running_mean, running)


def test_nothing_of_a_model_is_kept(x, exports):
    model = trained(Small()).eval()
    kept = [weakref.ref(model), weakref.ref(model.first.weight), weakref.ref(model.first)]
    fxlrp.convert(model, "epsilon_plus", trainable=True)(x, 1)
    assert fxlrp.capture._TRACES
    del model
    gc.collect()
    assert [each() for each in kept] == [None] * 3


def test_a_model_that_looks_at_values_is_not_told_by_a_rehearsal(x):
    class Looks(Small):
        def between(self, x):
            return x * float(x.detach().sum())

    assert rehearsed(trained(Looks()).eval(), (x,)) is None


def test_a_function_that_chooses_the_output_is_asked_each_time(model, x, exports):
    which = [0]

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            found = self.net(x)
            return [found, found * 2]

    two = Two()
    choose = lambda found: found[which[0]]
    first = fxlrp.convert(two, "epsilon_plus", output=choose)(x, 1)
    which[0] = 1
    second = fxlrp.convert(two, "epsilon_plus", output=choose)(x, 1)
    torch.testing.assert_close(second.output, 2 * first.output)


@pytest.mark.parametrize("output", [["logits"], {"logits": 0}, 1.5])
def test_an_output_that_is_none_has_its_own_error(output, model, x):
    """Also where it could be no part of what captures are found again by."""
    with pytest.raises(fxlrp.errors.CaptureError, match="output is a key, an index, a function or None, not"):
        fxlrp.convert(model, "epsilon_plus", output=output)(x, 1)


class Shuffled(nn.Module):
    """Where a batch norm's scale goes depends on the values of a buffer."""

    def __init__(self, order):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x):
        return self.layer(self.norm(x).relu()[:, self.order]).relu().mean((2, 3))


@pytest.fixture
def rewritten(monkeypatch):
    """What was canonized, since nothing was known."""
    found, plain = [], kept.canonize_graph
    monkeypatch.setattr(kept, "canonize_graph", lambda *args, **kwargs: found.append(1) or plain(*args, **kwargs))
    return found


def test_a_canonical_graph_is_that_of_all_models_that_it_does_not_tell_apart(exports, rewritten):
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    models = [trained(Shuffled(order), seed=seed).eval() for seed, order in enumerate(([1, 0, 3, 2],) * 2)]
    first, second = (fxlrp.convert(model, "epsilon_plus")(x, 1) for model in models)
    assert (len(exports), len(rewritten)) == (1, 1)
    for model, found in zip(models, (first, second), strict=True):
        torch.testing.assert_close(found.output, model(x), rtol=1e-12, atol=1e-12)
    exports.clear()
    fxlrp.capture._TRACES.clear()
    assert torch.equal(fxlrp.convert(models[1], "epsilon_plus")(x, 1).relevance, second.relevance)
    assert (len(exports), len(rewritten)) == (1, 2)


def test_a_canonical_graph_is_not_that_of_other_values_which_it_went_by(exports, rewritten):
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for number, order in enumerate(([1, 0, 3, 2], [3, 1, 2, 0]), 1):
        model = trained(Shuffled(order)).eval()
        canonical = fxlrp.convert(model, "epsilon_plus")(x, 1)
        torch.testing.assert_close(canonical.output, model(x), rtol=1e-12, atol=1e-12)
        assert len(rewritten) == number
    assert len(exports) == 1


def test_a_registered_canonizer_sees_each_graph(model, x, exports, rewritten):
    seen = []
    for times in (0, 1, 2):
        fxlrp.convert(model, "epsilon_plus")(x, 1)
        assert len(seen) == times
        rewrite = fxlrp.canonizers.register(seen.append)
        try:
            fxlrp.convert(model, "epsilon_plus")(x, 1)
        finally:
            fxlrp.canonizers.remove(rewrite)
    assert len(rewritten) == 4
