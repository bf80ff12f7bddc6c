"""Whatever way a model may be called, its twin may be called in: devices, batches, strides, dtypes, threads, functions.

Guards against what holds on ordinary calls alone: each way is held against the model itself, and its heatmap against
that of an ordinary call.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fxlrp
from fxlrp.testing import trained
from fxlrp.testing.assertions import relative


class Residual(nn.Module):
    """What `body` makes of an image is added to it."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


def network(spread: int = 9) -> nn.Module:
    """Batch norms to fold and to absorb, sums, pools, for images of 8 x 8."""
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Residual(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * spread, 5),
        )
    ).eval()


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def elsewhere():
    """A default device other than the CPU, which cannot give numbers away."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(
    ("composite", "trainable"), [("epsilon_plus", True), ("epsilon_alpha2_beta1_flat", False), (None, False)]
)
def test_the_default_device_is_another_one(elsewhere, composite, trainable):
    with torch.device("cpu"):
        model, x, seeds = network(), images(), torch.randn(3, 2, 5).double()
        calls = (x, [1, 4]), (x, seeds)
        expected = [fxlrp.convert(model, composite, trainable=trainable)(*call) for call in calls]
    for call, there in zip(calls, expected, strict=True):
        out = fxlrp.convert(model, composite, trainable=trainable)(*call)
        assert torch.equal(out.output, there.output)
        assert torch.equal(out.relevance, there.relevance)


def test_tools_do_not_mind_the_default_device(elsewhere):
    with torch.device("cpu"):
        model, x = network(), images()
        there = fxlrp.ISNet(model, variant="original")(x)
    assert fxlrp.audit(fxlrp.convert(model, "epsilon_plus"), x, 1).leak < 1e-9
    assert not fxlrp.check(model, "epsilon_plus", x).unsupported
    assert relative(fxlrp.canonize(model, x)(x), model(x)) < 1e-12
    assert torch.equal(fxlrp.ISNet(model, variant="original")(x).heatmaps["input"], there.heatmaps["input"])


@pytest.mark.parametrize("trainable", [False, True])
def test_an_empty_batch(trainable):
    model, x = network(), images()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable, record=("6",))
    for target in (None, 1, [], torch.zeros(0, 5).double()):
        out = twin(x[:0], target)
        assert out.output.shape == (0, 5)
        assert out.relevance.shape == (0, 3, 8, 8)
        assert out.recorded["6"].shape == (0, 36)
    assert twin(x[:0], torch.zeros(4, 0, 5).double()).relevance.shape == (4, 0, 3, 8, 8)
    assert relative(twin(x, 1).relevance, fxlrp.explain(model, x, 1, "epsilon_plus").relevance) < 1e-12
    assert len(twin._programs.all) == 1


def test_an_empty_batch_of_means():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    assert fxlrp.explain(Means().double(), images()[:0], 1, "epsilon_plus").relevance.shape == (0, 3, 8, 8)


def test_an_empty_batch_beside_other_ways():
    model, x = network(), images()
    assert fxlrp.ISNet(model)(x[:0]).heatmaps["input"].shape == (0, 3, 8, 8)
    with pytest.raises(fxlrp.errors.InputError, match="at least one sample"):
        fxlrp.audit(fxlrp.convert(model, "epsilon_plus"), x[:0])
    exported = torch.export.export(model, (x,), strict=False)
    with pytest.raises(fxlrp.errors.InputError, match="a fixed number of samples"):
        fxlrp.explain(exported, x[:0], 1, "epsilon_plus")


class Flattened(nn.Module):
    """Two convolutions, whose value `flatten` makes a row of for each image."""

    def __init__(self, flatten):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
        self.head, self.flatten = nn.Linear(32, 5), flatten

    def forward(self, x):
        return self.head(self.flatten(self.front(x)))


FLATTENED = {
    "flatten": lambda y: y.flatten(1),
    "reshape": lambda y: y.reshape(y.shape[0], -1),
    "contiguous": lambda y: y.contiguous().view(y.shape[0], -1),
    "tokens": lambda y: y.flatten(2).transpose(1, 2).reshape(y.shape[0], -1),
    "shuffle": lambda y: y.unflatten(1, (2, 1)).transpose(1, 2).flatten(1),
}


def strided(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same images, laid out in memory in other ways."""
    return {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "every other": x.repeat_interleave(2, -1)[..., ::2],
        "transposed": x.mT.contiguous().mT,
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
    }


