"""A branch that is the forward pass again, whose input is zero, or that nothing reads, is not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...rules.base import Site
from ...rules.zennit import probe
from ...rules.zennit.basic import BasicRule
from ...rules.zennit.branch import Branch
from .emitted import Emitted

__all__ = ["leave_out_known_branches"]


def leave_out_known_branches(emitted: Emitted) -> None:
    """Note of each branch what its modifiers keep, and whether its input is zero or its gradient unread.

    Of the model's input nothing is known before it is there: what holds if it is non-negative is kept beside.
    """
    for written, call, step, rule in emitted.basic_rules():
        site = step.site
        branches = _found_out(rule, rule.branches, site, site.non_negative)
        looked_at = _found_out(rule, rule.branches, site, True) if site.from_outside else ()
        emitted.replace_rule(written, call, replace(rule, branches=branches, of_non_negative=looked_at))


def _found_out(rule: BasicRule, branches: Sequence[Branch], site: Site, non_negative: bool) -> tuple[Branch, ...]:
    shape, shapes = site.input_shape, dict(site.param_shapes)
    keeps_output = [probe.is_identity(b.output_modifier, (64,), non_negative=False) for b in branches]
    affine = site.op.at_zero is not None
    zero = [
        i
        for i, branch in enumerate(branches)
        if affine and keeps_output[i] and probe.is_zero(branch.input_modifier, shape, non_negative=non_negative)
    ]
    return tuple(
        replace(
            branch,
            keeps_input=probe.is_identity(branch.input_modifier, shape, non_negative=non_negative),
            keeps_params=probe.keeps_params(rule.modifying(branch, site), shapes),
            keeps_output=keeps_output[i],
            zero_input=i in zero,
            reads_gradient=probe.reads_gradient(rule.hook.reducer, len(branches), i, zero),
        )
        for i, branch in enumerate(branches)
    )
