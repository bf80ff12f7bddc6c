"""Batch norms leave the graph and f stays: the papers' worked examples, every position, both forms of BN -> ReLU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from reference import directional_derivatives, seed_of
from torch import nn
from zennit.composites import BetaSmooth, DeconvNet, EpsilonPlus, GuidedBackprop, LayerMapComposite
from zennit.core import Hook
from zennit.rules import Epsilon, Pass, ZPlus
from zennit.types import Activation, Convolution

import fxlrp
from fxlrp.canonizers.report import Kept, Report
from fxlrp.marks import Fold
from fxlrp.ops.activation import thresholded_relu
from fxlrp.ops.affine import affine
from fxlrp.ops.linear import padded_convolution, with_bias_map
from fxlrp.reading import unwrap
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative, zennit_relevance

aten = torch.ops.aten


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def trained_with_odd_scales(model):
    """As training leaves it, with a scale of zero and a negative one in each batch norm."""
    model = trained(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight.data[0] = 0
            module.weight.data[1] *= -1
    return model


def canonical(model, x, **options):
    """The canonical form, of which it is sure that it is the same function."""
    found = fxlrp.canonize(model, x, **options)
    assert relative(found(x), model(x)) < 1e-12
    return found


def targets(graph_module):
    return [unwrap(node)[0] for node in graph_module.graph.nodes if node.op == "call_function"]


def test_the_worked_example_of_the_paper():
    """Pahde et al., supplement, (A.16)-(A.20), digit by digit."""
    bn = nn.BatchNorm2d(1, eps=0.0)
    bn.bias.data.fill_(1)
    conv = nn.Conv2d(1, 1, 2, padding=1, bias=False)
    conv.weight.data.fill_(1)
    model = nn.Sequential(bn, conv).double().eval()
    x = torch.tensor([[1.0, 2, 3], [2, 3, 4], [3, 4, 5]]).double()[None, None]
    assert F.pad(bn(x), (1, 1, 1, 1))[0, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 2, 3, 4, 0],
        [0, 3, 4, 5, 0],
        [0, 4, 5, 6, 0],
        [0, 0, 0, 0, 0],
    ]
    found = fxlrp.canonize(model, x)
    assert affine not in targets(found)
    (layer,) = [node for node in found.graph.nodes if node.target is with_bias_map[aten.conv2d.default]]
    weight, bias = (getattr(found, node.target) for node in layer.args[1:3])
    assert torch.equal(weight, torch.ones(1, 1, 2, 2).double())
    w_new_x = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight)
    assert w_new_x[0, 0].tolist() == [[1, 3, 5, 3], [3, 8, 12, 7], [5, 12, 16, 9], [3, 7, 9, 5]]
    assert bias[0, 0].tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]
    total = [[2, 5, 7, 4], [5, 12, 16, 9], [7, 16, 20, 11], [4, 9, 11, 6]]
    assert found(x)[0, 0].tolist() == model(x)[0, 0].tolist() == total
    assert found.report.folded == (Fold("0", "1", "BN -> linear (A.9), bias map (A.15)"),)


class RelationNetwork(nn.Module):
    """Appendix B of Pahde et al., small: conv -> ReLU -> BN blocks, pairs of pixels with coordinates and a question."""

    def __init__(self, channels=4, words=5, hidden=6):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, channels, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        self.question = nn.Embedding(7, words)
        self.pair = nn.Sequential(
            nn.Linear(2 * (channels + 2) + words, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x, word):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.relu(conv(x)))
        batch, channels, height, width = x.shape
        count = height * width
        rows = torch.linspace(-1, 1, height, dtype=x.dtype).view(height, 1).expand(height, width)
        columns = torch.linspace(-1, 1, width, dtype=x.dtype).view(1, width).expand(height, width)
        coordinates = torch.stack([rows, columns]).view(2, count).t().expand(batch, count, 2)
        pixels = x.view(batch, channels, count).transpose(1, 2)
        pixels = torch.cat([pixels, coordinates], 2)
        first = pixels.unsqueeze(1).expand(-1, count, -1, -1)
        second = pixels.unsqueeze(2).repeat(1, 1, count, 1)
        question = self.question(word).view(batch, 1, 1, -1).expand(-1, count, count, -1)
        pairs = torch.cat([first, second, question], 3).view(batch * count * count, -1)
        return self.head(self.pair(pairs).view(batch, count * count, -1).sum(1))


class ConvWithMap(nn.Conv2d):
    """A convolution whose bias is a feature map, (A.15); zennit finds its parameters under the usual names."""

    def __init__(self, conv, scale, shift, size):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        self.weight.data = conv.weight.detach() * scale.view(1, -1, 1, 1)
        self.bias.data = conv(shift.view(1, -1, 1, 1).expand(1, -1, size, size)).detach()

    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride, self.padding) + self.bias


class Asked(nn.Module):
    """The network with its question: a function of the image alone, as zennit's attributors want it."""

    def __init__(self, network, word):
        super().__init__()
        self.network, self.word = network, word

    def forward(self, x):
        return self.network(x, self.word)