@pytest.mark.parametrize(("first", "trainable"), [("contiguous", True), ("channels last", False)])
@pytest.mark.parametrize("flatten", FLATTENED.values(), ids=FLATTENED)
def test_inputs_of_any_strides(flatten, first, trainable):
    model, x, seeds = trained(Flattened(flatten)).eval(), images(3), torch.randn(2, 3, 5).double()
    there = fxlrp.convert(model, "epsilon_plus")
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable, example_inputs=strided(x)[first])
    for count in (3, 2):
        expected, several = there(x[:count], 1), there(x[:count], seeds[:, :count])
        for other in strided(x[:count]).values():
            out = twin(other, 1)
            assert relative(out.output, model(x[:count])) < 1e-12
            assert relative(out.relevance, expected.relevance) < 1e-12
            assert relative(twin(other, seeds[:, :count]).relevance, several.relevance) < 1e-12
    assert len(twin._programs.all) == 1


class InMixedPrecision(nn.Module):
    """A model that runs its own layers in bfloat16, if it is to; the parameters stay in single precision."""

    def __init__(self, mixed, *layers):
        super().__init__()
        self.layers, self.mixed = nn.Sequential(*layers), mixed

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return self.layers(x).float()


MIXED = {
    "folded": lambda: (
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)),
        *(nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    ),
    "absorbed": lambda: (
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    ),
    "thresholded": lambda: (
        *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        *(Residual(nn.BatchNorm2d(4), nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.AdaptiveAvgPool2d(1)),
    ),
    "in front": lambda: (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
}


@pytest.mark.parametrize("kind", ["snapshot", "trainable", "training"])
@pytest.mark.parametrize("name", MIXED)
def test_batch_norms_in_a_models_own_mixed_precision(name, kind):
    layers = (*MIXED[name](), nn.Flatten(), nn.Linear(4, 5))
    mixed, single = (trained(InMixedPrecision(m, *layers)).float().train(kind == "training") for m in (True, False))
    x = images(4).float()
    out = fxlrp.convert(mixed, "epsilon_plus", trainable=kind != "snapshot")(x, 1)
    exact = fxlrp.convert(single, "epsilon_plus")(x, 1)
    assert torch.equal(out.output, mixed(x))
    assert relative(out.output, single(x)) > 1e-4
    # A rounding of bfloat16 is 0.4 %; there are about ten, one behind the other, and other winners of max pools.
    assert (out.relevance - exact.relevance).norm() < 0.1 * exact.relevance.norm()
    if kind != "snapshot":
        out.relevance.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in mixed.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_batch_norm_is_not_moved_through_a_cast_to_other_numbers(dtype):
    """``scale * int(x) + shift`` is not ``int(scale * x + shift)``."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.conv, self.skip = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return (self.conv((3 * self.bn(x)).to(dtype).double()) + self.skip(x)).mean((2, 3))

    model, x = trained(Counts()).eval(), images()
    assert relative(fxlrp.explain(model, x, 1, "epsilon_plus").output, model(x)) < 1e-12


class Written(nn.Module):
    """A convolution's value, in a copy of which `write` overwrites a part, between two layers."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.write = write

    def forward(self, x):
        h = self.first(x).relu()
        return self.head(self.second(self.write(h)).relu().mean((2, 3)))


def in_place(write):
    def written(h):
        h = h.clone()
        write(h)
        return h

    return written


def _constant(h):
    h[:, 0] = 0.3


def _zero_rows(h):
    h[..., ::2, 1:4] = 0


def _channel(h):
    h[:, :1] = h[:, 1:2]


def _scaled(h):
    h[:, 1:] *= 2


def _several(h):
    h[:, [0, 2]] = h[:, [3, 1]]


def _masked(h):
    h[h < 0.2] = 0


def _diagonal(h):
    h.diagonal(0, 2, 3).mul_(3)


def _added(h):
    h.index_add_(1, torch.tensor([2, 0]), h[:, 1::2].clone())


def _scattered(h, rows=3):
    h.scatter_(1, torch.full_like(h[:, :1, :3], 2, dtype=torch.long), h[:, 1:2, :rows].clone())


def _transposed(h):
    h.mT[:, 2].copy_(h[:, 1])


_cat = lambda *parts: torch.cat(parts, 1)
WRITES = {
    "constant": (_constant, lambda h: F.pad(h[:, 1:], (0, 0, 0, 0, 1, 0), value=0.3)),
    "zero rows": (
        _zero_rows,
        lambda h: h * (1 - ((torch.arange(6) % 2 == 0)[:, None] & torch.tensor([0, 1, 1, 1, 0, 0]).bool()).double()),
    ),
    "channel": (_channel, lambda h: _cat(h[:, 1:2], h[:, 1:])),
    "scaled": (_scaled, lambda h: h * torch.tensor([1.0, 2, 2, 2]).double().view(4, 1, 1)),
    "several": (_several, lambda h: _cat(h[:, 3:], h[:, 1:2], h[:, 1:2], h[:, 3:])),
    "masked": (_masked, lambda h: h * (h >= 0.2).double()),
    "diagonal": (_diagonal, lambda h: h * (1 + 2 * torch.eye(6).double())),
    "added": (_added, lambda h: h + _cat(h[:, 3:], 0 * h[:, :1], h[:, 1:2], 0 * h[:, :1])),
    "scattered": (_scattered, lambda h: _cat(h[:, :2], torch.cat([h[:, 1:2, :3], h[:, 2:3, 3:]], 2), h[:, 3:])),
    # What PyTorch cannot take gradients of.
    "scattered in part": (
        lambda h: _scattered(h, 6),
        lambda h: _cat(h[:, :2], torch.cat([h[:, 1:2, :3], h[:, 2:3, 3:]], 2), h[:, 3:]),
    ),
    "transposed": (_transposed, lambda h: _cat(h[:, :2], h[:, 1:2].mT, h[:, 3:])),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_into_a_part_of_a_value(name):
    """One seed and several, and the gradient of an original ISNet, against the same function without a write."""
    write, spelled = WRITES[name]
    model, other = (trained(Written(f)).eval() for f in (in_place(write), spelled))
    other.load_state_dict(model.state_dict())
    x, seeds = images(), torch.randn(3, 2, 5).double()
    twin, there = (fxlrp.convert(m, "epsilon_plus") for m in (model, other))
    assert relative(twin(x, 1).output, model(x)) < 1e-12
    assert relative(model(x), other(x)) < 1e-12
    for target in (1, seeds):
        assert relative(twin(x, target).relevance, there(x, target).relevance) < 1e-10
    assert fxlrp.audit(twin, x, 1).leak < 1e-9
    gradients = []
    for each in (model, other) if name != "scattered in part" else ():
        fxlrp.ISNet(each, variant="original")(x).heatmaps["input"].square().sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative(ours, theirs) < 1e-9


def test_what_a_mask_is_made_of_is_no_operand():
    gated, clipped = (
        trained(Written(f)).eval() for f in (lambda h: h * (h > 0.2).double(), lambda h: F.threshold(h, 0.2, 0.0))
    )
    clipped.load_state_dict(gated.state_dict())
    x = images()
    assert relative(*(fxlrp.explain(m, x, 1, "epsilon_plus").relevance for m in (gated, clipped))) < 1e-12


class Attentive(nn.Module):
    """Patches that attend to each other."""

    def __init__(self, attend, dropout=0.0):
        super().__init__()
        self.patches, self.heads, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 12), nn.Linear(4, 5)
        self.module = nn.MultiheadAttention(4, 2, batch_first=True, dropout=dropout)
        self.attend = attend

    def forward(self, x):
        return self.head(self.attend(self, self.patches(x).flatten(2).mT).mean(1))


def sdpa(**options):
    def attend(self, t):
        q, k, v = self.heads(t).unflatten(-1, (3, 2, 2)).movedim(2, 0).transpose(2, 3).unbind(0)
        if options.get("enable_gqa"):
            k, v = k[:, :1], v[:, :1]
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)

    return attend


