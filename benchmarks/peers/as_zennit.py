"""A pytest plugin that has zennit's tests of rules ask fxlrp: see `run.py`.

`Hook.register` puts a twin behind the module in place of zennit's hooks: the gradient of what the module then returns
is the relevance of the twin, which the test compares with its own dense matrix form of the rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from zennit.composites import LayerMapComposite
from zennit.core import Hook

import fxlrp


@pytest.fixture(scope="session", autouse=True)
def version(record_testsuite_property: Callable[[str, object], None]) -> None:
    record_testsuite_property("version", version_of("zennit"))


class Explained(torch.autograd.Function):
    """The value of a twin, whose gradient is the twin's relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, twin: fxlrp.Twin) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.twin = twin
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Tensor, None, None]:
        x, value = ctx.saved_tensors
        explanation = ctx.twin(x, seeds[0])
        torch.testing.assert_close(explanation.output, value)
        return explanation.relevance, None, None


def register(hook: Hook, module: nn.Module) -> RemovableHandle:
    """Put a twin of `module` by the rule `hook` behind it."""
    twin = fxlrp.convert(nn.Sequential(copy.deepcopy(module)), LayerMapComposite([(type(module), hook)]))
    return module.register_forward_hook(lambda _, inputs, value: Explained.apply(inputs[0], value.detach(), twin))


Hook.register = register  # pyright: ignore[reportAttributeAccessIssue]
