"""Which rewrites canonization is made of, in their order: fxlrp's own, and those that a user registers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from torch import fx

from ..errors import CaptureError
from ..signature import Target
from ..wording import did_you_mean
from . import batch_norm, simplify
from .absorb import absorb_affine_maps
from .batch_norm import give_statistics_out, read_batch_norms_as_affine
from .constant_maps import read_constants_as_affine_maps, spell_out_what_is_kept
from .fold import fold_affine_maps
from .padding import join_padding_to_its_convolution
from .simplify import (
    give_single_samples_a_batch,
    read_copies_as_written,
    read_dropout_as_product,
    read_instance_norms,
    remove_no_ops,
)

__all__ = ["Rewrite", "are_own", "name_of", "reads", "register", "remove", "rewrites"]

Rewrite = Callable[[fx.GraphModule], None]


class _Registered(NamedTuple):
    rewrite: Rewrite
    reads: Collection[Target]
    before: str | None


_OWN: tuple[Rewrite, ...] = (
    remove_no_ops,
    give_single_samples_a_batch,
    read_copies_as_written,
    read_dropout_as_product,
    read_instance_norms,
    join_padding_to_its_convolution,
    give_statistics_out,
    read_batch_norms_as_affine,
    read_constants_as_affine_maps,
    fold_affine_maps,
    absorb_affine_maps,
    spell_out_what_is_kept,
)
_REGISTERED: list[_Registered] = []


def name_of(rewrite: Rewrite) -> str:
    """A rewrite's name: its function's."""
    function = rewrite.func if isinstance(rewrite, partial) else rewrite
    return getattr(function, "__name__", type(function).__name__)


def register(rewrite: Rewrite, *, reads: Collection[Target] = (), before: str | None = None) -> Rewrite:
    """Add a canonizer of one's own: it runs on every model that is captured from now on.

    Parameters
    ----------
    rewrite : callable
        ``(graph_module) -> None``: edits a graph of ATen ops in place, and keeps f(x).
    reads : collection of torch._ops.OpOverload
        Ops that it looks for, and that fxlrp's vocabulary does not have: without, these are captured spelled out in
        others, where torch can do so.
    before : str or None
        The name of the rewrite that it is to run in front of, see `rewrites`; None for all of them.

    Returns
    -------
    callable
        `rewrite`, so that this may stand as a decorator.

    Raises
    ------
    CaptureError
        If there is no rewrite of the name `before`.
    """
    names = [name_of(each) for each in rewrites()]
    if before is not None and before not in names:
        raise CaptureError(f"there is no rewrite '{before}'{did_you_mean(before, names)} There are: {', '.join(names)}")
    _REGISTERED.append(_Registered(rewrite, frozenset(reads), before))
    return rewrite


def remove(rewrite: Rewrite) -> None:
    """Take out a canonizer that was registered."""
    _REGISTERED[:] = [each for each in _REGISTERED if each.rewrite is not rewrite]


def are_own() -> bool:
    """Whether no rewrite is registered: fxlrp's own go by the graph, and by what is marked `VALUES_READ`."""
    return not _REGISTERED


def reads() -> frozenset[Target]:
    """The ops that rewrites look for: they are to be captured as they are."""
    return frozenset((*simplify.READS, *batch_norm.READS, *(op for each in _REGISTERED for op in each.reads)))


def rewrites(*, threshold_relu: bool = True) -> tuple[Rewrite, ...]:
    """The rewrites, in their order.

    Parameters
    ----------
    threshold_relu : bool
        As for `absorb_affine_maps`.
    """
    absorb = partial(absorb_affine_maps, threshold_relu=threshold_relu)
    found: list[Rewrite] = [absorb if each is absorb_affine_maps else each for each in _OWN]
    for each in _REGISTERED:
        names = [name_of(rewrite) for rewrite in found]
        found.insert(0 if each.before is None else names.index(each.before), each.rewrite)
    return tuple(found)
