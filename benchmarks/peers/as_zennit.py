"""A pytest plugin that has zennit's tests of rules and composites ask fxlrp: see `run.py`.

`Hook.register` puts a twin behind the module in place of zennit's hooks: the gradient of what the module then returns is
the twin's relevance. `Gradient` explains by a twin, while the test it is in lets zennit itself register the composite.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import zennit.attribution
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from zennit.composites import LayerMapComposite
from zennit.core import Composite, Hook

import fxlrp


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


@lru_cache(maxsize=256)
def twin_of(model: nn.Module, composite: Composite) -> fxlrp.Twin:
    return fxlrp.convert(model, composite)


class Gradient(zennit.attribution.Gradient):
    """An attributor that explains by a twin, and registers nothing."""

    def __enter__(self) -> Gradient:
        return self

    def __exit__(self, *_: object) -> bool:
        return False

    def __call__(self, input: Tensor, attr_output: Any = None) -> tuple[Tensor, Tensor]:
        twin = twin_of(self.model, self.composite)
        seed = (attr_output or self.attr_output_fn)(self.model(input).detach())
        return twin(input.detach(), seed)[:2]


Hook.register = register
zennit.attribution.Gradient = Gradient