def canonized_by_hand(model, size):
    """The batch norms merged as the paper says, written out."""
    model = copy.deepcopy(model).requires_grad_(False)
    scales = [norm.weight / (norm.running_var + norm.eps).sqrt() for norm in model.norms]
    shifts = [n.bias - n.running_mean * s for n, s in zip(model.norms, scales, strict=True)]
    model.convs[1] = ConvWithMap(model.convs[1], scales[0], shifts[0], size)
    layer, channels = model.pair[0], len(scales[1])
    for columns in (slice(0, channels), slice(channels + 2, 2 * channels + 2)):
        layer.bias += layer.weight[:, columns] @ shifts[1]  # (A.26)
        layer.weight[:, columns] *= scales[1]  # (A.23), (A.24)
    model.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_the_relation_network(batch):
    torch.manual_seed(1)
    model = trained_with_odd_scales(RelationNetwork())
    x, word = rand(batch, 3, 7, 7), torch.arange(batch) + 2
    found = fxlrp.canonize(model, (x, word))
    assert relative(found(x, word), model(x, word)) < 1e-12
    assert affine not in targets(found)
    assert found.report.kept == ()
    assert [(fold.batch_norm, fold.into) for fold in found.report.folded] == [
        ("norms.0", "convs.1"),
        ("norms.1", "pair.0"),
    ]
    # The weight columns of coordinates and text are the old ones, (A.25).
    (weight,) = [value for name, value in found.named_buffers() if name.startswith("pair_0_weight")]
    old = model.pair[0].weight
    scale = model.norms[1].weight / (model.norms[1].running_var + model.norms[1].eps).sqrt()
    expected = torch.cat([old[:, :4] * scale, old[:, 4:6], old[:, 6:10] * scale, old[:, 10:]], 1)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-12)
    # The heatmap is zennit's on the network that was canonized by hand.
    by_hand = Asked(canonized_by_hand(model, 4), word)
    assert relative(by_hand(x), model(x, word)) < 1e-12
    layers = [(Activation, Pass()), (Convolution, ZPlus()), (nn.Linear, Epsilon())]
    ours = fxlrp.convert(model, LayerMapComposite(layers))((x, word), 1)
    theirs = zennit_relevance(by_hand, LayerMapComposite(layers), x, seed_of(ours.output, 1))
    assert relative(ours.relevance[0], theirs) < 1e-9
    assert ours.relevance[1] is None


def convolutions():
    yield nn.Conv2d(4, 6, 3)
    yield nn.Conv2d(4, 6, 3, padding=1)
    yield nn.Conv2d(4, 4, 3, padding=2, groups=4, dilation=2)
    yield nn.Conv2d(4, 6, (2, 3), stride=(2, 3), padding=(1, 2), groups=2, bias=False)
    yield nn.Conv2d(4, 6, 2, padding="same")
    yield nn.Conv2d(4, 6, 3, padding="same", dilation=2)
    for mode in ("reflect", "replicate", "circular"):
        yield nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode=mode)
    yield nn.Conv2d(4, 6, 3, stride=4)
    yield nn.ConvTranspose2d(4, 6, 3)
    yield nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)


