"""Rules by depth: composites that give each range of a model's linear layers a rule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zennit.types
from torch import nn
from zennit.canonizers import Canonizer
from zennit.composites import layer_map_base
from zennit.core import Composite, Hook

from .depth import Place, place_of
from .where import Where, check_apart, layers_of, overlap, understood

__all__ = ["ByLayer", "by_layer"]

LayerMap = Sequence[tuple[Any, Hook]]


def by_layer(
    rules: Sequence[tuple[Where, Hook]],
    *,
    first: Hook | None = None,
    layer_map: LayerMap | None = None,
    stabilizer: Any = 1e-6,
    canonizers: list[Canonizer] | None = None,
) -> ByLayer:
    """A composite that gives ranges of the linear layers (fully connected ones and convolutions) rules of their own.

    Parameters
    ----------
    rules : sequence of (where, zennit.core.Hook)
        `where` says which layers. Ints count the linear layers in the order of execution, from 0: a `range`, a `slice`
        or a pair (start, stop), in which negative ones count from the end, or one int alone. A pair of floats,
        (start, stop), is a share of the depth: 0.0 is the input, 1.0 the output, and a layer belongs to the share in
        which its middle, (index + 1/2) / count, lies. Layers that none of them names get no rule: like zennit, fxlrp
        leaves them to the gradient.
    first : zennit.core.Hook or None
        The rule of the first linear layer, whatever `rules` say of it.
    layer_map : sequence of (type, zennit.core.Hook) or None
        The rules of all other types of modules, as of `zennit.composites.LayerMapComposite`. None is zennit's own:
        activations and batch norms pass, sums and average pools share in proportion.
    stabilizer : float or callable
        Of zennit's own map for the others.
    canonizers : list of zennit.canonizers.Canonizer or None
        For zennit's attributors; fxlrp needs none.

    Returns
    -------
    ByLayer
        A `zennit.core.Composite`. Under zennit itself, which looks at a model's modules, their order counts.

    Raises
    ------
    CompositeError
        If a `where` is no range, or empty, or a share beyond [0, 1], or if two of them share a layer: now, if that
        can be told, or when the number of layers is known. Then also if the model has no layer of a range.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> from zennit.rules import Epsilon, Gamma, ZBox
    >>> rules = [((0.0, 0.5), Gamma(0.25)), ((0.5, 1.0), Epsilon(0.25))]
    >>> composite = fxlrp.composites.by_layer(rules, first=ZBox(low=-3.0, high=3.0))
    >>> model = torchvision.models.squeezenet1_1(weights=None).eval()
    >>> fxlrp.explain(model, torch.randn(1, 3, 64, 64), composite=composite).relevance.shape
    torch.Size([1, 3, 64, 64])
    """
    return ByLayer(rules, first=first, layer_map=layer_map, stabilizer=stabilizer, canonizers=canonizers)


class ByLayer(Composite):
    """What `by_layer` gives; its parameters are described there."""

    def __init__(
        self,
        rules: Sequence[tuple[Where, Hook]],
        *,
        first: Hook | None = None,
        layer_map: LayerMap | None = None,
        stabilizer: Any = 1e-6,
        canonizers: list[Canonizer] | None = None,
    ) -> None:
        self.rules = [(understood(where), rule) for where, rule in rules]
        self.first = first
        self.layer_map = list(layer_map_base(stabilizer) if layer_map is None else layer_map)
        check_apart([where for where, _ in self.rules])
        super().__init__(module_map=self._rule_of, canonizers=canonizers)

    def _rule_of(self, context: dict[Any, Any], name: str, module: nn.Module) -> Hook | None:
        place = place_of(context, name, module)
        if place is not None:
            return self.rule_at(place)
        if isinstance(module, zennit.types.Linear):
            return None
        return next((hook for types, hook in self.layer_map if isinstance(module, types)), None)

    def rule_at(self, place: Place) -> Hook | None:
        """The rule of the linear layer at a place, None if there is none."""
        if place.index == 0 and self.first is not None:
            return self.first
        found = [(where, rule) for where, rule in self.rules if place.index in layers_of(where, place.count)]
        if len(found) > 1:
            raise overlap(found[0][0], found[1][0], f": both have layer {place.index} of {place.count}")
        return found[0][1] if found else None
