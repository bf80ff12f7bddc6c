"""What a call needs at a time: values are kept as long as they are read, or computed again; seeds go in chunks."""

from __future__ import annotations

import copy

import pytest
import torch
import zennit.rules as zr
from torch import Tensor, nn
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.types import Linear

import fxlrp
from fxlrp import errors
from fxlrp.relevance import program as programs
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative
from fxlrp.testing.memory import Peak


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return (self.norm(self.second(self.first(x).relu())) + x).relu()


def deep(blocks, width=4):
    torch.manual_seed(0)
    head = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
    return trained(nn.Sequential(*head, *(Block(width) for _ in range(blocks)), *tail)).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def composite_of(rule):
    return LayerMapComposite([*layer_map_base(), (Linear, rule)])


def peak_of(call):
    with Peak() as peak, torch.no_grad():
        call()
    return peak.bytes


VALUE = 2 * 4 * 32 * 32 * 8
"""The bytes of one of these networks' values."""


@pytest.mark.parametrize("rule", [zr.Epsilon(), zr.ZPlus(), zr.AlphaBeta(2, 1)], ids=["epsilon", "z+", "alpha-beta"])
def test_a_value_is_kept_as_long_as_it_is_read(rule, x):
    """In front of the relevance pass, the inputs of its rules; in it, a few values more, however deep the network."""
    beyond = []
    for blocks in (3, 12):
        twin = fxlrp.convert(deep(blocks), composite_of(rule), example_inputs=x)
        _, values = twin.capture(x).forward((x,))
        kept = {id(v.untyped_storage()): v.untyped_storage().nbytes() for v in values.values() if isinstance(v, Tensor)}
        beyond.append((peak_of(lambda twin=twin: twin(x, 1)) - sum(kept.values())) / VALUE)
    assert beyond[1] <= beyond[0] <= programs.VALUES


def test_recomputed_values_are_the_same_to_the_bit_and_take_a_part_of_the_memory(x):
    """Of n blocks, the square root of n: a longer network gains more."""
    shares = []
    for blocks in (4, 24):
        model = deep(blocks)
        plain = fxlrp.convert(model, composite_of(zr.ZPlus()), record=("3",), example_inputs=x)
        again = fxlrp.convert(model, composite_of(zr.ZPlus()), record=("3",), example_inputs=x, recompute=True)
        expected, found = plain(x, 1), again(x, 1)
        assert torch.equal(found.relevance, expected.relevance)
        assert torch.equal(found.recorded["3"], expected.recorded["3"])
        assert torch.equal(found.output, expected.output)
        seeds = torch.randn(3, 2, 5, dtype=torch.float64)
        assert relative(again(x, seeds).relevance, plain(x, seeds).relevance) < 1e-12
        shares.append(peak_of(lambda again=again: again(x, 1)) / peak_of(lambda plain=plain: plain(x, 1)))
    assert shares[1] < 0.4 < shares[0] < 1


@pytest.mark.parametrize("model", [nn.Identity(), nn.Linear(3, 2)], ids=["nothing", "one layer"])
def test_where_there_is_nothing_to_recompute(model):
    x, composite = torch.randn(2, 3), composite_of(zr.Epsilon()) if isinstance(model, nn.Linear) else None
    found, expected = (fxlrp.convert(model, composite, recompute=each)(x, 1) for each in (True, False))
    assert torch.equal(found.relevance, expected.relevance)


class Random(nn.Module):
    """Draws in evaluation mode, and writes to a buffer in training mode."""

    def __init__(self):
        super().__init__()
        self.body, self.tail = deep(4)[:6], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, x):
        return self.tail(self.body(nn.functional.dropout(x, 0.3)).relu())


