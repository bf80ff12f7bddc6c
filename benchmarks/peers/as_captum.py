"""A pytest plugin that has captum's tests of LRP ask fxlrp: see `run.py`.

`LRP.attribute` and `LayerLRP.attribute` explain by a twin, with the rules that the test put on modules, or captum's.
"""

# captum is a checkout beside this one, see `run.py`.
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import captum
import captum.attr
import pytest
import torch
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule
from torch import Tensor, nn
from zennit.core import Composite, Hook
from zennit.rules import Epsilon, Gamma, Pass, ZPlus

import fxlrp

NOT_OURS = {
    "test_lrp_creator": "captum's own check of its attribute `rule`",
    "test_lrp_creator_activation": "captum refuses a module that is never called",
    "test_lrp_repeated_module": "captum refuses a module that is called twice",
    "test_futures_not_implemented": "captum's own interface",
}

RULES = {
    IdentityRule: lambda rule: Pass(),
    EpsilonRule: lambda rule: Epsilon(epsilon=rule.STABILITY_FACTOR),
    GammaRule: lambda rule: Gamma(gamma=rule.gamma, stabilizer=rule.STABILITY_FACTOR),
    Alpha1_Beta0_Rule: lambda rule: ZPlus(stabilizer=rule.STABILITY_FACTOR),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in NOT_OURS:
            item.add_marker(pytest.mark.skip(reason=NOT_OURS[item.name]))


@pytest.fixture(scope="session", autouse=True)
def version(record_testsuite_property: Callable[[str, object], None]) -> None:
    record_testsuite_property("version", captum.__version__)


# One that stays in a graph.
IDENTITY = nn.LeakyReLU(1.0)


class Asked(nn.Module):
    """A model with what it is called with beside its inputs; the value of a watched layer goes through a module."""

    def __init__(self, model: nn.Module, watched: list[nn.Module], further: Any) -> None:
        super().__init__()
        self.further = further if isinstance(further, tuple) else () if further is None else (further,)
        names = {module: name for name, module in model.named_modules()}
        self.model = copy.deepcopy(model)
        self.paths = [f"model.{names[module]}" for module in watched]
        for path in self.paths:
            parent, _, name = path.rpartition(".")
            layer = self.get_submodule(path)
            setattr(self.get_submodule(parent), name, nn.Sequential(layer, IDENTITY))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs, *self.further)


def rule_of(_context: Any, _name: str, module: nn.Module) -> Hook | None:
    if type(module) in SUPPORTED_NON_LINEAR_LAYERS:
        return Pass()
    default = SUPPORTED_LAYERS_WITH_RULES.get(type(module))
    rule = getattr(module, "rule", None) or (default and default())
    return rule and RULES[type(rule)](rule)


def attributed(model: nn.Module, inputs: Any, target: Any, further: Any, watched: list[nn.Module]) -> tuple[Any, ...]:
    """The explanation; the value that is explained; where each watched layer is."""
    asked = Asked(model, watched, further)
    index = (slice(None),) if target is None else (slice(None), target)

    def seed(output: Tensor) -> Tensor:
        mask = torch.zeros_like(output)
        mask[index] = 1
        return mask * output

    record = [path + end for path in asked.paths for end in (".0", ".1")]
    twin = fxlrp.convert(asked, Composite(module_map=rule_of), record=record)
    explanation = twin(inputs, seed)
    return explanation, explanation.output[index], asked.paths


class LRP(captum.attr.LRP):
    """Attribution to the inputs."""

    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        explanation, value, _ = attributed(self.model, inputs, target, additional_forward_args, [])
        found = explanation.relevance
        return (found, self.compute_convergence_delta(found, value)) if return_convergence_delta else found


class LayerLRP(captum.attr.LayerLRP):
    """Attribution to the inputs, or the outputs, of layers."""

    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        several = isinstance(self.layer, list)
        watched = self.layer if several else [self.layer]
        explanation, value, paths = attributed(self.model, inputs, target, additional_forward_args, watched)
        end = ".0" if attribute_to_layer_input else ".1"
        found = [explanation.recorded[path + end] for path in paths]
        delta = [self.compute_convergence_delta(relevance, value) for relevance in found]
        if not several:
            (found,), (delta,) = found, delta
        return (found, delta) if return_convergence_delta else found


captum.attr.LRP, captum.attr.LayerLRP = LRP, LayerLRP