ATTENTIONS = {
    "sdpa": sdpa(),
    "causal": sdpa(is_causal=True, scale=0.4),
    "mask": sdpa(attn_mask=torch.tensor([[0.0, -1.0, 2.0, -torch.inf]]).double()),
    "shared": sdpa(enable_gqa=True),
    "module": lambda self, t: self.module(t, t, t, need_weights=False)[0],
    "module with weights": lambda self, t: self.module(t, t, t)[0],
    "class token": lambda self, t: self.module(t[:, :1], t, t, need_weights=False)[0],
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradient_times_input_through_attention(name, training):
    """The maps and the gradient of a loss of theirs are autograd's, by the kernel that has second derivatives."""
    model, x = trained(Attentive(ATTENTIONS[name])).train(training), images()
    maps = fxlrp.ISNet(model, variant="gradient_input")(x).heatmaps["input"]
    with sdpa_kernel(SDPBackend.MATH):
        at = x.clone().requires_grad_()
        winning = model(at).softmax(1).amax(1).sum()
        expected = at * torch.autograd.grad(winning, at, create_graph=True)[0]
    assert relative(maps, expected) < 1e-9
    parameters = [p for p in model.parameters() if p is not model.head.bias]
    ours, theirs = (
        torch.autograd.grad(each.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        for each in (maps, expected)
    )
    assert all(relative(a, b) < 1e-8 for a, b in zip(ours, theirs, strict=True))
    assert sum(bool(gradient.any()) for gradient in theirs) >= 4


def test_attention_that_drops_weights():
    """What is dropped is drawn once: relevance goes by the weights that are left."""
    model, x = trained(Attentive(ATTENTIONS["module"], dropout=0.5)).train(), images()
    for parameter in (model.patches.bias, model.head.bias, model.module.in_proj_bias, model.module.out_proj.bias):
        parameter.data.zero_()
    twin = fxlrp.convert(model, trainable=True, example_inputs=x)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert relative(twin(x).output, expected) < 1e-12
    assert fxlrp.audit(twin, x, 1).leak < 1e-9
    fxlrp.ISNet(model, variant="gradient_input")(x).heatmaps["input"].sum().backward()


class OneSample(nn.Module):
    """Takes images with a batch, and one without."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)
        self.transposed, self.head, self.middle = nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 5), middle

    def forward(self, x):
        x = (x - torch.tensor([0.1, 0.2, 0.3]).double().view(3, 1, 1)) / 0.25
        h = self.second(self.middle(self, self.first(x).relu())).relu()
        return self.head(h.mean((-2, -1)))


MIDDLES = {
    "plain": lambda self, h: h,
    "max pooling": lambda self, h: F.max_pool2d(h, 2, 1),
    "pools": lambda self, h: F.adaptive_max_pool2d(F.avg_pool2d(h, 2, 1), 6),
    "paddings": lambda self, h: F.pad(F.pad(h, (1, 0, 2, 0)), (1, 1, 1, 1), mode="reflect"),
    "transposed": lambda self, h: self.transposed(h) + 0.3,
    "residual": lambda self, h: h + F.adaptive_avg_pool2d(h, 1).sigmoid() * h,
}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", MIDDLES)
def test_one_sample_without_a_batch(name, trainable):
    model, x = trained(OneSample(MIDDLES[name])).eval(), images(1)[0]
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable, record=("second",))
    seeds = torch.randn(2, 5).double()
    for target, batched in ((None, None), (-2, -2), ([3], [3]), (seeds[0], seeds[:1]), (seeds, seeds[:, None])):
        out, there = twin(x, target), twin(x[None], batched)
        assert relative(out.output, model(x)) < 1e-12
        several = target is seeds
        for ours, theirs in ((out.relevance, there.relevance), (out.recorded["second"], there.recorded["second"])):
            assert relative(ours, theirs[:, 0] if several else theirs[0]) < 1e-12
    assert fxlrp.audit(twin, x, 1).leak < 1e-9
    with pytest.raises(fxlrp.errors.TargetError, match="out of range"):
        twin(x, 5)


def test_one_sample_whose_output_has_a_batch():
    class Batched(OneSample):
        def forward(self, x):
            return super().forward(x).reshape(-1, 5)

    model, x = trained(Batched(MIDDLES["plain"])).eval(), images(1)[0]
    twin = fxlrp.convert(model, "epsilon_plus")
    assert relative(twin(x, 1).relevance, twin(x[None], 1).relevance[0]) < 1e-12


def test_one_number_of_each_sample_is_no_class():
    """Of as many samples as the model has inputs, or one, and of a batch that the model has fixed."""

    class Scores(nn.Module):
        def __init__(self, fixed):
            super().__init__()
            self.conv, self.fixed = nn.Conv2d(3, 1, 8), fixed

        def forward(self, x):
            return self.conv(x).reshape(3 if self.fixed else -1)

    for fixed, counts in ((False, (1, 2, 3)), (True, (3,))):
        twin = fxlrp.convert(trained(Scores(fixed)).eval(), "epsilon_plus")
        for count in counts:
            x = images(count)
            assert relative(twin(x).relevance, twin(x, twin(x).output).relevance) < 1e-12
            with pytest.raises(fxlrp.errors.TargetError, match="one number per sample"):
                twin(x, 0)


def test_a_bag_of_images_has_classes():
    """Instances of one sample: the output has no batch, whatever their number."""

    class Bag(OneSample):
        def forward(self, x):
            return super().forward(x).amax(0)

    model = trained(Bag(MIDDLES["plain"])).eval()
    twin = fxlrp.convert(model, "epsilon_plus")
    for count in (1, 2, 5):
        x = images(count)
        seed = F.one_hot(torch.tensor(2), 5) * model(x).detach()
        assert relative(twin(x, 2).relevance, twin(x, seed).relevance) < 1e-12


def tensors_of(model: nn.Module, *kinds: str) -> dict[str, torch.Tensor]:
    """A model's tensors under the names that a twin has them by, as plain tensors."""
    named = {"parameters": model.named_parameters, "buffers": model.named_buffers}
    return {f"model.{name}": value.detach().clone() for kind in kinds for name, value in named[kind]()}


def another(model: nn.Module, seed: int) -> nn.Module:
    """The same model with other weights and statistics."""
    other = trained(copy.deepcopy(model), seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return other


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_call_with_other_tensors(trainable, context):
    model, x, seeds = network(), images(), torch.randn(2, 2, 5).double()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    before = twin(x, 1)
    other = another(model, 1)
    there, given = fxlrp.convert(other, "epsilon_plus", trainable=True), tensors_of(other, "parameters", "buffers")
    for _ in range(2):
        for target in (1, seeds):
            with context():
                out = functional_call(twin, given, (x, target))
            assert relative(out.output, other(x)) < 1e-12
            assert relative(out.relevance, there(x, target).relevance) < 1e-12
        with torch.no_grad():
            for name, value in other.named_parameters():
                given[f"model.{name}"].mul_(2)
                value.mul_(2)
    (home,) = twin._programs._homes.values()
    assert len(home.all) == 1
    after = twin(x, 1)
    assert torch.equal(after.output, before.output)
    assert torch.equal(after.relevance, before.relevance)


def there_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return fxlrp.explain(model, x, 1, "epsilon_plus").relevance


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_call_with_some_tensors(trainable, kind):
    """Parameters and buffers that are given keep the company of the model's own, also where they are `nn.Parameter`."""
    model, x = network(), images()
    twin, mixed = fxlrp.convert(model, "epsilon_plus", trainable=trainable), copy.deepcopy(model)
    given = tensors_of(another(model, 1), kind)
    mixed.load_state_dict({name.removeprefix("model."): value for name, value in given.items()}, strict=False)
    expected = there_of(mixed, x)
    assert relative(functional_call(twin, given, (x, 1)).relevance, expected) < 1e-12
    if kind == "parameters":
        given = {name: nn.Parameter(value) for name, value in given.items()}
        assert relative(functional_call(twin, given, (x, 1)).relevance, expected) < 1e-12


def test_an_exported_program_is_called_with_other_tensors():
    model, x = network(), images()
    other = another(model, 1)
    for trainable in (False, True):
        twin = fxlrp.convert(torch.export.export(model, (x,), strict=False), "epsilon_plus", trainable=trainable)
        out = functional_call(twin, tensors_of(other, "parameters", "buffers"), (x, 1))
        assert relative(out.relevance, there_of(other, x)) < 1e-12


def test_statistics_that_are_given_are_updated():
    model, x = network().train(), images(4)
    other = another(model, 1).train()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
    given, before = tensors_of(other, "parameters", "buffers"), copy.deepcopy(model.state_dict())
    out = functional_call(twin, given, (x, 1))
    assert relative(out.output, other(x)) < 1e-12
    for name, value in other.named_buffers():
        torch.testing.assert_close(given[f"model.{name}"], value, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["twin", "isnet"])
def test_transforms_of_a_call_with_other_tensors(kind):
    """The gradient is autograd's of a model that has these weights; a map over models gives each one's."""
    model, x = network(), images()
    if kind == "twin":
        wrap, maps = partial(fxlrp.convert, composite="epsilon_plus", trainable=True), lambda out: out.relevance
    else:
        wrap, maps = partial(fxlrp.ISNet, variant="original"), lambda out: out.heatmaps["input"]
    wrapped, others = wrap(model), [another(model, seed) for seed in (1, 2)]
    given = [tensors_of(other, "parameters") for other in others]
    for other in others:
        other.load_state_dict(dict(model.named_buffers()), strict=False)
    found = lambda tensors: maps(functional_call(wrapped, tensors, (x,)))
    several = torch.func.vmap(found)({name: torch.stack([each[name] for each in given]) for name in given[0]})
    for other, tensors, ours in zip(others, given, several, strict=True):
        expected = maps(wrap(other)(x))
        assert relative(ours, expected) < 1e-10
        gradients = torch.func.grad(lambda tensors: found(tensors).square().sum())(tensors)
        expected.square().sum().backward()
        for name, parameter in other.named_parameters():
            assert relative(gradients[f"model.{name}"], parameter.grad) < 1e-9


def test_transforms_of_a_cold_twins_input():
    model, x = network(), images()
    loss = lambda x: fxlrp.convert(model, "epsilon_plus", trainable=True)(x, 1).relevance.square().sum()
    at = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(at), at)
    assert relative(torch.func.grad(loss)(x), expected) < 1e-10


def test_constants_cannot_be_differentiated():
    twin, x = fxlrp.convert(network(), "epsilon_plus"), images()
    loss = lambda tensors: functional_call(twin, tensors, (x,)).relevance.sum()
    with pytest.raises(fxlrp.errors.InputError, match="trainable=True"):
        torch.func.grad(loss)(tensors_of(twin.model, "parameters"))
