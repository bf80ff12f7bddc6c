"""Any way a model is written, the twin's output is the model's, and the model is left as it was."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from reference import BATCH_NORMS
from torch import nn
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer
from zennit.composites import EpsilonPlus

import fxlrp
from fxlrp.relevance.assign import assign
from fxlrp.relevance.emit import emit
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative


class Pair(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


class Net(nn.Module):
    """Base of the networks below: a convolution, what `body` makes of it, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def body(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.body(self.conv(x)), 1).flatten(1))


class InPlaceSum(Net):
    def body(self, x):
        y = self.conv2(x)
        y += x
        return self.relu(y)


class InPlaceOfAView(Net):
    """The written slice is read again through its base, and the base through another view."""

    def body(self, x):
        y = x.clone()
        view = y[:, 1:3]
        view.mul_(2.0)
        y[:, 0] = view[:, 0].relu()
        y.view(y.shape[0], -1)[:, :3] += 1.0
        return self.conv2(y)


class InPlaceSeenByASkip(Net):
    """The skip holds the tensor that an in-place ReLU overwrites: it carries the rectified values."""

    def body(self, x):
        skip = x
        y = self.conv2(self.relu(x))
        return y + skip


class ReluBeforeBatchNorm(Net):
    """Folding by the order of modules would merge the batch norm into the convolution, across the ReLU."""

    def body(self, x):
        return self.bn(F.relu(self.conv2(x)))


class SharedConvolutionOutput(Net):
    """A convolution with two readers, of which one is a batch norm."""

    def body(self, x):
        y = self.conv2(x)
        return F.relu(self.bn(y)) + y


class BatchNormTwice(Net):
    def body(self, x):
        return self.bn(self.conv2(self.relu(self.bn(x))))


class DeadCode(Net):
    def body(self, x):
        self.bn(self.conv2(x)).exp().sum()
        return x + 0.5 * torch.ones_like(x)


class Alpha(Net):
    def body(self, x):
        return torch.add(x, self.conv2(x), alpha=-2) - 0.5 * x


class Broadcast(Net):
    def body(self, x):
        return x + self.conv2(x).mean((2, 3), keepdim=True) + x.new_ones(4, 1, 1)


class SqueezeExcite(Net):
    def body(self, x):
        return x * self.conv2(F.adaptive_avg_pool2d(x, 1)).sigmoid()


class Shuffle(Net):
    def body(self, x):
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        left, right = x.chunk(2, 1)
        return torch.cat([right, self.conv2(x)[:, :2] + left], 1)


class ShiftsFlatPixels(Net):
    def body(self, x):
        y = self.conv2(x).flatten(2)
        return self.relu((y - torch.linspace(0, 1, y.shape[2])).unflatten(2, x.shape[2:]))


class PadSame(Net):
    def body(self, x):
        return self.conv2(F.pad(x, (0, 1, 2, 0)))


MODELS = list(Net.__subclasses__())


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("cls", MODELS)
def test_output_is_the_models(cls, trainable):
    model = trained(cls()).eval()
    x = torch.randn(2, 3, 6, 7).double()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    kept = x.clone()
    assert relative(twin(x).output, model(x)) < 1e-9
    assert torch.equal(x, kept)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("cls", MODELS)
def test_output_is_the_models_in_training_mode(cls):
    model = trained(cls()).train()
    other = copy.deepcopy(model)
    x = torch.randn(4, 3, 6, 7).double()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    for _ in range(2):
        assert relative(twin(x).output, other(x)) < 1e-9
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_skip_around_an_in_place_relu_is_explained_as_written_out():
    class WrittenOut(InPlaceSeenByASkip):
        def body(self, x):
            y = F.relu(x)
            return self.conv2(y) + y

    model = trained(InPlaceSeenByASkip()).eval()
    written = trained(WrittenOut()).eval()
    written.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 6, 7).double()
    ours, theirs = (fxlrp.convert(m, "epsilon_plus")(x, 1).relevance for m in (model, written))
    assert relative(ours, theirs) < 1e-12


