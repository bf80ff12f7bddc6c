"""Composites: zennit's by name, and those of the literature that it has not; which one is meant, and what it names."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from zennit.canonizers import Canonizer

    from .depth import Place, place_of, standing
    from .layers import ByLayer, by_layer
    from .listing import Listed, Listing, listed
    from .naming import DEFAULT, Bounds, Picklable, check_names, foreign_canonizers, names_of, resolve
    from .pattern import Pattern, PatternAttribution, PatternRule
    from .published import decreasing_gamma, tutorial

__all__ = [
    "DEFAULT",
    "Bounds",
    "ByLayer",
    "Listed",
    "Listing",
    "Pattern",
    "PatternAttribution",
    "PatternRule",
    "Picklable",
    "Place",
    "by_layer",
    "check_names",
    "decreasing_gamma",
    "foreign_canonizers",
    "listed",
    "names_of",
    "pattern_attribution",
    "place_of",
    "resolve",
    "standing",
    "tutorial",
]

_HOMES = {
    "depth": ("Place", "place_of", "standing"),
    "layers": ("ByLayer", "by_layer"),
    "listing": ("Listed", "Listing", "listed"),
    "naming": ("DEFAULT", "Bounds", "Picklable", "check_names", "foreign_canonizers", "names_of", "resolve"),
    "pattern": ("Pattern", "PatternAttribution", "PatternRule"),
    "published": ("decreasing_gamma", "tutorial"),
}


def pattern_attribution(
    model: nn.Module, loader: Iterable[Any], *, canonizers: list[Canonizer] | None = None
) -> PatternAttribution:
    """PatternAttribution, with the patterns of a model estimated from data: see `fxlrp.patterns.pattern_attribution`.

    Parameters
    ----------
    model : nn.Module
        The model, in the mode in which it is explained.
    loader : iterable
        Gives inputs, or tuples of which the first is the input.
    canonizers : list of zennit.canonizers.Canonizer or None
        For zennit's attributors.
    """
    # To estimate them is to capture the model, and what captures imports composites.
    return import_module("fxlrp.patterns").pattern_attribution(model, loader, canonizers=canonizers)


def __getattr__(name: str) -> Any:
    # Imported when asked for: `fxlrp explain --help` names composites, and is not to wait for torch.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module 'fxlrp.composites' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
