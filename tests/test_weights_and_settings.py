"""Twins that mix: new outputs with old heatmaps, after weights were written to, or with settings that were changed.

And models that hold more than tensors: what a copy or a capture must cope with, and leave as it was.
"""

from __future__ import annotations

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import fxlrp
from fxlrp.errors import CaptureError
from fxlrp.testing.assertions import relative
from fxlrp.weights import trained


def network(seed: int = 0) -> nn.Sequential:
    """Layers with and without a batch norm: some of their weights are folded, and some are not."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    model = trained(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 4, 3)), seed)
    assert isinstance(model, nn.Sequential)
    return model.eval()


def images(seed: int = 5) -> Tensor:
    return torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    out = fxlrp.explain(copy.deepcopy(model), x, 1, "epsilon_plus")
    return out.output, out.relevance


def is_explained(twin: nn.Module, model: nn.Module, x: Tensor) -> bool:
    out, (output, relevance) = twin(x, 1), explained(model, x)
    return relative(out.output, output) < 1e-12 and relative(out.relevance, relevance) < 1e-12


def descend(twin: fxlrp.Twin, **options) -> None:
    parameters = list(twin.model.requires_grad_().parameters())
    twin.model(images()).square().sum().backward()
    torch.optim.Adam(parameters, lr=0.1, **options).step()


def replace_data(twin: fxlrp.Twin) -> None:
    for tensor, other in zip(twin.model.parameters(), network(1).parameters(), strict=True):
        tensor.data = other.data


def copy_each(twin: fxlrp.Twin) -> None:
    with torch.no_grad():
        for tensor, other in zip(twin.model.parameters(), network(1).parameters(), strict=True):
            tensor.copy_(other)


WRITES = {
    "load_state_dict of the twin": lambda twin: twin.load_state_dict(
        {f"model.{name}": value for name, value in network(1).state_dict().items()}
    ),
    "load_state_dict of its model": lambda twin: twin.model.load_state_dict(network(1).state_dict()),
    "load_state_dict that assigns": lambda twin: twin.model.load_state_dict(network(1).state_dict(), assign=True),
    "copy_": copy_each,
    "a batch norm's buffer": lambda twin: twin.model[1].running_mean.add_(1),
    "an optimizer": descend,
    "a fused optimizer": lambda twin: descend(twin, fused=True),
    "other storages": replace_data,
    "reset_parameters": lambda twin: twin.model[3].reset_parameters(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("exported", [False, True])
def test_a_twin_explains_its_model_as_it_is_now(write, exported):
    model, x = network(), images()
    if exported and write in ("load_state_dict of its model", "reset_parameters", "a batch norm's buffer"):
        write = "copy_"
    given = torch.export.export(model, (x,), strict=False) if exported else model
    twin = fxlrp.convert(given, "epsilon_plus", example_inputs=x)
    before = twin(x, 1)
    if exported and write == "load_state_dict of the twin":
        twin.load_state_dict({f"model.{k}": v for k, v in network(1).state_dict().items()}, strict=False)
    else:
        WRITES[write](twin)
    assert relative(twin(x, 1).output, before.output) > 1e-3
    assert is_explained(twin, twin.model, x) if not exported else relative(twin(x, 1).output, twin.model(x)) < 1e-12
    reference = network()
    reference.load_state_dict(dict(zip(reference.state_dict(), _values(reference, twin.model), strict=True)))
    assert is_explained(twin, reference, x)
    assert is_explained(fxlrp.convert(model, "epsilon_plus"), network(), x)


def _values(reference: nn.Module, model: nn.Module) -> list[Tensor]:
    found = model.state_dict()
    return [found[name] for name in reference.state_dict()]


def test_writes_that_pytorch_cannot_see_leave_all_as_it_was_or_change_all():
    model, x = network(), images()
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=x)
    for tensor, other in zip(twin.model.parameters(), network(1).parameters(), strict=True):
        tensor.data.copy_(other)
    assert is_explained(twin, network(), x) or is_explained(twin, twin.model, x)


def test_an_average_of_a_twin():
    twin, x = fxlrp.convert(network(), "epsilon_plus"), images()
    twin(x)
    average = AveragedModel(twin)
    average.update_parameters(twin)
    average(x)
    for seed in (1, 2):
        twin.model.load_state_dict(network(seed).state_dict())
        average.update_parameters(twin)
        assert is_explained(average, average.module.model, x)


class Adjustable(nn.Module):
    """A network whose function depends on more than parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.scale, self.squares = network(), 1.5, False
        self.shift, self.options = torch.full((3,), 0.25).double(), {"slope": [0.1, 2.0]}
        self.calls, self.kept = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = self.body(x)
        y = nn.functional.leaky_relu(self.kept, self.options["slope"][0]) * self.scale + self.shift
        return y * y if self.squares else y


CHANGES = {
    "a float": lambda model: setattr(model, "scale", -2.0),
    "a bool": lambda model: setattr(model, "squares", True),
    "a number within": lambda model: model.options["slope"].__setitem__(0, 0.5),
    "a tensor": lambda model: setattr(model, "shift", torch.ones(3).double()),
    "a tensor's values": lambda model: model.shift.add_(1),
    "eps of a batch norm": lambda model: setattr(model.body[1], "eps", 0.7),
    "a hook": lambda model: model.body[2].register_forward_hook(lambda module, inputs, output: 3 * output),
    "a hook before": lambda model: model.body[3].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "another layer": lambda model: model.body.__setitem__(2, nn.LeakyReLU(0.5)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["trainable", "not trainable", "isnet"])
def test_settings_are_those_of_now(change, kind):
    model, x = Adjustable().eval(), images()
    explainer = fxlrp.ISNet(model) if kind == "isnet" else fxlrp.convert(model, trainable=kind == "trainable")
    output = lambda: explainer(x)[0].detach()  # noqa: PLW0108 - another one at each call
    assert relative(output(), model(x).detach()) < 1e-12
    undo = CHANGES[change](explainer.model)
    assert relative(output(), explainer.model(x).detach()) < 1e-12
    assert relative(output(), Adjustable().eval()(x).detach()) > 1e-3
    if "hook" in change:
        undo.remove()
        assert relative(output(), Adjustable().eval()(x).detach()) < 1e-12


def test_dropout_drops_as_it_is_set():
    model = nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.0), nn.Linear(50, 2)).double()
    twin, x = fxlrp.convert(model, "epsilon_plus", trainable=True), torch.rand(4, 50).double()
    whole = twin(x).output
    model[1].p = 0.9
    assert relative(twin(x).output, whole) > 1e-3


