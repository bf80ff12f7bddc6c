"""Assign a rule to every op that relevance reaches: the composite's, or the vocabulary's default."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zennit.rules
import zennit.types
from torch import Tensor, fx, nn
from zennit.core import BasicHook, Composite, Hook
from zennit.layer import Sum

from .composites import check_names, names_of
from .errors import CaptureError, CompositeError, RuleError, UnsupportedOpError
from .frames import warn
from .graph import carriers, name_of_target
from .place import module_calls, module_path, where
from .reading import unwrap
from .rules.base import Gradient, Pass, Rule, Transpose
from .rules.basic import BasicRule, is_basic
from .rules.hook import HookRule
from .values import on_the_cpu
from .vocabulary import Op, Slot, lookup, slots_of

__all__ = ["Step", "Unsupported", "assign"]


@dataclass(frozen=True)
class Step:
    """One step of the relevance pass.

    Attributes
    ----------
    node : fx.Node
        The op.
    rule : Rule
        Takes its relevance on.
    operands : dict of Slot to fx.Node
        Which it goes to.
    by_composite : bool
        Whether the composite gave the rule, and not the vocabulary.
    """

    node: fx.Node
    rule: Rule
    operands: Mapping[Slot, fx.Node]
    by_composite: bool


@on_the_cpu
def assign(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    composite: Composite | None,
    *,
    unmatched: str = "error",
    gradient: bool = False,
    last: BasicHook | None = None,
    explained: fx.Node | None = None,
) -> list[Step]:
    """The steps of the relevance pass, in the order of the forward pass.

    A composite sees modules: an op of a leaf module is offered as that module, one without (a functional ReLU, a sum)
    as the module that stands for it, under its parent's path; in the order of execution, so that "first layer" is the
    first to run.

    Parameters
    ----------
    graph : fx.Graph
        A canonical graph.
    modules : dict of str to nn.Module
        The model's modules by path.
    composite : zennit.core.Composite or None
        Says which rule an op gets; None has nothing to say.
    unmatched : {"error", "gradient", "note"}
        What to do with an op that the vocabulary does not have, or has no rule for; "note": give it `Unsupported`.
    gradient : bool
        Whether what the composite leaves gets the plain gradient, in place of the vocabulary's default.
    explained : fx.Node or None
        The value that relevance starts from; None for the output.
    last : BasicHook or None
        The rule of the op that gives the output, whatever the composite says. Structure, and what passes relevance
        unchanged, may stand between that op and the output.

    Raises
    ------
    CaptureError
        If the output does not depend on a floating-point input.
    CompositeError
        If the composite matches nothing, or gives a rule to a module that has no single op to apply it to.
    RuleError
        If a rule cannot be applied to an op.
    UnsupportedOpError
        If relevance reaches an op that the vocabulary does not have, or has no rule for.
    """
    if modules and composite is not None:
        check_names(composite, modules)
    output: Any = explained or next(node for node in graph.nodes if node.op == "output").args[0]
    active = carriers(node for node in graph.nodes if node.op == "placeholder" and _is_floating(node))
    if output not in active:
        raise CaptureError("the output that is explained does not depend on any floating-point input")
    reachable = _reachable(output, active)
    given, non_negative = _offer(graph, reachable, None if composite is None else _Offers(composite, modules))
    steps: list[Step] = []
    reached, final = {output}, {output}
    for node in reversed(graph.nodes):
        if node not in reached or node.op != "call_function":
            continue
        if node.target is operator.getitem:
            _check_taken(node, unmatched)
            reached.add(node.args[0])
            final |= {node.args[0]} if node in final else set()
            continue
        op, operands, rule = _entry(node, active, unmatched)
        if rule is None and node in given:
            rule = _rule_of(*given[node], node, op)
        elif rule is None:
            rule = Gradient() if gradient else _default(node, op, operands, unmatched)
        if last is not None and node in final:
            if isinstance(rule, Pass | Transpose):
                final.update(operands.values())
            else:
                rule = BasicRule(last.copy())
        operands = {slot: operands[slot] for slot in rule.receivers(list(operands))}
        _place(rule, node, op, operands, all(operand in non_negative for operand in operands.values()))
        steps.append(Step(node, rule, operands, node in given))
        reached.update(operands.values())
    return steps[::-1]


def _reachable(output: fx.Node, active: set[fx.Node]) -> set[fx.Node]:
    """The nodes that relevance may come to: not those whose value is only read as another op's (`graph.known`)."""
    found, todo = {output}, [output]
    while todo:
        node = todo.pop()
        op = lookup(unwrap(node)[0]) if node.op == "call_function" else None
        operands = node.all_input_nodes if op is None else slots_of(node, op, lambda operand: True).values()
        for operand in operands:
            if operand in active and operand not in found:
                found.add(operand)
                todo.append(operand)
    return found


