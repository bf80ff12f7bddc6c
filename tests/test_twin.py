"""What a twin does beside being right: seeds, records, moves, copies, precision."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from zennit.composites import EpsilonPlus
from zennit.rules import Epsilon

import fxlrp
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative

SHAPE = (4, 3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(), nn.MaxPool2d(2), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, x, index):
        return self.fc(x + self.embed(index))


@pytest.fixture
def model():
    return trained(Net()).eval()


@pytest.fixture
def x():
    return torch.randn(SHAPE, dtype=torch.float64)


def test_targets(model, x):
    twin = fxlrp.convert(model, "epsilon_plus_flat")
    output = model(x)
    highest = output.argmax(1)

    def by_seed(index):
        return twin(x, torch.zeros_like(output).scatter(1, index[:, None], output.gather(1, index[:, None]))).relevance

    index = torch.tensor([0, 4, 2, 2])
    for target, expected in (
        (None, by_seed(highest)),
        (2, by_seed(torch.full((4,), 2))),
        (-1, twin(x, 4).relevance),
        (index, by_seed(index)),
        (index.int(), by_seed(index)),
        (lambda y: 3 * y, twin(x, 3 * output.detach()).relevance),
    ):
        assert relative(twin(x, target).relevance, expected) < 1e-12
    assert relative(by_seed(index), by_seed(highest)) > 0.1


@pytest.mark.parametrize("composite", ["epsilon_gamma_box", "epsilon_alpha2_beta1", "guided_backprop", "beta_smooth"])
def test_many_seeds_give_what_as_many_calls_give(model, x, composite):
    model.blocks[0] = nn.Sequential(model.blocks[0], nn.ReLU())
    twin = fxlrp.convert(model, composite, record=("blocks.2",))
    seeds = torch.randn(3, 4, 5).double()
    together = twin(x, seeds)
    assert together.relevance.shape == (3, *SHAPE)
    for index, seed in enumerate(seeds):
        alone = twin(x, seed)
        assert relative(together.relevance[index], alone.relevance) < 1e-10
        assert relative(together.recorded["blocks.2"][index], alone.recorded["blocks.2"]) < 1e-10
    torch.testing.assert_close(together.output, model(x))
    assert torch.equal(twin(x, lambda output: seeds).relevance, together.relevance)


def test_many_seeds_where_an_input_has_no_relevance():
    model = Pair().double().eval()
    x, index = torch.randn(2, 3).double(), torch.tensor([4, 0])
    seeds = torch.randn(3, 2, 4).double()
    relevance, nothing = fxlrp.convert(model, "epsilon_plus")((x, index), seeds).relevance
    assert nothing is None
    for found, seed in zip(relevance, seeds, strict=True):
        assert relative(found, fxlrp.explain(model, (x, index), seed, "epsilon_plus").relevance[0]) < 1e-12


def test_many_seeds_in_training_mode_update_the_statistics_once(x):
    model = trained(Net()).train()
    other = copy.deepcopy(model)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    twin(x, lambda output: torch.stack([output, 2 * output]))
    other(x)
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(2, 3).clone()


EMPTY = {
    "pointwise": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "turned": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Turn(), nn.BatchNorm2d(4), nn.ReLU()),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU()),
    "residual": Net,
}


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
@pytest.mark.parametrize("network", EMPTY)
def test_an_empty_batch_has_empty_heatmaps(network, composite, first):
    """As gradients have; whether it is the first that the twin sees or not."""
    model = nn.Sequential(EMPTY[network](), nn.Flatten(), nn.LazyLinear(5)).double()
    x = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    model(x)
    twin = fxlrp.convert(trained(model).eval(), composite)
    for count in (first, 2 - first, 1):
        assert twin(x[:count], 0).relevance.shape == (count, *SHAPE[1:])
    assert relative(twin(x[:1], 0).relevance, twin(x, 0).relevance[:1]) < 1e-12


def test_relevance_is_linear_in_the_seed(model, x):
    twin = fxlrp.convert(model, "epsilon_alpha2_beta1_flat")
    a, b = torch.randn(2, 4, 5).double()
    together = twin(x, 2 * a - 3 * b).relevance
    assert relative(together, 2 * twin(x, a).relevance - 3 * twin(x, b).relevance) < 1e-9


def test_samples_do_not_see_each_other(model, x):
    twin = fxlrp.convert(model, "epsilon_gamma_box")
    together = twin(x, 1).relevance
    order = torch.tensor([2, 0, 3, 1])
    assert relative(twin(x[order], 1).relevance, together[order]) < 1e-12
    alone = torch.cat([twin(sample, 1).relevance for sample in x.split(1)])
    assert relative(alone, together) < 1e-12


def test_relevance_is_the_output_without_biases(x):
    """Conservation, with a network that has nowhere to lose relevance to."""
    model = trained(Net()).eval()
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.data.zero_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    for composite in ("epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat"):
        out = fxlrp.convert(model, composite)(x)
        assert relative(out.relevance.sum((1, 2, 3)), out.output.max(1).values) < 1e-3, composite


def test_epsilon_is_gradient_times_input_for_piecewise_linear_networks(model, x):
    """LRP-0 of a network of ReLUs is gradient x input (Ancona et al. 2019); sums, pools and batch norms with it."""
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Norm, Pass
    from zennit.types import Activation, AvgPool, Linear

    tiny = 1e-12
    composite = LayerMapComposite(
        [(Activation, Pass()), (Sum, Norm(tiny)), (AvgPool, Norm(tiny)), (Linear, Epsilon(tiny))]
    )
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    assert relative(fxlrp.convert(model, composite)(x, 2).relevance, x * gradient) < 1e-8


def test_record_is_the_relevance_at_a_modules_input(model, x):
    names = ("stem", "blocks.0", "blocks.0.conv", "blocks.1", "blocks.2", "head")
    out = fxlrp.convert(model, "epsilon_plus", record=names)(x, 1)
    assert set(out.recorded) == set(names)
    assert torch.equal(out.recorded["stem"], out.relevance)
    assert out.recorded["blocks.2"].shape == (4, 4, 3, 3)
    # The block's input is read by the convolution and by the skip: its relevance is both.
    assert out.recorded["blocks.0"].abs().sum() > out.recorded["blocks.0.conv"].abs().sum()
    # LRP-0 at the head, up to its stabilizer.
    features = model.blocks(torch.relu(model.stem(x))).mean((2, 3))
    share = features * model.head.weight[1]
    assert relative(out.recorded["head"], share) < 1e-3


def test_record_of_a_module_called_twice(x):
    class Twice(Net):
        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(self.blocks[0](self.blocks[0](x)).mean((2, 3)))

    twin = fxlrp.convert(trained(Twice()).eval(), "epsilon_plus", record=("blocks.0",))
    first, second = twin(x).recorded["blocks.0"]
    assert first.shape == second.shape == (4, 4, 6, 6)
    assert not torch.equal(first, second)


def test_a_twin_that_is_not_trainable_is_a_snapshot(model, x):
    twin = fxlrp.convert(model, "epsilon_plus")
    expected = twin(x)
    assert not expected.relevance.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(twin(x).relevance, expected.relevance)
    assert relative(twin(x[:1]).output, expected.output[:1]) < 1e-12


def test_a_snapshot_in_training_mode_explains_with_the_batchs_statistics(x):
    model = trained(Net()).train()
    live = fxlrp.convert(copy.deepcopy(model), "epsilon_plus", trainable=True)(x, 1)
    twin = fxlrp.convert(model, "epsilon_plus")
    before = copy.deepcopy(model.state_dict())
    assert relative(twin(x, 1).relevance, live.relevance) < 1e-12
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_without_autograd(model, context):
    twin = fxlrp.convert(model, "guided_backprop", unmatched="error")
    live = fxlrp.convert(model, "epsilon_plus", trainable=True)
    with context():
        x = torch.randn(SHAPE).double()
        inside, inside_live = twin(x, 1), live(x, 1)
        seeds = torch.randn(2, 4, 5).double()
        assert twin(x, seeds).relevance.shape == (2, *SHAPE)
    assert relative(twin(x.clone(), 1).relevance, inside.relevance) < 1e-12
    assert relative(live(x.clone(), 1).relevance, inside_live.relevance) < 1e-12


@pytest.mark.parametrize("trainable", [False, True])
def test_moves(model, x, trainable):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    exact = twin(x, 1)
    single = twin.float()(x.float(), 1)
    assert single.relevance.dtype == single.output.dtype == torch.float32
    assert relative(single.relevance.double(), exact.relevance) < 1e-4
    again = twin.to("cpu", torch.float64)(x, 1)
    assert relative(again.relevance, exact.relevance) < 1e-4
    half = twin.to(torch.bfloat16)(x.bfloat16(), 1)
    assert half.relevance.dtype == torch.bfloat16
    assert relative(half.relevance.double(), exact.relevance) < 0.15


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("composite", ["epsilon_plus", EpsilonPlus()], ids=["name", "instance"])
def test_copies_and_files(model, x, trainable, composite):
    twin = fxlrp.convert(model, composite, trainable=trainable, record=("head",))
    expected = twin(x, 1)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    for other in (copy.deepcopy(twin), torch.load(file, weights_only=False)):
        out = other(x, 1)
        assert torch.equal(out.relevance, expected.relevance)
        assert torch.equal(out.recorded["head"], expected.recorded["head"])
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            next(other.parameters()).zero_()
    assert torch.equal(twin(x, 1).relevance, expected.relevance)


def test_the_state_dict_is_the_models(model, x):
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    twin(x)
    assert {f"model.{key}" for key in model.state_dict()} == set(twin.state_dict())


@pytest.mark.parametrize("kernel", [1, 3])
def test_autocast_of_a_convolution_holds_backward_too(kernel):
    """Its own derivative, taken outside of autocast, reads what the forward call read."""
    conv = nn.Conv2d(64, 64, kernel, padding=kernel // 2)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(1, 64, 8, 8)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    exact = torch.autograd.grad(twin(x, 1).relevance.square().sum(), conv.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert model[:1](x).dtype == torch.bfloat16
        out = twin(x, 1)
    found = torch.autograd.grad(out.relevance.square().sum(), conv.weight)[0]
    assert found.dtype == torch.float32
    assert 0.95 < torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0) < 1


def test_autocast():
    model = trained(Net()).float().eval()
    x = torch.randn(SHAPE)
    exact = fxlrp.convert(model, "epsilon_plus")(x, 1)
    for trainable in (False, True):
        twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
        with torch.autocast("cpu", torch.bfloat16):
            expected, out = model(x), twin(x, 1)
        assert out.output.dtype == expected.dtype == torch.bfloat16
        assert relative(out.output.float(), expected.float()) < 0.02
        assert out.relevance.dtype == torch.float32
        assert relative(out.relevance, exact.relevance) < 0.1
        # Of what is there in all: positive and negative relevance nearly cancel.
        assert (out.relevance - exact.relevance).sum().abs() < 0.02 * exact.relevance.abs().sum()
    out.relevance.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_channels_last(model, x):
    twin = fxlrp.convert(model, "epsilon_alpha2_beta1")
    expected = twin(x, 1)
    out = twin(x.to(memory_format=torch.channels_last), 1)
    assert relative(out.relevance, expected.relevance) < 1e-12
    moved = copy.deepcopy(twin).to(memory_format=torch.channels_last)
    assert relative(moved(x.to(memory_format=torch.channels_last), 1).relevance, expected.relevance) < 1e-12


def test_dead_units_give_no_nan(model):
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box"):
        out = fxlrp.convert(model, composite)(torch.zeros(SHAPE).double())
        assert out.relevance.isfinite().all()


def test_explain_is_convert_and_a_call(model, x):
    expected = fxlrp.convert(model, "epsilon_plus")(x, 2)
    out = fxlrp.explain(model, x, 2, "epsilon_plus")
    assert isinstance(out, fxlrp.Explanation)
    assert torch.equal(out.relevance, expected.relevance)


def test_code_reads_as_the_algorithm():
    """The forward pass in its order, then a call for each op in the reverse order, on one screen."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=torch.randn(2, 1, 2, 2))
    lines = twin.code.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120
    steps = [line.split(" = ")[0].strip() for line in lines if "_epsilon(" in line or " = seed_relevance(" in line]
    assert steps == ["seed", "R__4", "R__2", "R__0_view"]
    assert "None" not in twin.code.replace("target = None", "").replace(", None, ", ", ")


def test_the_graph_module_is_an_ordinary_module(model, x):
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=x)
    output, (relevance,), recorded = twin.graph_module(x, 1)
    assert torch.equal(relevance, twin(x, 1).relevance)
    assert recorded == {}
    assert any(node.name == "seed" for node in twin.graph.nodes)
    exported = torch.export.export(twin.graph_module, (x, 1), strict=False).module()
    assert relative(exported(x, 1)[1][0], relevance) < 1e-12
    assert relative(exported(x, 1)[0], output) < 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    model = trained(torchvision.models.resnet18(num_classes=5)).eval()
    x = torch.randn(2, 3, 64, 64).double()
    twin = fxlrp.convert(model, "epsilon_plus")
    expected = twin(x, 1)
    out = twin.cuda()(x.cuda(), torch.tensor([1, 1]).cuda())
    assert relative(out.relevance.cpu(), expected.relevance) < 1e-9