@pytest.mark.parametrize("training", [False, True])
def test_what_is_drawn_is_drawn_once_and_what_is_written_is_written_once(training, x):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Random().double().train(training)
        twin = fxlrp.convert(model, composite_of(zr.Epsilon()), trainable=True, recompute=recompute)
        torch.manual_seed(1)
        out = twin(x, 1)
        results.append([out.output, out.relevance, *model.buffers()])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_a_gradient_goes_through_what_is_recomputed(x):
    model, found = deep(3), []
    for recompute in (False, True):
        twin = fxlrp.convert(model, composite_of(zr.ZPlus()), trainable=True, recompute=recompute)
        model.zero_grad()
        twin(x, 1).relevance.square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert max(relative(a, b) for a, b in zip(*found, strict=True)) < 1e-12


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_seeds_in_chunks(chunk_size, x):
    model, seeds = deep(2), torch.randn(7, 2, 5, dtype=torch.float64)
    expected = fxlrp.convert(model, composite_of(zr.ZPlus()), record=("2",))(x, seeds)
    found = fxlrp.convert(model, composite_of(zr.ZPlus()), record=("2",), chunk_size=chunk_size)(x, seeds)
    assert relative(found.relevance, expected.relevance) < 1e-12
    assert relative(found.recorded["2"], expected.recorded["2"]) < 1e-12


def test_the_memory_of_many_seeds_is_bounded(monkeypatch, x):
    """Beside what is returned. An input that no relevance reaches has none in any chunk."""

    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = deep(2)

        def forward(self, x, unused):
            return self.net(x)

    seeds, inputs = torch.randn(40, 2, 5, dtype=torch.float64), (x, x[:, :1].clone())
    twin = fxlrp.convert(TwoInputs(), composite_of(zr.ZPlus()), example_inputs=inputs)
    expected = twin(inputs, seeds)
    whole = peak_of(lambda: twin(inputs, seeds))
    monkeypatch.setattr(programs, "SEEDS_TAKE", programs.VALUES * VALUE * 4)
    found = twin(inputs, seeds)
    assert relative(found.relevance[0], expected.relevance[0]) < 1e-12
    assert found.relevance[1] is None
    result = found.relevance[0].nbytes
    # The result once in parts, and once as a whole.
    assert peak_of(lambda: twin(inputs, seeds)) < 2 * result + programs.VALUES * VALUE * 4 + 16 * VALUE < whole


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True, "all"])
def test_a_chunk_size_that_is_none(chunk_size):
    with pytest.raises(errors.InputError, match="chunk_size is a whole number, at least 1, or None, not"):
        fxlrp.convert(deep(1), chunk_size=chunk_size)


def test_recompute_is_a_flag():
    with pytest.raises(errors.InputError, match="recompute is True or False"):
        fxlrp.convert(deep(1), recompute="yes")


def step_of(model, x, variant, **options):
    """Loss, gradients, buffers and the memory of an ISNet's training step, on the weights and statistics of `model`."""
    isnet = fxlrp.ISNet(copy.deepcopy(model).train(), variant, deep_supervision=("6",), **options)
    isnet(x)
    isnet.model.load_state_dict(model.state_dict())
    torch.manual_seed(2)
    masks = torch.rand(len(x), *x.shape[2:], dtype=x.dtype) > 0.5
    with Peak() as peak:
        loss = fxlrp.ISNetLoss()(isnet(x), torch.arange(len(x)), masks.to(x)).total
        loss.backward()
    gradients = {name: p.grad for name, p in isnet.model.named_parameters()}
    return loss.detach(), gradients, dict(isnet.model.named_buffers()), peak.bytes


@pytest.mark.parametrize(
    ("variant", "part"), [("selective", 0.8), ("stochastic", 0.8), ("dual", 0.6), ("original", 0.8)]
)
def test_a_recomputing_isnet_takes_the_same_step_in_less_memory(variant, part, x):
    """What is drawn at random is drawn once, and running statistics are updated once."""
    model = deep(10)
    model.insert(4, nn.Dropout(0.2))
    plain, again = (step_of(model, x, variant, recompute=each) for each in (False, True))
    torch.testing.assert_close(again[0], plain[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(again[1], plain[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again[2], plain[2], rtol=0, atol=0)
    assert again[3] < part * plain[3]


def test_a_recomputing_isnet_keeps_less_the_deeper_it_is(x):
    """Of n blocks about the square root of n, but for what goes into the maps."""
    shares = []
    for blocks in (4, 24):
        plain, again = (step_of(deep(blocks), x, "selective", recompute=each)[3] for each in (False, True))
        shares.append(again / plain)
    assert shares[1] < 0.8 * shares[0]