def _offer(
    graph: fx.Graph, reachable: set[fx.Node], offers: _Offers | None
) -> tuple[dict[fx.Node, tuple[Hook, nn.Module]], set[fx.Node]]:
    """What the composite gives to the ops, in the order of execution; and which values are known to be non-negative."""
    given: dict[fx.Node, tuple[Hook, nn.Module]] = {}
    non_negative: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            non_negative |= {node} if node.args[0] in non_negative else set()
            continue
        op = lookup(unwrap(node)[0])
        if op is None:
            continue
        inputs = slots_of(node, op, lambda operand: True).values()
        if op.non_negative(node, bool(inputs) and all(operand in non_negative for operand in inputs)):
            non_negative.add(node)
        if offers is not None and node in reachable and (found := offers.rule(node, op)) is not None:
            given[node] = found
    if offers is not None:
        offers.check()
    return given, non_negative


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _check_taken(item: fx.Node, unmatched: str) -> None:
    """Raise if relevance comes to an output that is not the one that a rule takes it from: it would be lost."""
    source, index = item.args
    assert isinstance(source, fx.Node)
    op = lookup(unwrap(source)[0])
    known = op is not None or unmatched == "gradient"
    if known and index != 0 and _is_floating(item) and not (op is not None and op.structural):
        raise RuleError(
            f"relevance reaches output {index} of {where(source)}, and a rule takes that of output 0 alone: register "
            "an op for each output (see docs/extend.md)"
        )


class Unsupported(Gradient):
    """What stands for the rule of an op that has none.

    Parameters
    ----------
    why : UnsupportedOpError
        Says what to do.
    """

    def __init__(self, why: UnsupportedOpError) -> None:
        super().__init__()
        self.why = why


def _entry(node: fx.Node, active: set[fx.Node], unmatched: str) -> tuple[Op, dict[Slot, fx.Node], Rule | None]:
    """The vocabulary's entry of an op, and the operands that relevance can flow to; a rule, if there is no entry.

    A parameter that depends on the input (a convolution with weights of its own for each sample) is held constant, as
    a gate is.
    """
    target, args, _ = unwrap(node)
    carries = lambda operand: operand in active and _is_floating(operand)
    op = lookup(target)
    operands = {} if op is None else slots_of(node, op, carries)
    if op is not None and operands:
        return op, operands, None
    if op is not None and op.structural:
        return op, operands, Transpose()  # What it moves is a constant: of the input it reads the shape, or the place.
    why = UnsupportedOpError(
        f"fxlrp has no rule for {where(node)}"
        + ("" if op is None else f", of which only {', '.join(op.params) or 'options'} depend on the input")
        + f". Register one with fxlrp.vocabulary.register(torch.ops.{name_of_target(target)}, default=...) (see "
        "docs/extend.md), or give it the plain gradient with unmatched='gradient'."
    )
    op = Op(default=lambda node, slots: None, inputs=tuple(range(len(args))))
    return op, slots_of(node, op, carries), _without_rule(why, unmatched)


def _default(node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node], unmatched: str) -> Rule:
    rule: Any = op.default(node, slots)
    if isinstance(rule, Rule):
        # A rule is placed at its op: one that a default gives to several is not to be theirs together.
        return copy.deepcopy(rule)
    if rule is not None:
        given = f"the class {rule.__name__}" if isinstance(rule, type) else f"a {type(rule).__name__}"
        raise RuleError(
            f"the vocabulary's default for {where(node)} gives {given}, where an instance of fxlrp.rules.Rule is due "
            "(of a zennit BasicHook, fxlrp.rules.BasicRule makes one)"
        )
    why = UnsupportedOpError(
        f"fxlrp has no rule for {where(node)} where the operands {sorted(slots)} depend on the input. Register one "
        "with fxlrp.vocabulary.register (see docs/extend.md), or give it the plain gradient with unmatched='gradient'."
    )
    return _without_rule(why, unmatched)


