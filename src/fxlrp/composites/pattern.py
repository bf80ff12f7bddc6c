"""PatternAttribution as a composite: each weight times its input's part in the signal (Kindermans et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from zennit.canonizers import Canonizer
from zennit.core import BasicHook, Composite, Hook

from ..errors import CompositeError
from .depth import place_of

__all__ = ["Pattern", "PatternAttribution", "PatternRule"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """The pattern of a linear layer.

    Attributes
    ----------
    path : str
        The module path that a composite is offered the layer under.
    weight : Tensor or None
        Of the layer's weight's shape; None of a layer that no relevance reaches (in a gate).
    """

    path: str
    weight: Tensor | None


class PatternRule(BasicHook):
    """The gradient with ``w * a`` in place of the weight w: ``R_j = sum_k w_jk a_jk R_k``.

    Parameters
    ----------
    pattern : Tensor
        The pattern a, of the weight's shape. It conserves where the sum of ``w * a`` over a unit's inputs is 1.
    """

    def __init__(self, pattern: Tensor) -> None:
        super().__init__(
            input_modifiers=[lambda input: input],
            param_modifiers=[partial(_patterned, pattern=pattern)],
            output_modifiers=[lambda output: output],
            gradient_mapper=lambda out_grad, outputs: [out_grad],
            reducer=lambda inputs, gradients: gradients[0],
        )


def _patterned(param: Tensor, name: str, *, pattern: Tensor) -> Tensor:
    if name != "weight":
        return param
    if param.shape != pattern.shape:
        raise CompositeError(
            f"a pattern of shape {tuple(pattern.shape)} was estimated for a layer whose weight has the shape "
            f"{tuple(param.shape)}: estimate the patterns of this model"
        )
    return param * pattern.to(param)


class PatternAttribution(Composite):
    """What `fxlrp.composites.pattern_attribution` gives.

    Parameters
    ----------
    patterns : dict of int to Pattern
        By the linear layers' numbers in the order of execution.
    canonizers : list of zennit.canonizers.Canonizer or None
        For zennit's attributors.
    """

    def __init__(self, patterns: Mapping[int, Pattern], canonizers: list[Canonizer] | None = None) -> None:
        self.patterns = dict(patterns)
        self._rules = {i: PatternRule(each.weight) for i, each in patterns.items() if each.weight is not None}
        super().__init__(module_map=self._rule_of, canonizers=canonizers)

    def _rule_of(self, context: dict[Any, Any], name: str, module: nn.Module) -> Hook | None:
        place = place_of(context, name, module)
        if place is None:
            return None
        of_path = [index for index, each in self.patterns.items() if each.path == name]
        if not of_path:
            raise CompositeError(
                f"no pattern was estimated for the linear layer {place.index}, in module '{name}': estimate the "
                "patterns of this model"
            )
        # zennit looks at modules in another order than they may run in.
        return self._rules.get(place.index if place.index in of_path else of_path[0])
