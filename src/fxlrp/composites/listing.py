"""The composites there are: what each is for, its formula, and its source. Without torch: `--help` prints the names."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

__all__ = ["COMPOSITES", "Listed", "Listing", "listed"]


@dataclass(frozen=True)
class Listed:
    """A composite in a line.

    Attributes
    ----------
    name : str
        Its name.
    what : str
        What it does.
    formula : str
        Its rules, from the input to the output; R_k is shared out to the inputs j of a unit k.
    source : str
        Where it comes from.
    by_name : bool
        Whether ``convert(model, name)`` knows it; what needs more than the input's bounds is a function of this module.
    """

    name: str
    what: str
    formula: str
    source: str
    by_name: bool = True


class Listing(tuple[Listed, ...]):
    """Composites, to iterate over or to print."""

    __slots__ = ()

    def __str__(self) -> str:
        parts = []
        for each in self:
            how = each.name if each.by_name else f"fxlrp.composites.{each.name}(...)"
            lines = filter(None, (f"{each.what} [{each.source}]", each.formula))
            parts.append("\n".join([how, *(textwrap.indent(textwrap.fill(line, 112), "    ") for line in lines)]))
        return "\n".join(parts)


_EPSILON = "dense: z_jk / (z_k + eps sign z_k)"
_FLAT = "first layer: 1 / n, alike to all inputs"
_ALPHA = "convolutions: 2 z+_jk / z+_k - z-_jk / z-_k"
_LRP0 = "z_jk / z_k"
_GAMMA = "a_j (w_jk + gamma w+_jk) / sum"
_BOX = "first layer: x_i w_ij - l_i w+_ij - h_i w-_ij, over their sum"

COMPOSITES = (
    Listed(
        "epsilon_plus_flat",
        "The default: positive contributions in convolutions; the first layer spreads evenly.",
        f"{_FLAT}; convolutions: z+_jk / z+_k; {_EPSILON}",
        "Kohlbrenner et al. 2020; Lapuschkin et al. 2019",
    ),
    Listed(
        "epsilon_plus",
        "Positive contributions in convolutions, down to the pixels.",
        f"convolutions: z+_jk / z+_k; {_EPSILON}",
        "Kohlbrenner et al. 2020",
    ),
    Listed(
        "epsilon_alpha2_beta1",
        "Positive contributions twice, negative ones against them.",
        f"{_ALPHA}; {_EPSILON}",
        "Bach et al. 2015; Kohlbrenner et al. 2020",
    ),
    Listed(
        "epsilon_alpha2_beta1_flat",
        "The same, and the first layer spreads evenly.",
        f"{_FLAT}; {_ALPHA}; {_EPSILON}",
        "Kohlbrenner et al. 2020",
    ),
    Listed(
        "epsilon_gamma_box",
        "Positive weights favoured in convolutions, bounds for the pixels (by its name, the input's).",
        f"{_BOX}; convolutions: {_GAMMA}, gamma 0.25; {_EPSILON}",
        "Montavon et al. 2019",
    ),
    Listed(
        "tutorial",
        "Box, gamma, epsilon, LRP-0 by depth (VGG-16: layers 0, 1-16, 17-30, 31-n).",
        f"{_BOX}; up to 7/16: {_GAMMA}, gamma 0.25; up to 13/16: z_jk / (z_k + eps sign z_k), eps 0.25; then {_LRP0}",
        "Montavon 2021; Bermudez Schettino 2022, table 2.4",
    ),
    Listed(
        "decreasing_gamma",
        "Box, then gamma, which decreases towards the output (VGG-16: layers 0, 2-10, 11-17, 18-24, 25-).",
        f"{_BOX}; {_GAMMA}, gamma 0.5 up to 5/16, 0.25 up to 8/16, 0.1 up to 11/16, then 0",
        "Eberle et al. 2022; Bermudez Schettino 2022, table 2.3",
    ),
    Listed(
        "by_layer",
        "Any rules, by ranges of the linear layers in the order of execution, or by shares of the depth.",
        "as the rules given",
        "the layer indices of Bermudez Schettino 2022, tables 2.3-2.4",
        by_name=False,
    ),
    Listed(
        "pattern_attribution",
        "Each weight times its input's part in the signal, which is estimated from data.",
        "w_jk a_jk, with a = cov(x, y) / w^T cov(x, y), in front of a ReLU over inputs that open it",
        "Kindermans et al. 2018; Kohlbrenner et al. 2020",
        by_name=False,
    ),
    Listed(
        "guided_backprop",
        "The gradient, of which ReLUs hand only what is positive on.",
        "ReLU: [z > 0] [R > 0] R; all else: the gradient",
        "Springenberg et al. 2015",
    ),
    Listed(
        "deconvnet",
        "The gradient, of which ReLUs hand on what is positive, open or not.",
        "ReLU: [R > 0] R; all else: the gradient",
        "Zeiler and Fergus 2014",
    ),
    Listed(
        "excitation_backprop",
        "Positive weights alone, everywhere.",
        "all linear layers: a_j w+_jk / sum",
        "Zhang et al. 2016",
    ),
    Listed(
        "beta_smooth",
        "The gradient, with ReLUs as smooth as a softplus.",
        "ReLU: sigmoid(beta z) R, beta 10; all else: the gradient",
        "Dombrowski et al. 2019",
    ),
)
"""Zennit's own, and ours."""


def listed() -> Listing:
    """All composites: zennit's, what you registered there, and the functions of `fxlrp.composites`.

    Returns
    -------
    Listing
        Iterate over it for each composite's name, formula and source; print it to read them.

    Examples
    --------
    >>> import fxlrp
    >>> [each.name for each in fxlrp.composites.listed() if not each.by_name]
    ['by_layer', 'pattern_attribution']
    """
    from zennit.composites import COMPOSITES as REGISTERED

    known = {each.name for each in COMPOSITES}
    further = [
        Listed(name, _summary(kind), "", kind.__module__) for name, kind in REGISTERED.items() if name not in known
    ]
    return Listing((*COMPOSITES, *further))


def _summary(kind: type) -> str:
    """The first sentences of a docstring."""
    return " ".join((kind.__doc__ or kind.__name__).split("\n\n")[0].split())