@pytest.mark.parametrize("layer", list(convolutions()), ids=repr)
def test_before_a_convolution(layer):
    model = trained_with_odd_scales(nn.Sequential(nn.BatchNorm2d(4), layer))
    found = canonical(model, rand(2, 4, 7, 6))
    assert affine not in targets(found)
    uniform = layer.padding in (0, (0, 0)) or layer.padding_mode != "zeros"
    assert (targets(found)[-1] in with_bias_map.values()) == (not uniform or isinstance(layer, nn.ConvTranspose2d))


@pytest.mark.parametrize(
    ("norm", "layer", "shape"),
    [
        (nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3, padding=1, padding_mode="replicate"), (4, 7)),
        (nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3, padding=2), (4, 7)),
        (nn.BatchNorm3d(4), nn.Conv3d(4, 3, 2, padding=(1, 0, 1)), (4, 3, 4, 3)),
        (nn.BatchNorm3d(4), nn.ConvTranspose3d(4, 3, 2), (4, 3, 2, 3)),
        (nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1), (4, 1, 1)),
        (nn.BatchNorm1d(4), nn.Linear(4, 3), (4,)),
        (nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3, bias=False), (4,)),
        (torchvision.ops.FrozenBatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1), (4, 5, 5)),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_of_any_kind(norm, layer, shape):
    model = trained_with_odd_scales(nn.Sequential(norm, layer))
    found = canonical(model, rand(2, *shape))
    assert not {affine, aten.mul.Tensor} & set(targets(found))


def test_a_padding_that_the_model_does_itself_is_the_convolutions():
    """Of zeros, around the image; others stay."""
    weight = rand(5, 3, 2)

    class Pads(nn.Module):
        def __init__(self, pad):
            super().__init__()
            self.pad = pad

        def forward(self, x):
            return F.conv1d(self.pad(x), weight)

    is_joined = lambda channels, pad: padded_convolution in targets(canonical(Pads(pad), rand(2, channels, 4)))
    assert is_joined(3, lambda x: F.pad(x, (1, 0)))
    assert is_joined(3, lambda x: torch.constant_pad_nd(x, (1, 0)))
    assert not is_joined(3, lambda x: F.pad(x, (1, 0), value=0.5))
    assert not is_joined(3, lambda x: torch.constant_pad_nd(x, (1, 0), 0.5))
    assert not is_joined(2, lambda x: F.pad(x, (1, 0, 0, 1)))


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_padding_of_its_own_between(value):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)

        def forward(self, x):
            return self.conv(F.pad(self.norm(x), (1, 0, 2, 0), value=value))

    found = canonical(trained_with_odd_scales(Padded()), rand(2, 4, 5, 5))
    assert affine not in targets(found)


def test_a_batch_norm_behind_a_frozen_one_behind_a_convolution():
    layers = [nn.Conv2d(3, 4, 3), torchvision.ops.FrozenBatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()]
    found = canonical(trained_with_odd_scales(nn.Sequential(*layers)), rand(2, 3, 5, 5))
    assert targets(found)[-2:] == [aten.conv2d.default, aten.relu.default]


STRUCTURE = {
    "flatten": (lambda x: x.flatten(1), 120),
    "permute, reshape": (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1), 120),
    "average pool": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True).flatten(1), 36),
    "average pool with padding": (lambda x: F.avg_pool2d(x, 3, 2, 1).flatten(1), 36),
    "adaptive average pool": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)).flatten(1), 24),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1).flatten(1), 36),
    "mean": (lambda x: x.mean((2, 3)), 4),
    "sum": (lambda x: x.sum((2, 3)), 4),
    "dropout": (lambda x: F.dropout(x.flatten(1), 0.5, training=False), 120),
    "cat with another": (lambda x: torch.cat([x, x.new_ones(x.shape)], 1).flatten(1), 240),
    "repeat, expand": (lambda x: x.repeat(1, 2, 1, 1).unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1), 480),
    "chunk, flip, roll": (lambda x: x.chunk(2, 1)[1].flip(2).roll(1, 3).flatten(1), 60),
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear").flatten(1), 480),
    "ReLU": (lambda x: F.relu(x).flatten(1), 120),
    "ReLU, pool, ReLU": (lambda x: F.relu(F.avg_pool2d(F.relu(x), 3, 2, 1)).flatten(1), 36),
}


