"""Where something is said to have happened is a place of the user's, and nothing is said beside the error.

The kind of fault: places in fxlrp, in torch, or in the caller; torch's graphs and logs in front of the error; its own
warnings of what it is going to remove.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision.transforms as v1
from torch import nn
from torchvision.transforms import v2

import fxlrp
from fxlrp import errors

X = torch.randn(2, 3, 8, 8)


class Choice(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Cut(nn.Module):
    def forward(self, x):
        return x[:, : int(x.sum())]


class Foreign(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy())


class NotFor(nn.Module):
    def forward(self, x, y):
        return x + y


def around(module):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), module), nn.Flatten()).eval()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (Choice(), "return x * 2 if x.sum() > 0 else x"),
        (Cut(), "return x[:, : int(x.sum())]"),
        (Foreign(), "return torch.from_numpy(x.detach().numpy())"),
        (NotFor(), None),
        (nn.Conv2d(5, 4, 3), None),
    ],
)
def test_a_failed_capture_names_the_module_and_the_line_and_prints_nothing(module, line, capfd, caplog):
    for call in (
        lambda: fxlrp.convert(around(module), "epsilon_plus")(X),
        lambda: fxlrp.canonize(around(module), X),
        lambda: fxlrp.ISNet(around(module))(X),
    ):
        with pytest.raises(errors.CaptureError, match=rf"in module '1.1' \({type(module).__name__}\)") as caught:
            call()
        message = str(caught.value)
        assert line is None or f"{__file__}:" in message
        assert line is None or line in message
        assert fxlrp.__file__.removesuffix("__init__.py") not in message
        assert "torch/" not in message
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


class Talks(nn.Module):
    def forward(self, x):
        print("to the standard error", file=sys.stderr)
        return x * 2


def test_what_the_model_itself_prints_is_printed(capfd):
    fxlrp.canonize(around(Talks()), X)
    assert "to the standard error" in capfd.readouterr().err


TRANSFORMS = {
    "v1 flip": v1.RandomHorizontalFlip(),
    "v1 crop": v1.RandomCrop(6),
    "v1 jitter": v1.ColorJitter(0.5),
    "v1 blur": v1.GaussianBlur(3),
    "v2 flip": v2.RandomHorizontalFlip(),
    "v2 rotation": v2.RandomRotation(10),
    "v2 image": v2.ToImage(),
    "v2 several": v2.Compose([v2.CenterCrop(6), v2.RandomErasing()]),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_in_the_model(transform):
    model = nn.Sequential(transform, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    name = type(transform).__name__
    with pytest.raises(errors.CaptureError, match=r"in module '0.*\(.*model\[1:\]\)") as caught:
        fxlrp.convert(model, "epsilon_plus")(X)
    assert name in str(caught.value) or "'0.transforms" in str(caught.value)
    assert "apply it before" in str(caught.value)
    assert fxlrp.convert(model[1:], "epsilon_plus")(X).relevance.shape == X.shape


def test_models_are_captured_before_torchvisions_transforms_are_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision.transforms._functional_tensor")
    assert fxlrp.convert(nn.Conv2d(3, 4, 3), None)(X.float()).relevance.shape == X.shape


class Digamma(nn.Module):
    def forward(self, x):
        return torch.digamma(x)


class Calls(nn.Module):
    """A module of the user's that has a twin."""

    def __init__(self, model):
        super().__init__()
        self.twin = fxlrp.convert(model, "epsilon_plus")

    def forward(self, x):
        return self.twin(x)


def unsupported(model):
    """What is said of an op without a rule, whoever asks."""
    exported = torch.export.export(model, (X,))
    for call in (
        lambda: fxlrp.convert(model, "epsilon_plus")(X),
        lambda: fxlrp.explain(model, X),
        lambda: Calls(model)(X),
        lambda: fxlrp.convert(exported, "epsilon_plus")(X),
        lambda: fxlrp.ISNet(model)(X),
    ):
        with pytest.raises(errors.UnsupportedOpError) as caught:
            call()
        yield str(caught.value)
    yield fxlrp.check(model, "epsilon_plus", X).unsupported[0].why


def test_the_place_of_an_op_is_the_users_line():
    for message in unsupported(around(Digamma())):
        assert f"in module '1.1' ({__file__}:" in message
        assert "return torch.digamma(x))" in message


def test_the_place_of_an_op_of_torchs_modules_is_the_module_alone():
    for message in unsupported(around(nn.FractionalMaxPool2d(2, output_size=3))):
        assert "aten.fractional_max_pool2d.default in module '1.1'. Register" in message


QUIET = """
import copy, pickle, warnings
import torch
from torch import nn
import fxlrp

def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3)
    )

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])

x, series = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 3)
model = net().eval()
exported = torch.export.export(model, (x,))
with warnings.catch_warnings():
    warnings.simplefilter("error")
    twin = fxlrp.convert(model, "epsilon_plus")
    twin(x), twin(x, [0, 1]), twin(x, torch.ones(2, 2, 3))
    fxlrp.audit(twin, x), fxlrp.check(model, None, x), fxlrp.canonize(model, x)
    twin.load_state_dict(twin.state_dict()), pickle.loads(pickle.dumps(twin))(x)
    copy.deepcopy(twin).double()(x.double())
    fxlrp.convert(exported)(x), fxlrp.convert(torch.fx.symbolic_trace(model))(x)
    fxlrp.convert(net(), trainable=True)(x).relevance.sum().backward()
    fxlrp.ISNet(net(), deep_supervision=True)(x).heatmaps["input"].sum().backward()
    recurrent = fxlrp.convert(Recurrent().eval(), trainable=True)
    recurrent(series).relevance.sum().backward()
    fxlrp.audit(recurrent, series)
"""


def test_nothing_warns_of_what_torch_is_going_to_remove():
    subprocess.run([sys.executable, "-c", QUIET], check=True)