def _without_rule(why: UnsupportedOpError, unmatched: str) -> Rule:
    if unmatched == "error":
        raise why
    return Gradient() if unmatched == "gradient" else Unsupported(why)


_LAYERS = (zennit.types.Linear, zennit.types.BatchNorm, zennit.types.AvgPool, zennit.types.Activation, Sum)
"""What zennit's own composites have rules for."""


class _Offers:
    """Offers ops to a composite, one after another, and notices what the composite would not see done.

    As in zennit, a container is offered too, in front of its parts: a composite may note in its context where it is.
    """

    def __init__(self, composite: Composite, modules: Mapping[str, nn.Module]) -> None:
        self._composite, self._modules = composite, modules
        self._context: dict[Any, Any] = {}
        self._hooks: dict[str, Any] = {}
        self._with_ops: set[str] = set()
        self._given: dict[str, fx.Node] = {}
        self._matched: set[str] = set()
        self._left: fx.Node | None = None

    def rule(self, node: fx.Node, op: Op) -> tuple[Hook, nn.Module] | None:
        """The hook that the composite has for `node`, with the module that it was offered as."""
        path = module_path(node)
        module, stand_in = self._modules.get(path), op.stand_in(node)
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
            hook = self._composite.module_map(self._context, path, stand_in)
            if hook is not None:
                self._matched.add(path)
                return hook, stand_in
        if self._left is None and isinstance(module if is_module else stand_in, _LAYERS):
            self._left = node
        return None

    def _of_modules(self, node: fx.Node) -> Any:
        """Offer the modules that `node` lies in, a leaf at each call, a container once; the innermost one's hook."""
        hook = None
        for path, call in module_calls(node) or [("", "")]:
            module = self._modules.get(path)
            if module is None:
                return None
            key = call if _is_leaf(module) else path
            if key not in self._hooks:
                self._hooks[key] = self._composite.module_map(self._context, path, module)
            hook = self._hooks[key]
        return hook

    def _once(self, node: fx.Node, path: str, module: Any, stand_in: nn.Module | None) -> None:
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


def _only_contains(module: nn.Module) -> bool:
    """Whether a module has parts and no tensor of its own: one that has is a layer, if one that was folded away."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return not _is_leaf(module) and not own


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _rule_of(hook: Any, module: nn.Module, node: fx.Node, op: Op) -> Rule:
    if isinstance(hook, zennit.rules.Pass) and type(hook).backward is zennit.rules.Pass.backward:
        return Transpose() if op.clips else Pass()
    if is_basic(hook):
        copied: Any = hook.copy()
        return BasicRule(copied)
    if isinstance(hook, Hook):
        return HookRule(hook.copy(), module)
    raise RuleError(f"the composite gives {where(node)} a {type(hook).__name__}, which is not a zennit Hook")


def _place(rule: Rule, node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node], non_negative: bool) -> None:
    target, args, _ = unwrap(node)
    from_outside = all(operand.op == "placeholder" for operand in slots.values())
    rule.place(op, target, list(slots), non_negative=non_negative, from_outside=from_outside, where=where(node))
    if rule.passes:
        _check_passes(rule, node, slots)
    if not isinstance(rule, BasicRule) or not slots:
        return
    operand = next(iter(slots.values()))
    params = {name: args[p] for name, p in op.params.items() if p < len(args) and args[p] is not None}
    shapes = {name: _shape(param) for name, param in params.items()}
    channels = _shape(operand)[1:2]
    # Full-sized where it is small: a box may be given as an image.
    small = [2, *channels, *(size if size <= 4 else 4 for size in _shape(operand)[2:])][: len(_shape(operand))]
    try:
        rule.analyse(small, shapes)
    except RuleError as error:
        raise RuleError(f"{type(rule.hook).__name__} cannot be the rule of {where(node)}: {error}") from error


def _check_passes(rule: Rule, node: fx.Node, slots: Mapping[Slot, fx.Node]) -> None:
    value = node.meta["val"]
    value = value if isinstance(value, Tensor) else value[0]
    if len(slots) != 1 or any(operand.meta["val"].shape != value.shape for operand in slots.values()):
        raise RuleError(
            f"{type(rule).__name__} cannot be the rule of {where(node)}: it needs one input, of the output's shape. "
            "Use Norm, which shares relevance in proportion."
        )


def _shape(node: Any) -> list[int]:
    return [int(size) if isinstance(size, int) else 2 for size in node.meta["val"].shape]
