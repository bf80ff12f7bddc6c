"""A final softmax, log-softmax or sigmoid is not explained: a class's relevance starts from its logit.

The kind of fault: relevance starts from what a nonlinearity made of the logit, of another sign or size: a map that is
exact, and says something else. The oracle is zennit on the network without the activation, seeded with the logit.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import EpsilonPlus

import fxlrp
from fxlrp import errors
from fxlrp.testing import assert_conserves, trained
from fxlrp.testing.assertions import relative, zennit_relevance


def classifier(*behind: nn.Module, classes: int = 5, spatial: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    head = [nn.Conv2d(6, classes, 1)] if spatial else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)]
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *head]
    return trained(nn.Sequential(*layers, *behind)).double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_zennit(model: nn.Module, behind: int, x: Tensor, classes: Tensor) -> Tensor:
    """zennit's relevance of `x` for the logits of these classes, of a model with so many modules behind its logits."""
    network = model[: len(model) - behind] if behind else model
    logits = network(x).detach()
    index = classes.reshape(-1, 1, *(1,) * (logits.ndim - 2)).expand(-1, 1, *logits.shape[2:])
    seed = torch.zeros_like(logits).scatter(1, index, logits.gather(1, index))
    return map_of(network, x, seed)


def map_of(network: nn.Sequential, x: Tensor, seed: Tensor) -> Tensor:
    """zennit's relevance of `x` for a seed on the logits."""
    convolution, norm, *others = copy.deepcopy(list(network))
    return zennit_relevance(nn.Sequential(fuse_conv_bn_eval(convolution, norm), *others), EpsilonPlus(), x, seed)


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SPELLED = {
    "softmax": nn.Softmax(1),
    "log-softmax": nn.LogSoftmax(1),
    "sigmoid": nn.Sigmoid(),
    "log-sigmoid": nn.LogSigmoid(),
    "hard sigmoid": nn.Hardsigmoid(),
    "last dimension": nn.Softmax(-1),
    "of another dtype": Of(lambda z: torch.softmax(z, 1, dtype=torch.float64)),
    "its logarithm": Of(lambda z: z.softmax(1).log()),
    "kept from zero": Of(lambda z: z.sigmoid().clamp(1e-12, 1 - 1e-12)),
    "exp of log-softmax": Of(lambda z: z.log_softmax(1).exp()),
    "reshaped": Of(lambda z: z.sigmoid().view(len(z), 1, 5).flatten(1)),
    "one of two parts": Of(lambda z: z.sigmoid().split(5, 1)[0]),
    "in parts": Of(lambda z: torch.cat(z.sigmoid().chunk(2, 1), 1)),
    "in place": Of(lambda z: z.sigmoid_()),
    "two heads": Of(lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].sigmoid()], 1)),
    "and a kept head": Of(lambda z: torch.cat([z[:, :2], z[:, 2:].sigmoid()], 1)),
}


@pytest.mark.parametrize(
    ("spelled", "trainable"), [*((spelled, False) for spelled in SPELLED), ("softmax", True), ("two heads", True)]
)
def test_relevance_of_a_class_is_that_of_its_logit(spelled, trainable):
    model, x = classifier(SPELLED[spelled]), images()
    twin = fxlrp.convert(model, "epsilon_plus", trainable=trainable)
    classes = torch.tensor([0, 4, 2])
    for target, chosen in ((classes, classes), (3, torch.tensor([3] * 3)), (None, model(x).argmax(1))):
        found = twin(x, target)
        assert relative(found.output, model(x)) < 1e-14
        expected = by_zennit(model, 1, x, chosen)
        assert relative(found.relevance, expected) < 1e-12


def test_each_pixel_of_a_segmentation_starts_from_its_logit():
    model, x = classifier(nn.Sigmoid(), spatial=True), images()
    expected = by_zennit(model, 1, x, torch.tensor([1, 1, 1]))
    assert relative(fxlrp.explain(model, x, 1, "epsilon_plus").relevance, expected) < 1e-12


def test_one_number_per_sample():
    model, x = classifier(Of(lambda z: z.sigmoid().squeeze(1)), classes=1), images()
    expected = by_zennit(model, 1, x, torch.tensor([0, 0, 0]))
    assert relative(fxlrp.explain(model, x, composite="epsilon_plus").relevance, expected) < 1e-12


