"""torch.compile of twins and ISNets: one graph, the numbers of the uncompiled module, and anew where these change."""

from __future__ import annotations

import pytest
import torch
import torchvision
from reference import compile_is_broken
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from zennit.composites import LayerMapComposite
from zennit.core import Hook

import fxlrp
from fxlrp import errors
from fxlrp.isnet import variants
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

SEEDS = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "highest": None,
    "class": 3,
    "classes": [0, 3, 2, 2, 1, 0],
    "tensor of classes": torch.tensor([0, 3, 2, 2, 1, 0]),
    "seed": SEEDS[0],
    "seeds": SEEDS,
    "function": lambda output: output.softmax(1),
}


class Net(nn.Module):
    """Two branches and their sum; a batch norm; both kinds of pooling."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.fc = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn(self.conv1(x)).relu(), 2)
        return self.fc((x + self.conv2(x).relu()).mean((2, 3)))


@pytest.fixture(autouse=True)
def _from_the_beginning():
    torch.compiler.reset()


@pytest.fixture
def model():
    return trained(Net()).eval()


@pytest.fixture
def x():
    return torch.randn(6, 2, 8, 8, dtype=torch.float64)


def counted(module, backend="eager"):
    """A compiled module, of which a graph break is an error, and what counts its compilations."""
    counter = CompileCounter() if backend == "eager" else CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True), counter


def gradients(value, model):
    return [g for g in torch.autograd.grad(value, list(model.parameters()), allow_unused=True) if g is not None]


def assert_same(found, expected, model=None):
    """Two explanations; and with a model, the gradients of their relevance too."""
    assert relative(found.output, expected.output) < 1e-12
    assert relative(found.relevance, expected.relevance) < 1e-12
    if model is not None:
        values = [gradients(out.relevance.square().sum() + out.output.sum(), model) for out in (found, expected)]
        for a, b in zip(*values, strict=True):
            assert relative(a, b) < 1e-10


def test_every_target(model, x):
    """The first call captures the model while it is compiled; a second one compiles nothing."""
    twin = fxlrp.convert(model, "epsilon_plus")
    compiled, counter = counted(twin)
    for number, (name, target) in enumerate(TARGETS.items()):
        for _ in range(2):
            assert_same(compiled(x, target), twin(x, target))
            assert counter.frame_count == number + 1, name


@pytest.mark.parametrize("target", [3, SEEDS], ids=["class", "seeds"])
def test_gradients(model, x, target):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    compiled, counter = counted(twin, "aot_eager")
    for _ in range(2):
        assert_same(compiled(x, target), twin(x, target), model)
        # Weights are no constants.
        with torch.no_grad():
            model.conv1.weight.mul_(2)
    assert counter.frame_count == 1


def test_by_inductor(model, x):
    twin = fxlrp.convert(model, "epsilon_plus")
    assert_same(torch.compile(twin, fullgraph=True)(x, SEEDS), twin(x, SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("target", [7, "seeds"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_resnet_by_inductor(trainable, target):
    model = trained(torchvision.models.resnet18(num_classes=10)).eval()
    x = torch.randn(2, 3, 32, 32).double()
    target = torch.randn(4, 2, 10).double() if target == "seeds" else target
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    assert_same(torch.compile(twin, fullgraph=True)(x, target), twin(x, target), model if trainable else None)


def test_the_batch_is_free_where_the_capture_leaves_it_so(model, x):
    twin = fxlrp.convert(model, "epsilon_plus")
    compiled, counter = counted(twin)
    for number, compilations in ((6, 1), (5, 2), (4, 2), (1, 3), (3, 3)):
        assert_same(compiled(x[:number], 1), twin(x[:number], 1))
        assert counter.frame_count == compilations, number
    assert compiled(x[:0], 1).relevance.shape == twin(x[:0], 1).relevance.shape == (0, 2, 8, 8)
    assert len(twin._programs.all) == 2


def test_another_spatial_size_is_another_program():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(2), nn.AdaptiveAvgPool1d(3))
    twin = fxlrp.convert(trained(nn.Sequential(model, nn.Flatten())).eval(), "epsilon_plus")
    compiled, _ = counted(twin)
    for size in (8, 12):
        images = torch.randn(4, 2, size, size).double()
        assert_same(compiled(images, 1), twin(images, 1))


def test_another_class_is_the_same_code(model, x):
    twin = fxlrp.convert(model, "epsilon_plus")
    compiled, counter = counted(twin)
    for target, compilations in ((1, 1), (3, 2), (0, 2), (-1, 2)):
        assert_same(compiled(x, target), twin(x, target))
        assert counter.frame_count == compilations, target


def test_in_a_larger_function(model, x):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True, record=["conv2"])

    def function(x):
        found = twin((x - 0.1).relu() * x, 2)
        return found.relevance.abs().sum(1) / found.output.sum(), found.recorded["conv2"].square().sum()

    compiled, counter = counted(function, "aot_eager")
    for a, b in zip(compiled(x), function(x), strict=True):
        assert relative(a, b) < 1e-12
    for a, b in zip(gradients(compiled(x)[1], model), gradients(function(x)[1], model), strict=True):
        assert relative(a, b) < 1e-10
    assert counter.frame_count == 1


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, x, index):
        return self.fc(x + self.embed(index)).softmax(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("target", [pytest.param(1, marks=pytest.mark.slow), SEEDS])
def test_several_inputs_and_a_final_activation(target):
    inputs = torch.randn(6, 3).double(), torch.arange(6) % 5
    twin = fxlrp.convert(trained(Two()).eval(), "epsilon_plus")
    compiled, _ = counted(twin)
    found, expected = compiled(inputs, target), twin(inputs, target)
    assert relative(found.relevance[0], expected.relevance[0]) < 1e-12
    assert found.relevance[1] is expected.relevance[1] is None


class Mine(Hook):
    """A rule that reads the module that it is given."""

    def backward(self, module, grad_input, grad_output):
        return (grad_input[0] * module.weight.mean(),)


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="torch.compile cannot follow a copy of a module")
def test_a_rule_that_reads_the_module(model, x):
    twin = fxlrp.convert(model, LayerMapComposite([(nn.Conv2d, Mine())]), trainable=True)
    compiled, _ = counted(twin)
    assert_same(compiled(x, 1), twin(x, 1), model)


@pytest.mark.slow
def test_a_recurrent_layer():
    """torch.compile refuses `nn.LSTM`, and follows what it is in a capture."""
    x = torch.randn(6, 4, 3).double()
    twin = fxlrp.convert(trained(Recurrent()).eval(), "epsilon_plus")
    compiled, _ = counted(twin)
    assert_same(compiled(x, 1), twin(x, 1))


def test_an_exported_program(model, x):
    twin = fxlrp.convert(torch.export.export(model, (x,)), "epsilon_plus")
    compiled, _ = counted(twin)
    assert_same(compiled(x, 1), twin(x, 1))


def test_in_inference_mode(model, x):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    expected = twin(x, 1)
    compiled, _ = counted(twin, "aot_eager")
    with torch.inference_mode():
        assert_same(compiled(x.clone(), 1), expected)


@compile_is_broken
def test_a_mode_is_noticed(model, x):
    """Also of one module."""
    twin = fxlrp.convert(model.train(), "epsilon_plus", trainable=True)
    compiled, counter = counted(twin)
    model.bn.momentum = 0.0
    for change in (lambda: None, twin.eval, twin.train, model.bn.eval):
        change()
        assert_same(compiled(x, 1), twin(x, 1))
    assert counter.frame_count == 3


def test_a_move_is_noticed(x):
    twin = fxlrp.convert(Net().eval(), "epsilon_plus")
    compiled, _ = counted(twin)
    compiled(x.float(), 1)
    twin.double()
    assert_same(compiled(x, 1), twin(x, 1))


@compile_is_broken
def test_weights_that_are_constants_are_not_old(model, x):
    """It is an error until the twin has them anew, and leaves no gradients switched off."""
    twin = fxlrp.convert(model, "epsilon_plus")
    compiled, counter = counted(twin)
    compiled(x, 1)
    with torch.no_grad():
        next(twin.model.parameters()).mul_(2)
    with pytest.raises(errors.FxlrpError, match="written to after"):
        compiled(x, 1)
    assert torch.is_grad_enabled()
    assert_same(compiled(x, SEEDS), twin(x, SEEDS))
    assert_same(compiled(x, 1), twin(x, 1))
    assert counter.frame_count == 3


def with_others(twin, x):
    given = {f"model.{name}": p.detach() * 1.5 for name, p in twin.model.named_parameters()}
    return torch.func.functional_call(twin, given, (x, 1))


def in_training(twin, x):
    found = twin.train()(x, 1)
    twin.eval()
    return found


@pytest.mark.parametrize("function", [pytest.param(with_others, marks=pytest.mark.slow), in_training])
def test_what_the_same_code_gives_the_model_breaks_the_graph(model, x, function):
    """Other tensors, or another mode: it is right all the same."""
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    model.bn.momentum = 0.0
    assert_same(torch.compile(function, backend="eager")(twin, x), function(twin, x))
    with pytest.raises(Unsupported, match="is run as it is"):
        counted(function)[0](twin, x)


@pytest.mark.slow
def test_transforms_of_torch_func(model, x):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    of_each = torch.vmap(lambda one: twin(one[None], 1).relevance[0])
    slope = torch.func.grad(lambda x: twin(x, 1).relevance.square().sum())
    for function in (of_each, slope):
        assert relative(counted(function)[0](x), function(x)) < 1e-12


def test_a_graph_break_in_a_target(model, x):
    """Then torch.compile begins again, and meets what it captured the first time."""

    def target(output):
        torch._dynamo.graph_break()
        return output * 2

    twin = fxlrp.convert(model, "epsilon_plus")
    assert_same(torch.compile(twin, backend="eager")(x, target), twin(x, target))


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(x.cummax(1).values)


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (Bad(), torch.randn(2, 3), errors.UnsupportedOpError, "no rule for aten.cummax"),
        (Net(), torch.ones(2, 2, 8, 8).long(), errors.InputError, "torch.int64: relevance goes to"),
    ],
)
def test_errors(model, x, error, message):
    """They have their type where the graph may break, and their message where not."""
    twin = fxlrp.convert(model.eval())
    with pytest.raises(error, match=message):
        torch.compile(twin, backend="eager")(x)
    torch.compiler.reset()
    with pytest.raises(Unsupported, match=message):
        counted(twin)[0](x)


def step_of(isnet, x):
    """Maps, loss and gradients of a step of training."""
    isnet.zero_grad()
    isnet.model.bn.reset_running_stats()
    torch.manual_seed(0)
    out = isnet(x)
    masks = torch.ones(6, 8, 8)
    masks[:, :4] = 0
    loss = fxlrp.ISNetLoss()(out, torch.arange(6) % 4, masks).total
    loss.backward()
    model = isnet.model
    return [out.logits, *out.heatmaps.values(), loss, *(p.grad for p in model.parameters()), model.bn.running_var]


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        *((name, {"deep_supervision": ["conv2"]}) for name in variants.VARIANTS),
        pytest.param("original", {"chunk_size": 3, "first_layer": "zbox"}, marks=pytest.mark.slow),
        pytest.param("selective", {"flex": True}, marks=pytest.mark.slow),
        ("selective", {"recompute": True}),
    ],
)
def test_isnet(model, x, variant, options):
    isnet = fxlrp.ISNet(model.train(), variant, **options)
    compiled, counter = counted(isnet, "aot_eager")
    for _ in range(2):
        for found, expected in zip(step_of(compiled, x), step_of(isnet, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert counter.frame_count == 1


def test_isnet_by_inductor(model, x):
    isnet = fxlrp.ISNet(model.train())
    for found, expected in zip(step_of(torch.compile(isnet, fullgraph=True), x), step_of(isnet, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_isnet_with_its_loss_in_half_precision(x):
    """Statistics of halves are none: a trace and the run are to agree."""
    isnet, loss = fxlrp.ISNet(Net().train()), fxlrp.ISNetLoss()

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(isnet(x), torch.zeros(6, dtype=torch.long), torch.ones(6, 8, 8)).total

    compiled, _ = counted(step, "aot_eager")
    found = [gradients(function(x.float()), isnet.model) for function in (compiled, step)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