class Between(nn.Module):
    def __init__(self, structure, features):
        super().__init__()
        self.structure = structure
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(features, 3)

    def forward(self, x):
        return self.linear(self.structure(self.norm(x)))


@pytest.mark.parametrize("name", STRUCTURE)
def test_through_structure(name):
    model = trained_with_odd_scales(Between(*STRUCTURE[name]))
    found = canonical(model, rand(2, 4, 5, 6))
    assert affine not in targets(found)
    assert found.report.kept == ()


def test_not_through_max_pooling_of_what_differs_within_a_window():
    """It does not commute with a shift of each pixel where the scale is negative."""
    shift = rand(1, 4, 5, 6)
    model = trained_with_odd_scales(Between(lambda x: F.max_pool2d(x + shift, 2).flatten(1), 24))
    canonical(model, rand(2, 4, 5, 6))


def test_a_layer_with_several_readers():
    """Of a convolution that another reads too, the batch norm is folded into a reading of its own."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return F.relu(y) * self.norm(y)

    found = canonical(trained_with_odd_scales(Two()), rand(2, 3, 5, 5))
    assert found.report == Report((Fold("norm", "conv", "linear -> BN (A.5)"),), ())


# What only moves elements between a layer and its batch norm, and where the layer's channels then are.
MOVED = {
    "tokens to the batch": (nn.Linear(3, 4), (5, 3), lambda y: y.flatten(0, 1), nn.BatchNorm1d(4)),
    "tokens behind": (nn.Linear(3, 4), (5, 3), lambda y: y.transpose(1, 2), nn.BatchNorm1d(4)),
    "tokens, as an image": (nn.Linear(3, 4), (6, 3), lambda y: y.mT.unflatten(2, (2, 3)), nn.BatchNorm2d(4)),
    "flattened": (nn.Conv2d(3, 4, 3, groups=1), (3, 4, 5), lambda y: y.flatten(2).roll(1, 2), nn.BatchNorm1d(4)),
    "shuffled": (nn.Conv2d(3, 6, 1), (3, 4, 4), lambda y: F.channel_shuffle(y, 2), nn.BatchNorm2d(6)),
    "half of it": (nn.ConvTranspose1d(2, 6, 2, groups=2), (2, 4), lambda y: y[:, 1:4], nn.BatchNorm1d(3)),
}
MIXED = {
    "one of several": (nn.Conv2d(3, 8, 1), (3, 2, 2), lambda y: F.pixel_shuffle(y, 2), nn.BatchNorm2d(2)),
    "one to several": (nn.Conv2d(3, 2, 1), (3, 4, 4), lambda y: y.repeat(1, 2, 1, 1), nn.BatchNorm2d(4)),
    "scrambled": (nn.Linear(3, 4), (5, 3), lambda y: y.reshape(-1, 4, 5), nn.BatchNorm1d(4)),
    "padded": (nn.Linear(3, 4), (5, 3), lambda y: F.pad(y.mT, (0, 1), value=1.0), nn.BatchNorm1d(4)),
    "of other dimensions": (nn.Linear(3, 4), (5, 3), lambda y: y, nn.BatchNorm1d(5)),
}


class Moved(nn.Module):
    def __init__(self, layer, move, norm):
        super().__init__()
        self.layer, self.move, self.norm = layer, move, norm

    def forward(self, x):
        return self.norm(self.move(self.layer(x))).sigmoid()


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_into_the_layer_in_front_of_what_moves_elements(name, mode):
    """Relevance is LRP-epsilon's of the merged layer: ``x J^T (R / z)``, with the statistics constant."""
    torch.manual_seed(5)
    layer, shape, move, norm = copy.deepcopy(MOVED[name])
    model = trained_with_odd_scales(Moved(layer, move, norm)).train(mode == "train")
    x = rand(3, *shape).requires_grad_()
    constant = copy.deepcopy(norm).eval()
    if mode == "train":
        y = move(layer(x)).detach().movedim(1, 0).flatten(1)
        constant.running_mean, constant.running_var = y.mean(1), y.var(1, correction=0)
    merged = constant(move(layer(x)))
    above = merged.sigmoid()
    expected = x * torch.autograd.grad(merged, x, above / (merged + 0.1 * merged.sign()))[0]

    composite = LayerMapComposite([(Activation, Pass()), (type(layer), Epsilon(0.1))])
    twin: Any = fxlrp.convert(copy.deepcopy(model), composite, trainable=True)
    out = twin(x, lambda output: output)
    assert relative(out.output, above) < 1e-12
    torch.testing.assert_close(out.relevance, expected, rtol=1e-9, atol=1e-12)
    model(x)
    torch.testing.assert_close(twin.model.norm.running_var, model.norm.running_var)
    assert fxlrp.canonize(model, x).report == Report((Fold("norm", "layer", "linear -> BN (A.5)"),), ())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_through_what_moves_elements(mode):
    torch.manual_seed(5)
    layer, shape, move, norm = copy.deepcopy(MOVED["half of it"])
    model = trained(Moved(layer, move, norm)).train(mode == "train")
    composite = LayerMapComposite([(Activation, Pass()), (type(layer), Epsilon(0.1))])
    twin = fxlrp.convert(model, composite, trainable=True)
    x = rand(3, *shape)
    loss = lambda: twin(x, lambda output: output).relevance.square().sum()
    for automatic, numeric in directional_derivatives(loss, list(model.parameters())):
        assert automatic == pytest.approx(numeric, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", MIXED)
def test_not_where_channels_are_not_the_layers(name):
    layer, shape, move, norm = copy.deepcopy(MIXED[name])
    found = canonical(trained_with_odd_scales(Moved(layer, move, norm)), rand(3, *shape))
    assert found.report.folded == ()
    assert [kept.batch_norm for kept in found.report.kept] == ["norm"]


def test_others_read_what_lies_between():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.linear(x).mT
            return y.relu() + self.norm(y)

    found = canonical(trained_with_odd_scales(Two()), rand(3, 5, 3))
    assert found.report == Report((Fold("norm", "linear", "linear -> BN (A.5)"),), ())
    assert targets(found).count(aten.linear.default) == 2
    assert [node.target for node in found.graph.nodes].count(aten.linear.default) == 1


class Readers(nn.Module):
    """A batch norm that a convolution, a sum and a gate read; another between two sums."""

    def __init__(self):
        super().__init__()
        self.norm, self.between = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.norm(x)
        z = self.between(self.conv(y) + y)
        return (z + y.sigmoid()).mean((2, 3))


def test_several_readers_and_what_is_kept():
    model = trained_with_odd_scales(Readers())
    found = canonical(model, rand(2, 4, 5, 5))
    assert found.report.folded == (Fold("norm", "conv", "BN -> linear (A.9), bias map (A.15)"),)
    norm, between = found.report.kept
    assert norm.batch_norm == "norm"
    assert [why.split(" in ")[0] for why in norm.why] == ["aten.add.Tensor", "aten.sigmoid.default"]
    assert "test_canonization.py" in norm.why[0]
    assert isinstance(between, Kept)
    assert between.batch_norm == "between"
    text = str(found.report)
    assert "kept" in text
    assert "bias map (A.15)" in text
    # None is left without a rule.
    twin = fxlrp.convert(model, "epsilon_plus")
    assert fxlrp.audit(twin, rand(2, 4, 5, 5)).leak < 1e-12


READ_BY = {
    "the model's output": lambda x, y: y,
    "aten.sigmoid.default in the model's own forward": lambda x, y: torch.cat([y.flip(1), y], 1).sigmoid(),
    "aten.linear.default in the model's own forward": lambda x, y: F.linear(y.mT, x[0, :1, :4].sigmoid()),
    "aten.conv1d.default in the model's own forward": lambda x, y: F.conv1d(x, y.mT),
}


@pytest.mark.parametrize("reader", READ_BY)
def test_the_report_names_what_keeps_a_batch_norm(reader):
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return READ_BY[reader](x, self.norm(x))

    model, x = trained(Read()).eval(), rand(3, 4, 4)
    (kept,) = canonical(model, x).report.kept
    (why,) = kept.why
    assert kept.batch_norm == "norm"
    assert why.startswith(reader)
    assert why.endswith(", whose weight is no constant") == (reader.split(".")[1:2] in (["linear"], ["conv1d"]))


def test_the_report_of_a_model_without_batch_norms():
    assert str(fxlrp.canonize(nn.Linear(3, 2), torch.randn(2, 3)).report) == "no batch norms"


def test_what_reads_a_shape_alone_keeps_no_batch_norm():
    class Shape(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)

        def forward(self, x):
            y = self.norm(x)
            return self.conv(y) * torch.ones_like(y)[:, :1, 1:-1, 1:-1]

    found = canonical(trained_with_odd_scales(Shape()), rand(2, 4, 5, 5))
    assert affine not in targets(found)


def test_the_thresholded_relu():
    """Where the scale is positive it is max(x, z), where it is negative min(x, z), at the zero z of the batch norm."""
    norm = nn.BatchNorm2d(3)
    model = trained(nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))).eval()
    norm.weight.data.copy_(torch.tensor([0.8, -0.6, 0.0]))
    x = rand(2, 3, 5, 5)
    found = canonical(model, x)
    (node,) = [node for node in found.graph.nodes if node.target is thresholded_relu]
    low, high = (getattr(found, argument.target).flatten() for argument in node.args[1:])
    zero = norm.running_mean - norm.bias * (norm.running_var + norm.eps).sqrt() / norm.weight
    inf = float("inf")
    torch.testing.assert_close(low[:2], torch.stack([zero[0], torch.tensor(-inf).double()]))
    torch.testing.assert_close(high[:2], torch.stack([torch.tensor(inf).double(), zero[1]]))
    assert (low[2], high[2]) == (-inf, inf)
    kept = canonical(model, x, threshold_relu=False)
    assert targets(kept).count(affine) == 1
    assert kept.report.kept[0].batch_norm == "0"


