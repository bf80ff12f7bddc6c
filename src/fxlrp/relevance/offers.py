"""Offer the ops of a graph to a composite, which sees modules, and notice what it would not see done."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import zennit.types
from torch import fx, nn
from zennit.core import Composite, Hook
from zennit.layer import Sum

from ..composites import Place, names_of, standing
from ..errors import CompositeError
from ..frames import warn
from ..ops import Op
from ..place import module_calls, module_path, where
from ..rules.table import stand_in_of

__all__ = ["Offers"]

_LAYERS = (zennit.types.Linear, zennit.types.BatchNorm, zennit.types.AvgPool, zennit.types.Activation, Sum)
"""What zennit's own composites have rules for."""


class Offers:
    """Offers ops to a composite, one after another, and notices what the composite would not see done.

    As in zennit, a container is offered too, in front of its parts: a composite may note in its context where it is.
    Of a linear layer, it may ask how deep it stands (`fxlrp.composites.place_of`).

    Parameters
    ----------
    composite : Composite
        Is asked.
    modules : dict of str to nn.Module
        The model's modules by path.
    nodes : iterable of fx.Node
        The ops that will be offered, in the order of execution.
    """

    def __init__(self, composite: Composite, modules: Mapping[str, nn.Module], nodes: Iterable[fx.Node]) -> None:
        self._composite, self._modules = composite, modules
        self._places = _places(nodes, modules)
        self._context: dict[str, object] = {}
        self._hooks: dict[str, Hook | None] = {}
        self._with_ops: set[str] = set()
        self._given: dict[str, fx.Node] = {}
        self._matched: set[str] = set()
        self._left: fx.Node | None = None

    def rule(self, node: fx.Node, op: Op) -> tuple[Hook, nn.Module] | None:
        """The hook that the composite has for `node`, with the module that it was offered as."""
        path = module_path(node)
        module, stand_in = self._modules.get(path), stand_in_of(node)
        self._with_ops.add(path)
        hook = self._of_modules(node)
        if op.structural:
            return None
        is_module = module is not None and (_is_leaf(module) or isinstance(module, type(stand_in)))
        if module is not None and is_module and hook is not None:
            self._matched.add(path)
            self._once(node, path, module, stand_in)
            return hook, module
        if stand_in is not None and not isinstance(module, type(stand_in)):
            hook = self._asked(node, path, stand_in)
            if hook is not None:
                self._matched.add(path)
                return hook, stand_in
        if self._left is None and isinstance(module if is_module else stand_in, _LAYERS):
            self._left = node
        return None

    def _of_modules(self, node: fx.Node) -> Hook | None:
        """Offer the modules that `node` lies in, a leaf at each call, a container once; the innermost one's hook."""
        hook = None
        for path, call in module_calls(node) or [("", "")]:
            module = self._modules.get(path)
            if module is None:
                return None
            key = call if _is_leaf(module) else path
            if key not in self._hooks:
                self._hooks[key] = self._asked(key, path, module)
            hook = self._hooks[key]
        return hook

    def _asked(self, key: Hashable, path: str, module: nn.Module) -> Hook | None:
        with standing(self._places.get(key)):
            return self._composite.module_map(self._context, path, module)

    def _once(self, node: fx.Node, path: str, module: nn.Module, stand_in: nn.Module | None) -> None:
        """A rule for a module speaks of all of it: so the module must be one op."""
        if isinstance(module, type(stand_in)):
            return
        key = module_calls(node)[-1][1]
        first = self._given.setdefault(key, node)
        if first is not node:
            raise CompositeError(
                f"the composite gives '{path}' ({type(module).__name__}) a rule, but this module is made of several "
                f"ops: {where(first)} and {where(node)}. Give rules to its parts: make each a module, or name their "
                "types."
            )

    def check(self) -> None:
        """Raise if the composite matched nothing, or is about a container; warn of what it does not say."""
        named, beside = set(names_of(self._composite)), []
        for path, module in self._modules.items():
            if path in self._with_ops or not _only_contains(module):
                continue
            if path not in named and self._hooks.get(path) is None:
                continue
            place = f"'{path}'" if path else "the model itself"
            place += f" ({type(module).__name__})"
            # A map of everything has rules for the parts as well, and these are what it is about.
            if path not in named and any(not path or matched.startswith(f"{path}.") for matched in self._matched):
                beside.append(place)
                continue
            raise CompositeError(
                f"the composite gives a rule to {place}, which contains other modules: a rule is for one op. Name its "
                "parts instead."
            )
        if beside:
            more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
            warn(
                f"the composite gives rules to {', '.join(beside[:3])}{more}, and to modules in there: a rule is for "
                "one op, so those of the parts hold. Let it give None to a module that has children."
            )
        if not self._matched:
            self._nothing()

    def _nothing(self) -> None:
        name = type(self._composite).__name__
        if self._left is not None:
            raise CompositeError(
                f"the composite {name} matches none of the model's ops, such as {where(self._left)}: every op would be "
                "left to its default. Check the types and names that it maps."
            )
        warn(f"the composite {name} has a rule for none of the model's ops: each gets its default, see fxlrp.check.")


def _places(nodes: Iterable[fx.Node], modules: Mapping[str, nn.Module]) -> dict[Hashable, Place]:
    """Where each linear layer stands: by the call of its module, or by its node where it is a functional call."""
    found: dict[Hashable, int] = {}
    for node in nodes:
        if isinstance(stand_in_of(node), zennit.types.Linear):
            module = modules.get(module_path(node))
            is_module = isinstance(module, zennit.types.Linear) and _is_leaf(module)
            found.setdefault(module_calls(node)[-1][1] if is_module else node, len(found))
    return {key: Place(index, len(found)) for key, index in found.items()}


def _only_contains(module: nn.Module) -> bool:
    """Whether a module has parts and no tensor of its own: one that has is a layer, if one that was folded away."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return not _is_leaf(module) and not own


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