class Reused(nn.Module):
    """One ReLU and one convolution, each called three times."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 4)

    def forward(self, x):
        for _ in range(3):
            x = self.relu(self.conv(x))
        return self.fc(x.mean((2, 3)))


class Copies(nn.Module):
    """The same network, with a module for each call."""

    def __init__(self, model):
        super().__init__()
        self.convs = nn.ModuleList(copy.deepcopy(model.conv) for _ in range(3))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.fc = copy.deepcopy(model.fc)

    def forward(self, x):
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "beta_smooth"])
def test_one_call_site_is_one_node(composite):
    model = trained(Reused()).eval()
    x = torch.randn(2, 3, 6, 6).double()
    ours, theirs = (fxlrp.convert(m, composite)(x, 1) for m in (model, Copies(model)))
    assert relative(ours.output, model(x)) < 1e-9
    assert torch.equal(ours.relevance, theirs.relevance)


def test_one_module_under_two_names():
    model = trained(Copies(trained(Reused()))).eval()
    model.convs[2] = model.convs[1]
    x = torch.randn(2, 3, 6, 6).double()
    separate = copy.deepcopy(model)
    separate.convs[2] = copy.deepcopy(model.convs[1])
    ours, theirs = (fxlrp.convert(m, "epsilon_alpha2_beta1_flat")(x, 1) for m in (model, separate))
    assert torch.equal(ours.relevance, theirs.relevance)


class Returns(Net):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        features = self.conv(x).mean((2, 3))
        return self.wrap(features, self.fc(features))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda f, y: {"features": f, "logits": y}, None),
        (lambda f, y: {"features": f, "scores": y}, "scores"),
        (lambda f, y: {"scores": y}, None),
        (lambda f, y: OrderedDict(aux=[f], scores=y), lambda value: value["scores"]),
        (lambda f, y: (y, f), None),
        (lambda f, y: [f, y], 1),
        (Pair, None),
    ],
)
def test_models_that_return_more_than_a_tensor(wrap, output):
    model = trained(Returns(wrap)).eval()
    x = torch.randn(2, 3, 6, 6).double()
    plain = trained(Returns(lambda f, y: y)).eval()
    plain.load_state_dict(model.state_dict())
    out = fxlrp.convert(model, "epsilon_plus", output=output)(x)
    expected = fxlrp.convert(plain, "epsilon_plus")(x)
    assert torch.equal(out.output, expected.output)
    assert torch.equal(out.relevance, expected.relevance)


def test_hugging_face():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.num_labels = 5
    model = trained(ResNetForImageClassification(config)).eval()
    x = torch.randn(2, 3, 32, 32).double()
    twin = fxlrp.convert(model, "epsilon_plus", record=("resnet.encoder.stages.1",))
    out = twin(x, 3)
    assert relative(out.output, model(x).logits) < 1e-9
    assert out.relevance.shape == x.shape
    assert out.recorded["resnet.encoder.stages.1"].shape == (2, 8, 8, 8)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.embed = nn.Conv2d(3, 4, 3), nn.Linear(4 + 6 + 2, 5), nn.Embedding(7, 2)

    def forward(self, image, table, index):
        x = self.conv(image).relu().mean((2, 3))
        return self.fc(torch.cat([x, table, self.embed(index)], 1))


def test_several_inputs():
    model = trained(TwoInputs()).eval()
    model.fc.bias.data.zero_()
    inputs = (torch.randn(2, 3, 6, 6).double(), torch.randn(2, 6).double(), torch.tensor([1, 5]))
    out = fxlrp.convert(model, "epsilon_plus")(inputs, 1)
    assert relative(out.output, model(*inputs)) < 1e-9
    image, table, index = out.relevance
    assert image.shape == inputs[0].shape
    assert index is None
    # LRP-0 at the last layer: what the table's columns contributed.
    assert relative(table, inputs[1] * model.fc.weight[1, 4:10]) < 1e-4


def test_batch_and_spatial_sizes_may_change():
    model = trained(InPlaceSum()).eval()
    twin = fxlrp.convert(model, "epsilon_plus")
    for shape in [(2, 3, 6, 6), (5, 3, 6, 6), (1, 3, 6, 6), (2, 3, 9, 11), (3, 3, 9, 11), (2, 3, 6, 6)]:
        x = torch.randn(shape).double()
        out = twin(x)
        assert relative(out.output, model(x)) < 1e-9
        assert out.relevance.shape == x.shape
    # One capture for any batch and these sizes, one for a single sample.
    assert len(twin._programs.all) == 2


class PadsByItsSize(Net):
    """What TensorFlow's "SAME" padding does: the amount depends on the input's size."""

    def body(self, x):
        return self.conv2(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))).relu()


def test_a_graph_that_depends_on_the_size_is_captured_for_each():
    model = trained(PadsByItsSize()).eval()
    twin = fxlrp.convert(model, "epsilon_plus")
    for size in (6, 8, 7, 9):
        x = torch.randn(2, 3, size, size).double()
        assert relative(twin(x).output, model(x)) < 1e-9


def test_a_graph_that_depends_on_the_batch_is_captured_for_each():
    """That is a guard of torch.export's: no size is fixed by it."""

    class OddsAndEvens(Net):
        def body(self, x):
            return x if x.shape[0] % 2 else x.relu()

    model = trained(OddsAndEvens()).eval()
    twin = fxlrp.convert(model, "epsilon_plus")
    for batch in (6, 3, 8, 5):
        x = torch.randn(batch, 3, 6, 6).double()
        assert relative(twin(x).output, model(x)) < 1e-9
    assert len(twin._programs.all) == 2


@pytest.mark.parametrize("trainable", [False, True])
def test_what_a_model_writes_into_its_input_is_not_written_again(trainable):
    class Doubles(Net):
        def body(self, x):
            return x

        def forward(self, x):
            return super().forward(x.mul_(2))

    model, x = trained(Doubles()).eval(), torch.randn(2, 3, 6, 6).double()
    given = x.clone()
    out = fxlrp.convert(model, "epsilon_plus", trainable=trainable)(given)
    assert torch.equal(given, x)
    assert relative(out.output, model(x)) < 1e-9


