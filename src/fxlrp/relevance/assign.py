"""Assign a rule to every op that relevance reaches: the composite's, or the vocabulary's default."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import zennit.rules
from torch import Tensor, fx, nn
from zennit.core import BasicHook, Composite, Hook

from ..composites import check_names
from ..errors import CaptureError, RuleError, UnsupportedOpError
from ..graph import carriers, name_of_target
from ..ops import Op, Slot, lookup, slots_of
from ..place import where
from ..reading import unwrap
from ..rules.base import Rule, Site
from ..rules.plain import Gradient, Pass, Transpose
from ..rules.table import policy_of
from ..rules.zennit.basic import BasicRule, is_basic
from ..rules.zennit.hook import HookRule
from ..values import on_the_cpu
from .offers import Offers
from .site import placed, site_of

__all__ = ["Assignment", "Unsupported", "assign"]


@dataclass(frozen=True)
class Assignment:
    """A rule, assigned to an op.

    Attributes
    ----------
    node : fx.Node
        The op.
    rule : Rule
        Takes its relevance on.
    site : Site
        Where it serves.
    operands : dict of Slot to fx.Node
        Which the relevance goes to.
    by_composite : bool
        Whether the composite gave the rule, and not the vocabulary.
    """

    node: fx.Node
    rule: Rule
    site: Site
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
) -> list[Assignment]:
    """The rules of the relevance pass, in the order of the forward pass.

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
    last : BasicHook or None
        The rule of the op that gives the output, whatever the composite says. Structure, and what passes relevance
        unchanged, may stand between that op and the output.
    explained : fx.Node or None
        The value that relevance starts from; None for the output.

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
    output = explained or next(node for node in graph.nodes if node.op == "output").args[0]
    assert isinstance(output, fx.Node)
    active = carriers(node for node in graph.nodes if node.op == "placeholder" and _is_floating(node))
    if output not in active:
        raise CaptureError("the output that is explained does not depend on any floating-point input")
    reachable = _reachable(output, active)
    offered = [node for node in graph.nodes if node in reachable and node.op == "call_function"]
    given, non_negative = _offer(graph, reachable, None if composite is None else Offers(composite, modules, offered))
    assigned: list[Assignment] = []
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
        site = site_of(node, op, operands, all(operand in non_negative for operand in operands.values()))
        assigned.append(Assignment(node, placed(rule, site, node, operands), site, operands, node in given))
        reached.update(operands.values())
    return assigned[::-1]


def _reachable(output: fx.Node, active: set[fx.Node]) -> set[fx.Node]:
    """The nodes that relevance may come to: not those whose value is only read as another op's (`reading.known`)."""
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
    graph: fx.Graph, reachable: set[fx.Node], offers: Offers | None
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
    op = Op(inputs=tuple(range(len(args))))
    return op, slots_of(node, op, carries), _without_rule(why, unmatched)


def _default(node: fx.Node, op: Op, slots: Mapping[Slot, fx.Node], unmatched: str) -> Rule:
    policy = policy_of(unwrap(node)[0])
    rule: object = None if policy is None else policy.rule(node, slots)
    if isinstance(rule, Rule):
        return rule
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


def _rule_of(hook: Hook, module: nn.Module, node: fx.Node, op: Op) -> Rule:
    if isinstance(hook, zennit.rules.Pass) and type(hook).backward is zennit.rules.Pass.backward:
        return Transpose() if op.clips else Pass()
    if is_basic(hook):
        return BasicRule(hook.copy())
    if isinstance(hook, Hook):
        return HookRule(hook.copy(), module)
    raise RuleError(f"the composite gives {where(node)} a {type(hook).__name__}, which is not a zennit Hook")