class Halved(Hook):
    """A user's rule for ReLUs that goes by their values."""

    def forward(self, module, input, output):
        self.stored_tensors["output"] = output

    def backward(self, module, grad_input, grad_output):
        return (grad_output[0] * self.stored_tensors["output"] / 2,)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    "composite", [GuidedBackprop, DeconvNet, BetaSmooth, lambda: LayerMapComposite([(nn.ReLU, Halved())])]
)
def test_a_rule_for_relus_sees_the_relu_and_not_what_clips_in_its_place(composite, trainable):
    head = [nn.Flatten(), nn.Linear(20, 6)]
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    model, x = trained_with_odd_scales(nn.Sequential(*body, *head)), rand(2, 3, 10, 10)
    assert (model[3].weight < 0).any()
    seed = seed_of(model(x), 2)
    found = fxlrp.convert(model, composite(), trainable=trainable)(x, seed).relevance
    assert relative(found, zennit_relevance(model, composite(), x, seed)) < 1e-12


@pytest.mark.parametrize("scale", [1e-30, -1e-30, 1e-9])
def test_a_scale_that_is_nearly_zero(scale):
    """Pruned channels: the threshold would be at infinity."""
    model: Any = trained(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))).eval()
    model[0].weight.data.fill_(scale)
    canonical(model, rand(2, 3, 5, 5))
    found = fxlrp.convert(model, "epsilon_plus")(rand(2, 3, 5, 5), lambda out: out)
    assert found.relevance.isfinite().all()


