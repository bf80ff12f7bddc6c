"""Models as zennit needs them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn

__all__ = ["for_zennit"]


class InTurn(nn.Module):
    """Copies of an activation, one for each call."""

    def __init__(self, activation: nn.Module, calls: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(activation) for _ in range(calls))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.copies[(self.calls - 1) % len(self.copies)](x)


def for_zennit(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy, the same function, that zennit's hooks and canonizers do not get wrong.

    No activation works in place: a hook would see its input overwritten. One that is called several times becomes as
    many: of all its calls, a hook would see the last one's input. Each batch norm has its ``eps`` in its variance:
    zennit 0.5.1 applies it once more after a merge.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is not modified.
    x : Tensor
        An input.
    """
    model = copy.deepcopy(model)
    calls: Counter[nn.Module] = Counter()
    activations = [m for m in model.modules() if not [*m.children()] and not m.state_dict()]
    handles = [m.register_forward_hook(lambda module, *_: calls.update([module])) for m in activations]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    for module in list(model.modules()):
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var += module.eps
            module.eps = 0.0
    turns = {module: InTurn(module, count) for module, count in calls.items() if count > 1}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in turns:
                setattr(parent, name, turns[child])
    return model