def test_dtype_and_rank_may_change():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    twin = fxlrp.convert(model, "epsilon_plus")
    for shape in [(2, 4), (2, 5, 4)]:
        x = torch.randn(shape)
        assert relative(twin(x).output, model(x)) < 1e-6
    model, x = trained(copy.deepcopy(model)), torch.randn(2, 4).double()
    twin = twin.double()
    assert twin(x).relevance.dtype == torch.float64


def test_traced_and_exported_models():
    model = trained(InPlaceSum()).eval()
    x = torch.randn(2, 3, 6, 6).double()
    expected = fxlrp.convert(model, "epsilon_plus")(x, 1)
    traced = torch.fx.symbolic_trace(model)
    exported = torch.export.export(model, (x,), strict=False)
    for other in (traced, exported):
        out = fxlrp.convert(other, "epsilon_plus").eval()(x, 1)
        assert relative(out.output, expected.output) < 1e-9
        assert relative(out.relevance, expected.relevance) < 1e-9


class OfParts(nn.Module):
    """Two layers that read one of an op's outputs."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.first, self.second = parts, nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        part, *_ = self.parts(x)
        return self.first(part) + self.second(part)


@pytest.mark.parametrize("parts", [lambda x: x.chunk(2, 1), lambda x: x.unflatten(1, (3, 2)).max(2)])
def test_a_graph_that_takes_an_output_more_than_once(parts):
    """As a pass may write it: what both readers give to it adds up."""
    model, x = trained(OfParts(parts)).eval(), torch.randn(2, 6).double()
    canonical = fxlrp.canonize(model, x)
    taken = next(node for node in canonical.graph.nodes if node.target is operator.getitem and node.args[1] == 0)
    with canonical.graph.inserting_after(taken):
        again = canonical.graph.node_copy(taken)
    next(iter(taken.users)).replace_input_with(taken, again)
    emit(canonical, assign(canonical.graph, {}, EpsilonPlus()))
    canonical.recompile()
    expected = fxlrp.explain(model, x, 1, "epsilon_plus").relevance
    _, (found,), _ = canonical(x, torch.tensor([1, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_exported_program_keeps_to_its_shapes():
    model = trained(InPlaceSum()).eval()
    twin = fxlrp.convert(torch.export.export(model, (torch.randn(2, 3, 6, 6).double(),), strict=False), "epsilon_plus")
    with pytest.raises(fxlrp.errors.InputError, match=r"made for inputs \(2, 3, 6, 6\) torch.float64: export it"):
        twin(torch.randn(4, 3, 6, 6).double())


@pytest.mark.parametrize("wrap", [lambda canonizer: canonizer, lambda canonizer: CompositeCanonizer([canonizer])])
def test_a_foreign_canonizer_is_applied_to_a_copy(wrap):
    def doubled(self, x):
        return 2 * nn.ReLU.forward(self, x)

    def attributes(name, module):
        return {"forward": doubled.__get__(module)} if isinstance(module, nn.ReLU) else None

    model = trained(Reused()).eval()
    x = torch.randn(2, 3, 6, 6).double()
    expected = model(x)
    out = fxlrp.convert(model, EpsilonPlus(canonizers=[wrap(AttributeCanonizer(attributes))]))(x)
    assert torch.equal(model(x), expected)
    changed = copy.deepcopy(model)
    AttributeCanonizer(attributes).apply(changed)
    assert relative(out.output, changed(x)) < 1e-9


def test_fold_is_exact_for_every_linear_layer():
    """(A.5), for layers with and without bias, groups, and transposed convolutions with groups."""
    layers = [
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
        (nn.Conv1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), (3, 4, 8)),
        (nn.Conv2d(4, 6, 3, padding="same", groups=2), nn.BatchNorm2d(6, affine=False), (3, 4, 5, 5)),
        (nn.Conv3d(4, 6, 2, stride=2), nn.BatchNorm3d(6), (3, 4, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (3, 4, 8)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
        (nn.ConvTranspose3d(4, 6, 2, bias=False), nn.BatchNorm3d(6), (3, 4, 3, 3, 3)),
    ]
    for layer, norm, shape in layers:
        model = trained(nn.Sequential(layer, norm, nn.ReLU())).eval()
        x = torch.randn(shape).double()
        twin = fxlrp.convert(model, "epsilon_plus")
        assert relative(twin(x).output, model(x)) < 1e-12
        assert not any("affine" in str(node.target) for node in twin.graph.nodes), layer


def test_linear_over_tokens_is_not_folded_into_a_batch_norm_over_them():
    """A linear layer's features are its last dimension, a batch norm's channels the second."""
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))).eval()
    x = torch.randn(3, 6, 4).double()
    assert relative(fxlrp.convert(model, "epsilon_plus")(x).output, model(x)) < 1e-12


def test_no_batch_norm_is_left_in_a_resnet():
    import torchvision

    model = trained(torchvision.models.resnet18(num_classes=3)).eval()
    assert any(isinstance(module, BATCH_NORMS) for module in model.modules())
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=torch.randn(1, 3, 32, 32).double())
    names = [str(node.target) for node in twin.graph.nodes]
    assert not any("affine" in name or "batch_norm" in name for name in names)
