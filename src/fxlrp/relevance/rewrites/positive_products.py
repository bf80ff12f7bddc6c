"""Where each value has one input, the branches of z+ are one."""

from __future__ import annotations

from dataclasses import replace

from ...rules.zennit import probe
from .emitted import Emitted

__all__ = ["share_positive_products"]


def share_positive_products(emitted: Emitted) -> None:
    """Of an op that multiplies each value by a number (a batch norm): ``relu(x w) R / (relu(x w) + relu(b))``."""
    for written, call, step, rule in emitted.basic_rules():
        branches = rule.branches
        if (
            step.site.op.products is not None
            and all(probe.is_identity(branch.output_modifier, (64,), non_negative=False) for branch in branches)
            and probe.shares_positive_products(
                [branch.input_modifier for branch in branches],
                [rule.modifying(branch, step.site) for branch in branches],
                rule.hook.gradient_mapper,
                rule.hook.reducer,
            )
        ):
            emitted.replace_rule(written, call, replace(rule, by_products=True))
