"""ISNets in the user's own loop: precision, accumulation, resuming, and batches with little to explain."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError, MaskError, ModulePathError, VariantError
from fxlrp.testing import trained

VARIANTS = ("selective", "stochastic", "dual", "original", "gradient_input")
BATCH, CLASSES = 8, 3
LOSS = fxlrp.ISNetLoss(ranges={"input": (0.5, 1.0)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(x)))
        return self.fc(self.pool(x).flatten(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    return trained(Net())


@functools.cache
def _isnet(variant: str, dtype: torch.dtype) -> fxlrp.ISNet:
    return fxlrp.ISNet(model().to(dtype), variant)


def isnet_of(variant: str, dtype: torch.dtype = torch.float64, training: bool = True) -> Any:
    """A fresh one, but for its captures."""
    isnet = _isnet(variant, dtype).train(training)
    isnet.model.load_state_dict(model().state_dict())
    isnet.zero_grad()
    return isnet


def batch(seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return x, labels, torch.rand(BATCH, 6, 6, generator=generator) < 0.5


def gradients(isnet: nn.Module, total) -> torch.Tensor:
    """Of all parameters, one behind the other; they are cleared."""
    total.backward()
    found = torch.cat([p.grad.flatten() for p in isnet.parameters()])
    isnet.zero_grad()
    return found


def steps(isnet, optimizer, seeds) -> None:
    for seed in seeds:
        x, labels, masks = batch(seed)
        optimizer.zero_grad()
        LOSS(isnet(x), labels, masks).total.backward()
        nn.utils.clip_grad_norm_(isnet.parameters(), 1)
        optimizer.step()


def sgd(isnet) -> torch.optim.Optimizer:
    return torch.optim.SGD(isnet.parameters(), lr=0.05, momentum=0.9)


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast(variant):
    x, labels, masks = batch(dtype=torch.float32)
    isnet = isnet_of(variant, torch.float32)
    torch.manual_seed(0)
    expected = isnet(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        out = isnet(x)
        losses = LOSS(out, labels, masks)
    assert out.logits.dtype == torch.bfloat16
    assert out.heatmaps["input"].dtype == losses.total.dtype == torch.float32
    # Numbers have an error of 2^-9; a dozen of roundings lie between image and heatmap, and quotients enlarge some.
    assert relative(out.logits.float(), expected.logits) < 16 * 2**-9
    assert 0 < relative(out.heatmaps["input"], expected.heatmaps["input"]) < 16 * 2**-9
    assert losses.total.item() == pytest.approx(LOSS(expected, labels, masks).total.item(), rel=16 * 2**-9)
    losses.total.backward()
    for name, parameter in isnet.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_float16_autocast_with_a_gradient_scaler():
    x, labels, masks = batch(dtype=torch.float32)
    isnet = isnet_of("selective", torch.float32)
    expected = gradients(isnet, LOSS(isnet(x), labels, masks).total)
    optimizer, scaler = sgd(isnet), torch.amp.GradScaler("cpu")
    before, found = [p.detach().clone() for p in isnet.parameters()], expected
    for _ in range(12):  # The scaler starts too high, and skips steps until gradients are finite.
        with torch.autocast("cpu", torch.float16):
            total = LOSS(isnet(x), labels, masks).total
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        found = torch.cat([p.grad.flatten() for p in isnet.parameters()])
        if found.isfinite().all():
            break
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() >= 64
    assert all(torch.equal(a, b) for a, b in zip(before, isnet.parameters(), strict=True))
    # Quotients by values near zero enlarge errors of 2^-12 some hundredfold, as they do those of float32.
    assert relative(found, expected) < 1000 * 2**-12
    scaler.step(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(before, isnet.parameters(), strict=True))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "stochastic"])
def test_accumulated_gradients_of_halves_are_those_of_the_batch(variant):
    """In evaluation mode: in training mode each half would have its own statistics."""
    x, labels, masks = batch()
    isnet = isnet_of(variant, training=False)
    expected = gradients(isnet, LOSS(isnet(x), labels, masks).total)
    for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
        (LOSS(isnet(x[half]), labels[half], masks[half]).total / 2).backward()
    found = torch.cat([p.grad.flatten() for p in isnet.parameters()])
    assert relative(found, expected) < 1e-10


def test_a_resumed_run_is_the_uninterrupted_one():
    isnet = isnet_of("stochastic")
    optimizer = sgd(isnet)
    torch.manual_seed(1)
    steps(isnet, optimizer, range(3))
    file = io.BytesIO()
    torch.save((isnet.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    steps(isnet, optimizer, range(3, 6))

    other = fxlrp.ISNet(Net().double(), "stochastic")
    resumed = sgd(other)
    file.seek(0)
    of_model, of_optimizer, random = torch.load(file)
    other.load_state_dict(of_model)
    resumed.load_state_dict(of_optimizer)
    torch.set_rng_state(random)
    steps(other, resumed, range(3, 6))
    torch.testing.assert_close(other.state_dict(), isnet.state_dict(), rtol=0, atol=0)
    assert not torch.equal(isnet.state_dict()["model.fc.weight"], of_model["model.fc.weight"])


def test_the_state_is_the_models():
    isnet = isnet_of("dual")
    isnet(batch()[0])
    state = isnet.model.state_dict()
    assert list(isnet.state_dict()) == [f"model.{name}" for name in state]
    assert list(state) == list(Net().state_dict())
    assert [id(p) for p in isnet.parameters()] == [id(p) for p in isnet.model.parameters()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda isnet: pickle.loads(pickle.dumps(isnet))])
def test_a_copy_gives_the_same_and_lives_on_its_own(copied):
    isnet, x = isnet_of("selective"), batch()[0]
    expected = isnet(x)  # The captures are there when it is copied.
    before = copy.deepcopy(isnet.state_dict())
    isnet.model.load_state_dict(model().state_dict())
    other = copied(isnet)
    torch.testing.assert_close(tuple(other(x)), tuple(expected), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    steps(other, sgd(other), range(2))
    torch.testing.assert_close(isnet.state_dict(), {f"model.{k}": v for k, v in model().state_dict().items()})
    assert not torch.equal(other.model.fc.weight, isnet.model.fc.weight)


def test_the_model_taken_out_is_what_was_trained():
    isnet, x = isnet_of("selective"), batch(7)[0]
    steps(isnet, sgd(isnet), range(3))
    isnet.eval()
    plain = Net().double().eval()
    plain.load_state_dict(isnet.model.state_dict())
    torch.testing.assert_close(isnet(x).logits, plain(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(isnet.model(x), plain(x))
    assert not torch.allclose(plain(x), model().eval()(x), rtol=1e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("variant", ["selective", "original"])
def test_without_gradients_the_maps_are_the_same(variant, mode):
    isnet, x = isnet_of(variant, training=False), batch()[0]
    expected = isnet(x)
    with mode():
        out = isnet(x.clone())
    torch.testing.assert_close(out.heatmaps["input"], expected.heatmaps["input"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-12, atol=1e-12)
    assert not out.heatmaps["input"].requires_grad
    assert expected.heatmaps["input"].requires_grad


@pytest.mark.parametrize("variant", ["selective", "dual", "original"])
def test_samples_without_mask_are_classified_only(variant):
    """In evaluation mode: (1 - p) of the classification of all, p of the heatmaps of those with a mask alone."""
    x, labels, masks = batch()
    isnet = isnet_of(variant, training=False)
    has_mask = torch.arange(BATCH) % 3 == 0
    found = gradients(isnet, LOSS(isnet(x), labels, masks, has_mask).total)
    classification = gradients(isnet, LOSS(isnet(x), labels, masks).classification)
    heatmap = gradients(isnet, LOSS(isnet(x[has_mask]), labels[has_mask], masks[has_mask]).heatmap)
    assert relative(found, (1 - LOSS.p) * classification + LOSS.p * heatmap) < 1e-10
    assert relative(found, (1 - LOSS.p) * classification) > 0.1
    other = masks | ~has_mask[:, None, None]
    assert torch.equal(gradients(isnet, LOSS(isnet(x), labels, other, has_mask).total), found)


def test_without_any_mask_all_is_classification():
    x, labels, masks = batch()
    isnet = isnet_of("selective")
    losses = LOSS(isnet(x), labels, masks, torch.zeros(BATCH, dtype=torch.bool))
    assert losses.heatmap == losses.background == losses.foreground == 0
    found = gradients(isnet, losses.total)
    expected = gradients(isnet, (1 - LOSS.p) * nn.functional.cross_entropy(isnet(x).logits, labels))
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_to_explain_all_stays_finite(variant, dtype):
    x, labels, masks = batch(dtype=dtype)
    zeros = torch.zeros_like(x)
    some_empty, some_full = masks.clone(), masks.clone()
    some_empty[::2], some_full[::2] = False, True
    cases = {
        "empty foreground": (x, torch.zeros_like(masks)),
        "full foreground": (x, torch.ones_like(masks)),
        "some empty": (x, some_empty),
        "some full": (x, some_full),
        "zero images": (zeros, masks),
        "a zero image": (torch.cat([zeros[:1], x[1:]]), masks),
        "nothing in the foreground": (x * ~masks.unsqueeze(1), masks),
        "nothing in the background": (x * masks.unsqueeze(1), masks),
        "zero images and empty foreground": (zeros, torch.zeros_like(masks)),
    }
    for training in (True, False):
        isnet = isnet_of(variant, dtype, training)
        for last_layer in (1.0, 0.0):
            isnet.model.fc.weight.data.mul_(last_layer)
            isnet.model.fc.bias.data.mul_(last_layer)
            for name, (images, mask) in cases.items():
                losses = LOSS(isnet(images), labels, mask)
                where = f"{name}, last layer times {last_layer}, training {training}"
                assert all(value.isfinite() for value in losses), where
                assert gradients(isnet, losses.total).isfinite().all(), where


def test_no_relevance_at_all_is_pulled_back_into_its_range():
    """Of a last layer that is zero, whose maps vanish: the foreground loss is 1, and grows towards C1 from below."""
    x, labels, masks = batch()
    isnet = isnet_of("original")
    isnet.model.fc.weight.data.zero_()
    isnet.model.fc.bias.data.zero_()
    losses = LOSS(isnet(x), labels, masks)
    assert losses.background == 0
    assert losses.foreground == 1


def out_of(maps: int | None = None) -> fxlrp.isnet.ISNetOutput:
    shape = (BATCH, 2, 6, 6) if maps is None else (BATCH, maps, 2, 6, 6)
    return fxlrp.isnet.ISNetOutput(torch.randn(BATCH, CLASSES), {"input": torch.randn(shape)})


LABELS, MASKS = torch.zeros(BATCH, dtype=torch.long), torch.ones(BATCH, 6, 6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.relu = nn.Linear(2, 2), nn.ReLU()

    def forward(self, x):
        return self.fc(self.relu(self.fc(self.relu(x))))


WRONG = {
    "masks of another batch": (lambda: LOSS(out_of(), LABELS, MASKS[1:]), MaskError, "batch of 8"),
    "masks with a channel too many": (lambda: LOSS(out_of(), LABELS, torch.ones(BATCH, 2, 6, 6)), MaskError, "B, h, w"),
    "masks without space": (lambda: LOSS(out_of(), LABELS, torch.ones(BATCH)), MaskError, "B, h, w"),
    "masks with a dimension too many": (
        lambda: LOSS(out_of(), LABELS, torch.ones(BATCH, 1, 1, 6, 6)),
        MaskError,
        "B, h, w",
    ),
    "no masks": (lambda: LOSS(out_of(), LABELS, None), MaskError, "NoneType"),
    "has_mask of another batch": (lambda: LOSS(out_of(), LABELS, MASKS, torch.ones(3)), MaskError, "has_mask"),
    "variant": (lambda: fxlrp.ISNet(Net(), "selectiv"), VariantError, "did you mean 'selective'"),
    "first layer": (lambda: fxlrp.ISNet(Net(), first_layer="box"), VariantError, "zbox"),
    "epsilon": (lambda: fxlrp.ISNet(Net(), epsilon=0), VariantError, "positive"),
    "eta": (lambda: fxlrp.ISNet(Net(), eta="mean"), VariantError, "pairwise"),
    "dual without gradients": (lambda: fxlrp.ISNet(Net(), "dual", flex=True), VariantError, "no z.* rule.*leave out"),
    "first layer of gradients": (
        lambda: fxlrp.ISNet(Net(), "gradient_input", first_layer="zbox"),
        VariantError,
        "not with gradients: leave one out",
    ),
    "first layer of LRP-Flex": (lambda: fxlrp.ISNet(Net(), flex=True, first_layer="zbox"), VariantError, "one out"),
    "chunk size": (lambda: fxlrp.ISNet(Net(), chunk_size=0), InputError, "chunk_size"),
    "no model": (lambda: fxlrp.ISNet("resnet18"), InputError, "nn.Module"),
    "module path": (lambda: fxlrp.ISNet(Net(), deep_supervision=("bn3",)), ModulePathError, "bn1"),
    "module path as a string": (lambda: fxlrp.ISNet(Net(), deep_supervision="bn1"), ModulePathError, "write"),
    "one logit": (
        lambda: fxlrp.ISNet(nn.Sequential(nn.Flatten(), nn.Linear(72, 1)))(torch.ones(BATCH, 2, 6, 6)),
        VariantError,
        "two classes",
    ),
    "no tensor": (lambda: fxlrp.ISNet(Net())([MASKS]), InputError, "list"),
    "ranges of other maps": (
        lambda: fxlrp.ISNetLoss(ranges={"layer1": (1, 2)})(out_of(), LABELS, MASKS),
        VariantError,
        "calibrate",
    ),
    "ranges of another number of maps": (
        lambda: fxlrp.ISNetLoss(ranges={"input": [(1, 2), (1, 2)]})(out_of(3), LABELS, MASKS),
        VariantError,
        "3 maps",
    ),
    "range": (lambda: fxlrp.ISNetLoss(ranges={"input": (2, 1)}), VariantError, "C1 <= C2"),
    "p": (lambda: fxlrp.ISNetLoss(p=1.5), VariantError, "p is 1.5"),
    "negative p": (lambda: fxlrp.ISNetLoss(p=-0.1), VariantError, "p is -0.1"),
    "d": (lambda: fxlrp.ISNetLoss(d=2), VariantError, "d is 2"),
    "a module that is called twice": (
        lambda: fxlrp.ISNet(Twice(), deep_supervision=("relu",))(torch.ones(BATCH, 2)),
        ModulePathError,
        "'relu' has 2 inputs, or is called several times",
    ),
    "no ISNet to calibrate": (lambda: fxlrp.calibrate(Net(), []), InputError, "takes an ISNet .* not a Net"),
    "one image": (lambda: fxlrp.calibrate(fxlrp.ISNet(Net()), [torch.ones(1, 2, 6, 6)]), InputError, "two images"),
    "no images": (lambda: fxlrp.calibrate(fxlrp.ISNet(Net()), []), InputError, "at least two images"),
    "no relevance": (
        lambda: fxlrp.calibrate(fxlrp.ISNet(Net().eval()), [torch.zeros(BATCH, 2, 6, 6)]),
        VariantError,
        "'input' has no range, its relevance vanishes or explodes: C1 = 0.0",
    ),
    "batches of names": (lambda: fxlrp.calibrate(fxlrp.ISNet(Net()), [["a.png"]]), InputError, "tensor of images"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said(wrong):
    call, kind, said = WRONG[wrong]
    with pytest.raises(kind, match=said):
        call()
