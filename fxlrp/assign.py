"""Assign a rule to every op that relevance reaches: the composite's, or the vocabulary's default."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zennit.rules
from torch import Tensor, fx, nn
from zennit.core import BasicHook, Composite, Hook

from .composites import check_names
from .errors import CaptureError, CompositeError, RuleError, UnsupportedOpError
from .graph import carriers, is_known, module_calls, module_path, name_of_target, unwrap, where
from .rules.base import Gradient, Pass, Rule, Transpose
from .rules.basic import BasicRule, is_basic
from .rules.hook import HookRule
from .vocabulary import Op, Slot, lookup, slots_of

__all__ = ["Step", "assign"]


@dataclass(frozen=True)
class Step:
    """One step of the relevance pass: a node, the rule that takes its relevance on, and the operands it goes to."""

    node: fx.Node
    rule: Rule
    operands: Mapping[Slot, fx.Node]


def assign(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    composite: Composite | None,
    *,
    unmatched: str = "error",
    gradient: bool = False,
    last: BasicHook | None = None,
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
    unmatched : {"error", "gradient"}
        What to do with an op that the vocabulary does not have.
    gradient : bool
        Whether what the composite leaves gets the plain gradient, in place of the vocabulary's default.
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
    (output,) = next(node for node in graph.nodes if node.op == "output").args
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
            reached.add(node.args[0])
            final |= {node.args[0]} if node in final else set()
            continue
        op = _entry(node, active, unmatched)
        operands = slots_of(node, op, lambda operand: operand in active and _is_floating(operand))
        if node in given:
            rule = _rule_of(*given[node], node, operands)
        else:
            rule = Gradient() if gradient else _default(node, op, operands)
        if last is not None and node in final:
            if isinstance(rule, Pass | Transpose):
                final.update(operands.values())
            else:
                rule = BasicRule(last.copy())
        operands = {slot: operands[slot] for slot in rule.receivers(list(operands))}
        _place(rule, node, op, operands, all(operand in non_negative for operand in operands.values()))
        steps.append(Step(node, rule, operands))
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
        if op.non_negative(node, all(operand in non_negative for operand in inputs)):
            non_negative.add(node)
        if offers is not None and node in reachable and (found := offers.rule(node, op)) is not None:
            given[node] = found
    if offers is not None:
        offers.check()
    return given, non_negative


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _entry(node: fx.Node, active: set[fx.Node], unmatched: str) -> Op:
    target, args, _ = unwrap(node)
    op = lookup(target)
    if op is None:
        if unmatched == "gradient":
            return Op(inputs=tuple(range(len(args))), default=lambda node, slots: Gradient())
        raise UnsupportedOpError(
            f"fxlrp has no rule for {where(node)}. Register one with fxlrp.vocabulary.register(torch.ops."
            f"{name_of_target(target)}, default=...) (see docs/extend.md), or give it the plain gradient with "
            "unmatched='gradient'."
        )
    for name, position in op.params.items():
        if not is_known(node) and position < len(args) and args[position] in active:
            raise UnsupportedOpError(
                f"the {name} of {where(node)} depends on the input: this is a product of two activations, for which "
                "fxlrp has no rule. Give it the plain gradient by registering an entry with default=gradient."
            )
    return op


def _default(node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node]) -> Rule:
    rule = op.default(node, slots)
    if rule is None:
        raise UnsupportedOpError(
            f"fxlrp has no rule for {where(node)} where the operands {sorted(slots)} depend on the input. Register one "
            "with fxlrp.vocabulary.register (see docs/extend.md)."
        )
    return rule


class _Offers:
    """Offers ops to a composite, one after another, and notices what the composite would not see done."""

    def __init__(self, composite: Composite, modules: Mapping[str, nn.Module]) -> None:
        self._composite, self._modules = composite, modules
        self._context: dict[Any, Any] = {}
        self._offered: set[str] = set()
        self._given: dict[str, fx.Node] = {}
        self._matched = False

    def rule(self, node: fx.Node, op: Op) -> tuple[Hook, nn.Module] | None:
        """The hook that the composite has for `node`, with the module that it was offered as."""
        path = module_path(node)
        module, stand_in = self._modules.get(path), op.stand_in(node)
        self._offered.add(path)
        if op.structural:
            return None
        if module is not None and (_is_leaf(module) or isinstance(module, type(stand_in))):
            hook = self._composite.module_map(self._context, path, module)
            if hook is not None:
                self._matched = True
                self._once(node, path, module, stand_in)
                return hook, module
        if stand_in is not None and not isinstance(module, type(stand_in)):
            hook = self._composite.module_map(self._context, path, stand_in)
            if hook is not None:
                self._matched = True
                return hook, stand_in
        return None

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
        """Raise if the composite matched nothing, or names a container."""
        for path, module in self._modules.items():
            if _is_leaf(module) or path in self._offered:
                continue
            # A bare module under that name: only a composite that goes by names has something for it.
            if self._composite.module_map({}, path, nn.Module()) is not None:
                raise CompositeError(
                    f"the composite gives a rule to '{path}' ({type(module).__name__}), which contains other modules: "
                    "a rule is for one op. Name its parts instead."
                )
        if not self._matched:
            raise CompositeError(
                f"the composite {type(self._composite).__name__} matches none of the model's ops: every op would be "
                "left to its default. Check the types and names that it maps."
            )


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _rule_of(hook: Any, module: nn.Module, node: fx.Node, slots: Mapping[Slot, fx.Node]) -> Rule:
    if isinstance(hook, zennit.rules.Pass) and type(hook).backward is zennit.rules.Pass.backward:
        if len(slots) != 1 or any(operand.meta["val"].shape != node.meta["val"].shape for operand in slots.values()):
            raise RuleError(
                f"Pass cannot be the rule of {where(node)}: it needs one input, of the output's shape. Use Norm, which "
                "shares relevance in proportion."
            )
        return Pass()
    if is_basic(hook):
        copied: Any = hook.copy()
        return BasicRule(copied)
    if isinstance(hook, Hook):
        return HookRule(hook.copy(), module)
    raise RuleError(f"the composite gives {where(node)} a {type(hook).__name__}, which is not a zennit Hook")


def _place(rule: Rule, node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node], non_negative: bool) -> None:
    target, args, _ = unwrap(node)
    from_outside = all(operand.op == "placeholder" for operand in slots.values())
    rule.place(op, target, list(slots), non_negative=non_negative, from_outside=from_outside)
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


def _shape(node: Any) -> list[int]:
    return [int(size) if isinstance(size, int) else 2 for size in node.meta["val"].shape]