def test_of_outputs_rounded_to_the_same_the_highest_logit_is_explained():
    saturated: Any = classifier(nn.Sigmoid())
    with torch.no_grad():
        saturated[-2].weight *= 0.01
        saturated[-2].bias.copy_(torch.tensor([50.0, 60.0, 90.0, 70.0, -50.0]))
    x = images()
    assert (saturated(x)[:, :4] == 1).all()
    expected = by_zennit(saturated, 1, x, torch.tensor([2, 2, 2]))
    assert relative(fxlrp.explain(saturated, x, composite="epsilon_plus").relevance, expected) < 1e-12


@pytest.mark.parametrize("activation", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_a_seed_given_goes_through_the_activation(activation):
    """By hand, in front of zennit's map: AttnLRP's softmax rule, and nothing where relevance passes."""
    model, x = classifier(activation), images()
    network = model[:-1]
    logits = network(x).detach()
    seeds = torch.randn(2, *logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    s = activation(logits)
    softmax = isinstance(activation, nn.Softmax)
    on_logits = logits * (seeds - s * seeds.sum(2, keepdim=True)) if softmax else seeds
    of_logits = [map_of(network, x, seed) for seed in on_logits]
    twin = fxlrp.convert(model, "epsilon_plus")
    assert relative(twin(x, seeds[0]).relevance, of_logits[0]) < 1e-12
    assert relative(twin(x, lambda output: seeds[1]).relevance, of_logits[1]) < 1e-12
    assert relative(twin(x, seeds).relevance, torch.stack(of_logits)) < 1e-12


def test_keep_explains_the_output_itself():
    model, x = classifier(nn.LogSoftmax(1)), images()
    output = model(x).detach()
    seed = torch.zeros_like(output).scatter(1, torch.ones(3, 1, dtype=torch.long), output[:, 1:2])
    kept = fxlrp.convert(model, "epsilon_plus", final_activation="keep")(x, 1).relevance
    expected = map_of(model[:-1], x, seed)
    assert relative(kept, expected) < 1e-12
    # The fault that this is about: log-probabilities are negative, and these logits are not all.
    assert (model[:-1](x)[:, 1] > 0).any()
    assert not torch.allclose(kept, fxlrp.explain(model, x, 1, "epsilon_plus").relevance)


def test_an_activation_within_is_an_op_like_others():
    inner = classifier(nn.Sigmoid(), nn.Linear(5, 4))
    x = images()
    for option in ("skip", "keep"):
        twin = fxlrp.convert(inner, "epsilon_plus", final_activation=option)
        assert_conserves(twin, x, 1, unconserved=None)
    one, other = (fxlrp.explain(inner, x, 1, final_activation=option).relevance for option in ("skip", "keep"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("target", [1, None, torch.tensor([0, 1, 2]), "seed"])
def test_the_ledger_starts_where_relevance_does(target):
    model, x = classifier(nn.Softmax(1)), images()
    twin = fxlrp.convert(model, "epsilon_plus")
    logits = model[:-1](x).detach()
    if isinstance(target, str):
        target = torch.randn_like(logits)
        expected = target.sum()
    else:
        classes = model(x).argmax(1) if target is None else torch.as_tensor(target).expand(3)
        expected = logits.gather(1, classes[:, None]).sum()
    ledger = fxlrp.audit(twin, x, target)
    assert ledger.leak < 1e-9
    assert ledger.seed == pytest.approx(float(expected), rel=1e-12)


def test_check_says_so():
    model, x = classifier(Of(lambda z: z.softmax(1).log().view(len(z), 5))), images()
    how = {plan.op: plan.how for plan in fxlrp.check(model, "epsilon_plus", x).plans}
    assert how["softmax.int"] == how["log.default"] == "not explained"
    kept = {plan.op: plan.how for plan in fxlrp.check(model, "epsilon_plus", x, final_activation="keep").plans}
    assert kept["softmax.int"] == "by convention"
    assert "not explained" in str(fxlrp.check(model, "epsilon_plus", x))


def test_another_word_is_refused():
    with pytest.raises(errors.InputError, match="final_activation"):
        fxlrp.convert(classifier(), final_activation="drop")
    with pytest.raises(errors.InputError, match="final_activation"):
        fxlrp.check(classifier(), None, images(), final_activation="drop")


def test_the_graph_of_classes_takes_no_seed():
    model, x = classifier(nn.Softmax(1)), images()
    twin = fxlrp.convert(model, "epsilon_plus", example_inputs=x)
    _, (relevance,), _ = twin.graph_module(x, 2)
    assert torch.equal(relevance, twin(x, 2).relevance)
    with pytest.raises(errors.TargetError, match="final_activation='keep'"):
        twin.graph_module(x, torch.ones(3, 5, dtype=torch.float64))