def test_what_a_forward_pass_keeps_is_no_setting():
    """The model's own calls count, and keep what they computed: at most one more capture finds that out."""
    model, x = Adjustable().eval(), images()
    twin = fxlrp.convert(model, trainable=True)
    for _ in range(2):
        twin(x)
        model(x)
    program = twin.capture(x)
    for _ in range(3):
        model(x)
        assert twin.capture(x) is program


def test_sizes_are_not_kept_for_ever():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1))
    twin = fxlrp.convert(nn.Sequential(nn.BatchNorm2d(1), model, nn.Flatten()).double().eval(), "epsilon_plus")
    for size in range(4, 24):
        twin(torch.rand(2, 1, size, size).double())
    assert len(twin._programs.all) <= 16


class Holder(nn.Module):
    """Holds what cannot be copied, and an activation that was computed with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lock, self.history = network(), threading.Lock(), []
        self.file, self.kept = open(__file__), None  # noqa: SIM115

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.kept = self.body(x)
            self.history.append(self.kept)
        return self.kept


def parametrized(wrap) -> nn.Module:
    model = network()
    wrap(model[3])
    return model


MODELS = {
    "holder": Holder,
    "weight_norm": lambda: parametrized(weight_norm),
    "spectral_norm": lambda: parametrized(spectral_norm),
    "parametrizations.weight_norm": lambda: parametrized(nn.utils.parametrizations.weight_norm),
    "prune": lambda: parametrized(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_models_that_hold_more_than_tensors(name, trainable):
    model, x = MODELS[name]().eval(), images()
    # As after training: what was computed has a gradient.
    output = model(x)
    out = fxlrp.convert(model, "epsilon_plus", trainable=trainable)(x, 1)
    assert relative(out.output, output.detach()) < 1e-9
    plain: Any = network()
    with torch.no_grad():
        layer = model.body[3] if name == "holder" else model[3]
        plain[3].weight.copy_(layer.weight)
    assert relative(out.relevance.detach(), explained(plain, x)[1]) < 1e-9
    for module in model.modules():
        assert not any(isinstance(value, FakeTensor) for value in vars(module).values())
    if name == "holder":
        assert len(model.history) == 1
        assert model.kept is model.history[0]


def test_a_hook_collects_nothing_of_a_capture(tmp_path):
    model, x, seen, by_name = network(), images(), [], {}

    class Collector:
        def __init__(self) -> None:
            self.found, self.last = [], None

        def see(self, module, inputs, output) -> None:
            self.found.append(output)
            self.last = output

    collector = Collector()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model[2].register_forward_hook(lambda module, inputs, output: by_name.update(relu=output))
    model[3].register_forward_hook(collector.see)
    model(x)
    first, relu, last = seen[0], by_name["relu"], collector.last
    twin = fxlrp.convert(model, "epsilon_plus", trainable=True, example_inputs=x)
    assert len(seen) == 1
    assert seen[0] is first
    assert by_name == {"relu": relu}
    assert collector.found == [last]
    assert collector.last is last
    torch.save(Holder.__name__, tmp_path / "any.pt")
    assert not any(isinstance(value, FakeTensor) for value in (*seen, *by_name.values(), *collector.found))
    assert relative(twin(x).output, model(x)) < 1e-12


def test_what_hooks_hold_is_found():
    """In a partial function, and beside a variable of theirs that has no value yet."""
    model, x, bound, latest = network(), images(), [], []

    def note(kept, module, inputs, output):
        kept.append(output)

    def replace_latest(module, inputs, output):
        latest[:] = [output, lambda: later]

    model[0].register_forward_hook(functools.partial(note, bound))
    model[2].register_forward_hook(replace_latest)
    model(x)
    before = [*bound, *latest]
    fxlrp.convert(model, "epsilon_plus", trainable=True, example_inputs=x)
    after = [*bound, *latest]
    assert len(after) == len(before)
    assert all(a is b for a, b in zip(after, before, strict=True))
    later = None


def test_a_module_that_refuses_to_be_copied():
    class Unique(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of it")

    model, x = nn.Sequential(Unique(3, 2)), torch.randn(4, 3)
    with pytest.raises(CaptureError, match=r"Sequential cannot be copied \(TypeError: there is one.*trainable=True"):
        fxlrp.convert(model, "epsilon_plus")(x)


def test_several_threads_meet_a_cold_twin():
    model, sizes = network()[:5], (6, 7, 8)
    twin = fxlrp.convert(nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "epsilon_plus")
    inputs = [torch.rand(2, 2, n, n, generator=torch.Generator().manual_seed(n)).double() for n in sizes] * 2
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda x: twin(x, 1), inputs))
    for x, out in zip(inputs, found, strict=True):
        alone = fxlrp.explain(twin.model, x, 1, "epsilon_plus")
        assert relative(out.output, alone.output) < 1e-12
        assert relative(out.relevance, alone.relevance) < 1e-12
