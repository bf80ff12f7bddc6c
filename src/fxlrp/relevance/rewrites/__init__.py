"""What the relevance pass can do without, each thing left out by a rewrite of its own; none changes the relevance.

The pass is written plainly: every branch of every rule is evaluated as its hook has it. A rewrite finds out, by trying
the rules' functions on numbers, what need not be computed, whatever the rule's class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import fx

from ...given import check_choice
from ...graph import drop_dead_code
from ...rules.zennit.memory import remembering
from ...values import on_the_cpu
from .cheaper_functions import use_cheaper_functions
from .constant_params import modify_constants_once
from .emitted import Emitted
from .fewest_products import compute_fewest_products
from .known_branches import leave_out_known_branches
from .one_sided import clip_on_one_side
from .positive_products import share_positive_products
from .scale_outside import keep_scale_outside
from .shut_units import leave_out_shut_units
from .side_by_side import transpose_side_by_side
from .winners import keep_winners_of_max_pooling

__all__ = ["REWRITES", "Emitted", "optimize", "prepare", "rewrites_of"]

REWRITES: dict[str, Callable[[Emitted], None]] = {
    "known_branches": leave_out_known_branches,
    "positive_products": share_positive_products,
    "shut_units": leave_out_shut_units,
    "fewest_products": compute_fewest_products,
    "side_by_side": transpose_side_by_side,
    "cheaper_functions": use_cheaper_functions,
    "constant_params": modify_constants_once,
    "scale_outside": keep_scale_outside,
}
"""The rewrites by name, in their order."""


FORWARD: dict[str, Callable[[fx.GraphModule], None]] = {
    "max_pool_winners": keep_winners_of_max_pooling,
    "one_sided_clips": clip_on_one_side,
}
"""Those that change the forward pass: what it gives out need not be found again, what never holds is not asked."""


def rewrites_of(given: bool | Collection[str]) -> tuple[str, ...]:
    """The names of the rewrites that a user asks for: all, none, or these.

    Raises
    ------
    InputError
        If there is no such rewrite.
    """
    if isinstance(given, bool):
        return (*FORWARD, *REWRITES) if given else ()
    for name in given:
        check_choice("a rewrite of the relevance pass", name, (*FORWARD, *REWRITES))
    return tuple(given)


def prepare(canonical: fx.GraphModule, names: Collection[str]) -> None:
    """Run those of the rewrites of these names that are about the forward pass, in place."""
    for name, rewrite in FORWARD.items():
        if name in names:
            rewrite(canonical)
            drop_dead_code(canonical.graph)


@on_the_cpu
def optimize(emitted: Emitted, names: Collection[str]) -> None:
    """Run the rewrites of these names on an emitted pass, in place."""
    with remembering():
        for name, rewrite in REWRITES.items():
            if name in names:
                rewrite(emitted)
