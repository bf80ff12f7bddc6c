"""A rule's functions are exchanged for others that give the same numbers in fewer passes over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ...rules.base import Site
from ...rules.zennit import probe
from ...rules.zennit.basic import BasicRule
from ...rules.zennit.branch import Branch
from .emitted import Emitted

__all__ = ["use_cheaper_functions"]


def use_cheaper_functions(emitted: Emitted) -> None:
    """Exchange mappers, clamps of inputs at zero, and parameter modifiers that are a ReLU."""
    for written, call, step, rule in emitted.basic_rules():
        cheaper = replace(
            rule.with_mapper(step.site),
            branches=tuple(_cheaper(rule, branch, step.site) for branch in rule.branches),
            of_non_negative=tuple(_cheaper(rule, branch, step.site) for branch in rule.of_non_negative),
        )
        emitted.replace_rule(written, call, cheaper)


def _cheaper(rule: BasicRule, branch: Branch, site: Site) -> Branch:
    return replace(
        branch,
        input_modifier=_without_mask(branch.input_modifier, site.input_shape),
        rectified=probe.rectified(rule.modifying(branch, site), dict(site.param_shapes)),
    )


def _without_mask(modifier: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The same input modifier; of a clamp at zero, one whose derivative takes no mask."""
    if probe.is_relu(modifier, shape):
        return torch.relu
    if probe.is_negative_part(modifier, shape):
        return partial(nn.functional.hardtanh, min_val=-math.inf, max_val=0.0)
    return modifier