@pytest.mark.parametrize("threshold", [True, False])
def test_densenet(threshold):
    """Both forms keep f, leave no batch norm without a rule, and conserve."""
    model = trained_with_odd_scales(torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3))
    x = rand(2, 3, 32, 32)
    twin = fxlrp.convert(model, "epsilon_plus", threshold_relu=threshold)
    ledger = fxlrp.audit(twin, x, 1)
    assert relative(twin(x, 1).output, model(x)) < 1e-12
    assert ledger.leak < 1e-9
    assert ledger.unconserved < 1e-9
    kept = [row for row in ledger.rows if row.op == "affine"]
    # norm0 and each layer's norm2 lie behind a convolution; norm1, the transition's and norm5 do not.
    assert len(kept) == (0 if threshold else 4 + 1 + 1)


@pytest.mark.parametrize(
    "read", [lambda m, x: m.linear(x - 1.5), lambda m, x: (m.linear(x).mT - m.shift).mT], ids=["in front", "behind"]
)
def test_a_size_that_the_input_chooses(read):
    """Which tokens are read depends on their values, and so does how many these are."""

    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.shift = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 1))

        def forward(self, x):
            return read(self, x[:, (x[0, :, 0] > 0).nonzero().squeeze(1)]).relu().sum(1)

    model = trained(Chosen()).eval()
    canonical(model, rand(2, 6, 3))
    twin = fxlrp.convert(model, "epsilon_plus")
    for x in (rand(2, 6, 3), rand(2, 6, 3).abs()):
        assert relative(twin(x).output, model(x)) < 1e-12
        assert fxlrp.audit(twin, x).leak < 1e-12


