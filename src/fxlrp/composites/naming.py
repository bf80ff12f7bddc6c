"""Which composite is meant: itself, its name, or fxlrp's default; and what it names, and brings along."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import Tensor
from zennit.canonizers import Canonizer, CompositeCanonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import COMPOSITES, EpsilonGammaBox
from zennit.core import Composite
from zennit.torchvision import (
    ResNetBasicBlockCanonizer,
    ResNetBottleneckCanonizer,
    ResNetCanonizer,
    VGGCanonizer,
)

from ..errors import CompositeError, MissingExtraError
from ..wording import did_you_mean, near_to
from .published import decreasing_gamma, tutorial

__all__ = ["DEFAULT", "Bounds", "Picklable", "check_names", "foreign_canonizers", "names_of", "resolve"]

Bounds = tuple[float | Tensor, float | Tensor]
"""The lowest and the highest value of an input: numbers, or tensors that broadcast to it."""

DEFAULT = "epsilon_plus_flat"
"""The composite of ``composite=None``; how it was chosen: ``docs/composites.md``."""

BOX: Bounds = (-3.0, 3.0)
"""Input bounds of a composite that needs some and is given by its name: ImageNet-normalized photographs lie within."""

_OF_BOUNDS: dict[str, Callable[..., Composite]] = {
    "epsilon_gamma_box": EpsilonGammaBox,
    "tutorial": tutorial,
    "decreasing_gamma": decreasing_gamma,
}
"""The composites that need the input's bounds."""

_OURS = (
    SequentialMergeBatchNorm,
    NamedMergeBatchNorm,
    VGGCanonizer,
    ResNetCanonizer,
    ResNetBottleneckCanonizer,
    ResNetBasicBlockCanonizer,
)
"""Canonizers whose work the graph's own canonization does."""


def resolve(composite: Composite | str | None, bounds: Bounds = BOX) -> Composite:
    """A zennit composite, from itself, from its name (`fxlrp.composites.listed`), or the default for None.

    Parameters
    ----------
    composite : zennit.core.Composite, str or None
        As of `fxlrp.convert`.
    bounds : tuple
        Of the input: for a composite that needs them and is given by its name.

    Raises
    ------
    CompositeError
        If there is none of that name, or it is something else.
    """
    if composite is None:
        composite = DEFAULT
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise CompositeError(
            f"a composite is a zennit Composite, its name, or None, not {composite!r} ({type(composite).__name__})"
        )
    if composite in _OF_BOUNDS:
        low, high = bounds
        return _OF_BOUNDS[composite](low=low, high=high)
    if composite not in COMPOSITES:
        names = sorted({*COMPOSITES, *_OF_BOUNDS})
        raise CompositeError(
            f"there is no composite '{composite}'{did_you_mean(composite, names)} The names are: {', '.join(names)}."
        )
    return COMPOSITES[composite]()


def foreign_canonizers(composite: Composite) -> list[Canonizer]:
    """The composite's canonizers whose work has to be done before the capture: those that fxlrp does not know."""
    return list(_foreign(composite.canonizers))


def _foreign(canonizers: Collection[Canonizer]) -> Iterator[Canonizer]:
    for canonizer in canonizers:
        if type(canonizer) is CompositeCanonizer:
            yield from _foreign(canonizer.canonizers)
        elif type(canonizer) not in _OURS:
            yield canonizer


def check_names(composite: Composite, paths: Collection[str]) -> None:
    """Check that a composite which goes by names names modules of the model.

    Raises
    ------
    CompositeError
        If it names a module that is not there.
    """
    for name in names_of(composite):
        if name not in paths:
            near = near_to(name, paths)
            raise CompositeError(f"the composite names the module '{name}', which the model has not.{near}")


def names_of(composite: Composite) -> list[str]:
    """The names that a composite maps to rules."""
    found = [name for part in getattr(composite, "composites", ()) for name in names_of(part)]
    for names, _ in getattr(composite, "name_map", None) or ():
        found.extend((names,) if isinstance(names, str) else names)
    return found


class Picklable:
    """A composite, in a form that can be pickled: rules hold functions that pickle does not take."""

    def __init__(self, value: Composite | str | None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, object]) -> Picklable:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        if self.value is None or isinstance(self.value, str):
            return Picklable, (self.value,)
        try:
            import cloudpickle
        except ImportError as error:
            raise MissingExtraError(
                "saving a twin with a composite that is not given by its name", "cloudpickle", "save"
            ) from error
        return _unpickled, (cloudpickle.dumps(self.value),)


def _unpickled(data: bytes) -> Picklable:
    import cloudpickle

    return Picklable(cloudpickle.loads(data))
