"""The checks that ``pytest --fxlrp-model`` runs. They are in float64, and ask for what must hold of any model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zennit.core import Composite

from ..canonizers import canonize
from ..conversion import convert
from ..twin import Twin
from .assertions import assert_conserves, assert_same_function, relative

Case = tuple[nn.Module, tuple[Tensor, ...]]


def _twin(case: Case, composite: Composite | str) -> Twin:
    model, inputs = case
    return convert(model, composite, example_inputs=inputs)


def test_canonization_keeps_the_function(fxlrp_case: Case) -> None:
    """The canonical form gives the model's output."""
    model, inputs = fxlrp_case
    assert_same_function(canonize(model, inputs), model, inputs)


def test_the_twin_gives_the_models_output(fxlrp_case: Case, fxlrp_composite: Composite | str) -> None:
    """The twin's output is the model's."""
    model, inputs = fxlrp_case
    with torch.no_grad():
        expected = model(*inputs)
    found = _twin(fxlrp_case, fxlrp_composite)(inputs).output
    if isinstance(expected, Tensor):
        assert relative(found, expected) <= 1e-9


def test_no_relevance_leaks(fxlrp_case: Case, fxlrp_composite: Composite | str) -> None:
    """Every unit of relevance is accounted for."""
    assert_conserves(_twin(fxlrp_case, fxlrp_composite), fxlrp_case[1], unconserved=None)


def test_samples_do_not_mix(fxlrp_case: Case, fxlrp_composite: Composite | str) -> None:
    """A sample's relevance does not depend on the others of its batch."""
    twin, inputs = _twin(fxlrp_case, fxlrp_composite), fxlrp_case[1]
    # The first sample, in other company.
    moved = twin(tuple(torch.cat([x[:1], x[:-1]]) for x in inputs), 0).relevance
    for ours, theirs in zip(twin(inputs, 0).relevance, moved, strict=True):
        if ours is not None:
            assert relative(theirs[0], ours[0]) <= 1e-7


def test_relevance_is_finite(fxlrp_case: Case, fxlrp_composite: Composite | str) -> None:
    """There is no NaN, and nothing infinite."""
    for relevance in _twin(fxlrp_case, fxlrp_composite)(fxlrp_case[1]).relevance:
        assert relevance is None or relevance.isfinite().all()