def test_another_size_has_another_map():
    """The bias map belongs to a size: a capture of another one is not taken for the same."""
    model = trained_with_odd_scales(
        nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    twin = fxlrp.convert(model, "epsilon_plus")
    for size in (6, 9, 6):
        x = rand(2, 3, size, size)
        assert relative(twin(x, 0).output, model(x)) < 1e-12
    assert len(twin._programs.all) == 2


class Everywhere(nn.Module):
    """Batch norms in front of layers: before padding, behind a ReLU, through a concatenation, between two others."""

    def __init__(self):
        super().__init__()
        self.first, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right, self.conv2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(8, 4, 3, padding=1)
        self.last, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.conv1(self.first(x)))
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        x = F.relu(self.conv2(x))
        return self.linear(self.last(x.mean((2, 3))))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_trainable(mode):
    """The model's own parameters, batch statistics and their updates in training mode; the same relevance in both."""
    torch.manual_seed(3)
    model = trained(Everywhere()).train(mode == "train")
    other = copy.deepcopy(model)
    x = rand(4, 3, 6, 6)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    out = twin(x, 1)
    assert relative(out.output, other(x)) < 1e-12
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert affine not in [unwrap(written.assignment.node)[0] for written in twin._programs.all[0].passes[0].written]
    snapshot = fxlrp.convert(model, "epsilon_plus")(x, 1)
    torch.testing.assert_close(out.relevance, snapshot.relevance, rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(out.relevance.square().sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_through_absorbed_batch_norms(mode):
    """Of the relevance, with respect to every parameter, against finite differences."""
    torch.manual_seed(4)
    model = trained(Everywhere()).train(mode == "train")
    x = rand(3, 3, 5, 5)
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    weights = rand(3, 3, 5, 5)
    parameters = list(model.parameters())

    def function():
        return (twin(x, 1).relevance * weights).sum()

    for automatic, numeric in directional_derivatives(function, parameters):
        assert automatic == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_heatmap_of_the_absorbed_form_is_that_of_the_merged_layer():
    """BN -> linear under epsilon: relevance of the layer (A.9), by hand."""
    model = trained_with_odd_scales(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)))
    x = rand(2, 5)
    norm, linear = model
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = linear.weight * scale
    z = model(x)
    seed = torch.zeros_like(z)
    seed[:, 2] = z[:, 2]
    expected = x * ((seed / (z + 1e-6 * z.sign())) @ weight)
    found = fxlrp.convert(model, EpsilonPlus())(x, 2).relevance
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
