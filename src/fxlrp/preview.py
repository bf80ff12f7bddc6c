"""What will happen to each op of a model, told before anything runs."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.node import Argument, map_arg
from zennit.core import Composite

from . import composites
from .canonizers.report import Report, report
from .capture import Output
from .given import check_choice, check_flags, check_model, inputs_of
from .graph import carriers, name_of_target
from .models import snapshot
from .place import module_path
from .reading import is_known, unwrap
from .recipe import Method, Recipe
from .relevance.assign import Assignment, Unsupported
from .rules import BasicRule, Gradient, Rule, Transpose
from .wording import columns

__all__ = ["Plan", "Preview", "check"]

COMPOSITE, EXACT, CONVENTION, GRADIENT, CONSTANT, NOT_EXPLAINED, UNSUPPORTED = (
    "composite",
    "exact",
    "by convention",
    "gradient",
    "constant",
    "not explained",
    "unsupported",
)
"""How an op's rule is come by, see `Plan.how`."""


@dataclass(frozen=True)
class Plan:
    """What will happen to one op.

    Attributes
    ----------
    node, path, op : str
        The node's name in the graph, the path of the module that it lies in, and the op's name.
    rule : str
        The rule's name; empty if no relevance comes to the op.
    how : str
        "composite": the composite says so. "exact": moved values move back; a map that is linear (or, as a norm,
        homogeneous of degree one) shares in proportion, input times gradient. "by convention": by a published rule, as
        one may do otherwise. "gradient": the plain gradient.
        "constant": the op depends on the input, but what reads it holds it constant (a gate, a deviation).
        "not explained": the final softmax, log-softmax or sigmoid and what follows; relevance starts in front of it.
        "unsupported": there is no rule.
    why : str
        Of an unsupported op, where it is in the user's code and what to do.
    """

    node: str
    path: str
    op: str
    rule: str
    how: str
    why: str = ""


@dataclass(frozen=True)
class Preview:
    """What will happen to each op, in the order of execution; printed, a table.

    Attributes
    ----------
    plans : tuple of Plan
        One for each op that depends on the input.
    canonized : Report
        What became of each batch norm.
    """

    plans: tuple[Plan, ...]
    canonized: Report

    @property
    def unsupported(self) -> tuple[Plan, ...]:
        """The ops that keep the model from being converted."""
        return tuple(plan for plan in self.plans if plan.how == UNSUPPORTED)

    def __str__(self) -> str:
        head = ("op", "in module", "rule", "how")
        rows = [(plan.op, plan.path or "-", plan.rule or "-", plan.how) for plan in self.plans]
        counts = Counter(plan.how for plan in self.plans)
        summary = ", ".join(f"{count} {how}" for how, count in counts.most_common())
        parts = ["\n".join(columns(head, rows)), summary, str(self.canonized)]
        return "\n\n".join([*parts, *(plan.why for plan in self.unsupported)])


def check(
    model: nn.Module | ExportedProgram,
    composite: Composite | str | None,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    output: Output = None,
    threshold_relu: bool = True,
    final_activation: str = "skip",
) -> Preview:
    """Tell what `fxlrp.convert` would do with each op, and which ops it has no rule for.

    Parameters
    ----------
    model : nn.Module or torch.export.ExportedProgram
        The model; it is not modified.
    composite : zennit.core.Composite, str or None
        As of `fxlrp.convert`.
    example_inputs : Tensor or tuple of Tensor
        Inputs to capture it with; their values do not matter.
    output : str, int, callable or None
        As of `fxlrp.convert`.
    threshold_relu : bool
        As of `fxlrp.convert`.
    final_activation : {"skip", "keep"}
        As of `fxlrp.convert`.

    Returns
    -------
    Preview
        Print it. ``preview.unsupported`` is empty if the model can be converted.

    Raises
    ------
    CaptureError, CompositeError, InputError, RuleError
        As `fxlrp.convert`, but for unsupported ops.

    Examples
    --------
    >>> import torch, torchvision, fxlrp
    >>> model = torchvision.models.resnet18().eval()
    >>> preview = fxlrp.check(model, "epsilon_plus", torch.randn(1, 3, 64, 64))
    >>> preview.unsupported
    ()
    """
    check_model(model)
    check_flags(threshold_relu=threshold_relu)
    check_choice("final_activation", final_activation, ("skip", "keep"))
    exported = model if isinstance(model, ExportedProgram) else None
    recipe = Recipe(
        model.module() if isinstance(model, ExportedProgram) else snapshot(model),
        [Method(composites.resolve(composite))],
        trainable=False,
        exported=exported,
        output=output,
        unmatched="note",
        threshold_relu=threshold_relu,
        final_activation=final_activation,
    )
    recipe.check()
    canonical, steps = recipe.assigned(inputs_of(example_inputs))
    of_node = {step.node: step for step in steps}
    active = carriers((node for node in canonical.graph.nodes if node.op == "placeholder"), masks=True)
    read = _read_by(of_node)
    told = (read & active) - (_behind_readings(steps) - of_node.keys())
    end = next(node for node in canonical.graph.nodes if node.op == "output")
    behind = (_read_by(end.all_input_nodes) & active) - read if steps else set()
    plans = [_plan(node, of_node.get(node), node in behind) for node in canonical.graph.nodes if node in told | behind]
    return Preview(tuple(plans), report(canonical.graph))


def _read_by(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """These ops and all that they read; of a value in two readings, in the one that relevance goes through."""
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node in found or node.op != "call_function":
            continue
        found.add(node)
        todo.extend(node.all_input_nodes if not is_known(node) else _nodes_in(node.args[1:]))
    return {node for node in found if node.target is not operator.getitem}


def _behind_readings(steps: Iterable[Assignment]) -> set[fx.Node]:
    """Where a value is explained in another reading, the ops that compute it."""
    found: set[fx.Node] = set()
    for step in steps:
        if is_known(step.node):
            found |= _sources(step.node.args[0]) - _sources(*step.operands.values())
    return found


def _sources(*nodes: Any) -> set[fx.Node]:
    """These nodes and all that they are computed from."""
    found, todo = set(nodes), list(nodes)
    while todo:
        new = set(todo.pop().all_input_nodes) - found
        found |= new
        todo.extend(new)
    return found


def _nodes_in(args: Argument) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(args, found.append)
    return found


def _plan(node: fx.Node, step: Assignment | None, behind: bool) -> Plan:
    place = (node.name, module_path(node), name_of_target(unwrap(node)[0]).removeprefix("aten."))
    if step is None:
        return Plan(*place, "", NOT_EXPLAINED if behind else CONSTANT)
    rule = step.rule
    if isinstance(rule, Unsupported):
        return Plan(*place, "", UNSUPPORTED, str(rule.why))
    return Plan(*place, repr(rule).removesuffix("()"), COMPOSITE if step.by_composite else _how(rule))


def _how(rule: Rule) -> str:
    if isinstance(rule, Transpose | BasicRule):
        return EXACT
    return GRADIENT if isinstance(rule, Gradient) else CONVENTION
