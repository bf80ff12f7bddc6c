"""From a model to a program: capture, canonize, assign rules, write the relevance pass, leave out what can be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from zennit.core import BasicHook, Composite

from . import composites
from .canonizers import fold_constants, reads
from .canonizers.kept import canonical as canonical_of
from .capture import Capture, Output, Rehearsal, capture, rehearsed
from .errors import ModulePathError
from .given import check_inputs
from .graph import writes_buffers
from .marks import FOLDED
from .models import copy_sharing_tensors, weights
from .ops.activation import thresholded_relu
from .reading import unwrap
from .relevance.assign import Assignment, assign
from .relevance.emit import emit
from .relevance.logits import logits_of
from .relevance.program import Program, has_batch
from .relevance.relevance_pass import RelevancePass
from .relevance.rewrites import Emitted, optimize, prepare, rewrites_of
from .rules.plain import Transpose
from .wording import near_to

__all__ = ["Method", "Recipe", "Record"]

Record = Sequence[str] | Callable[[Capture], Sequence[str]]


@dataclass(frozen=True)
class Method:
    """How the output is explained.

    Attributes
    ----------
    composite : Composite or None
        Which rule each op gets. None has nothing to say.
    last : BasicHook or None
        The rule of the op that gives the output, in place of the composite's.
    gradient : bool
        Whether relevance divided by the value is propagated, as a gradient is: what the composite leaves gets the plain
        gradient; where it arrives, or is recorded, it is multiplied with the value.
    """

    composite: Composite | None
    last: BasicHook | None = None
    gradient: bool = False


@dataclass(frozen=True)
class Recipe:
    """How programs are made of a model.

    Attributes
    ----------
    model : nn.Module
        The model, or the module of an exported program.
    methods : sequence of Method
        How it is explained.
    trainable : bool
        Whether parameters stay live.
    exported : ExportedProgram or None
        What is captured in its place.
    record : sequence of str or callable
        Module paths, or a function of the capture that gives them.
    output, unmatched, threshold_relu, final_activation, optimize, chunk_size, recompute
        As of `fxlrp.convert`.
    """

    model: nn.Module
    methods: Sequence[Method]
    trainable: bool
    exported: ExportedProgram | None = None
    record: Record = ()
    output: Output = None
    unmatched: str = "error"
    threshold_relu: bool = True
    final_activation: str = "keep"
    optimize: bool | Collection[str] = True
    chunk_size: int | None = None
    recompute: bool = False

    def check(self) -> None:
        """Look at what names parts of the model.

        Raises
        ------
        CompositeError, InputError
            If a composite names a module that is not there, or `optimize` something that is no rewrite.
        ModulePathError
            If `record` names a module that is not there.
        """
        rewrites_of(self.optimize)
        if self.exported is not None:
            return
        paths = dict(self.model.named_modules(remove_duplicate=False))
        for method in self.methods:
            if method.composite is not None:
                composites.check_names(method.composite, paths)
        for path in () if callable(self.record) else self.record:
            if path not in paths:
                near = near_to(path, paths)
                raise ModulePathError(f"record names the module '{path}', which the model has not.{near}")

    def captured(self, inputs: tuple[Tensor, ...]) -> Capture:
        """The model's graph at such inputs."""
        check_inputs(inputs)
        return capture(self._source(), inputs, self.output, keep=reads())

    def calls(self, inputs: tuple[Tensor, ...]) -> Rehearsal | None:
        """What the model calls on such inputs, if that can be told without capturing it."""
        source = self._source()
        return rehearsed(source, inputs) if isinstance(source, nn.Module) else None

    def _source(self) -> nn.Module | ExportedProgram:
        """What is captured: the model, or a copy with the same parameters that foreign canonizers were applied to."""
        if self.exported is not None:
            return self.exported
        canonizers = [c for m in self.methods if m.composite for c in composites.foreign_canonizers(m.composite)]
        if not canonizers:
            return self.model
        changed = copy_sharing_tensors(self.model)
        for canonizer in canonizers:
            canonizer.apply(changed)
        return changed

    def program(
        self,
        captured: Capture,
        fingerprint: tuple[object, ...],
        settings: dict[Hashable, Hashable],
        lender: nn.Module | None,
    ) -> Program:
        """A capture with its relevance passes.

        Parameters
        ----------
        captured : Capture
            The model's graph.
        fingerprint : tuple
            As of `Program`.
        settings : dict
            As of `Program`.
        lender : nn.Module or None
            As of `Program`.
        """
        canonical = self._canonical(captured)
        passes = [self._pass(captured, canonical, method, self.final_activation) for method in self.methods]
        tensors = [] if self.trainable else _read_only(captured.graph_module, self._root(captured))
        program = Program(
            captured, fingerprint, canonical, passes, settings, tensors, weights(tensors), lender, self.chunk_size
        )

        def of_output() -> Program:
            return replace(program, passes=[self._pass(captured, canonical, m, "keep") for m in self.methods])

        return replace(program, of_output=of_output) if any(each.of_logits for each in passes) else program

    def assigned(self, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, list[Assignment]]:
        """The canonical graph, and which rule each op gets by the first method: nothing is written yet."""
        captured = self.captured(inputs)
        canonical = self._canonical(captured)
        logits = logits_of(canonical.graph) if self.final_activation == "skip" else None
        return canonical, self._assigned(captured, canonical, self.methods[0], logits)

    def _root(self, captured: Capture) -> nn.Module:
        """What holds the tensors: those of an exported program do not move with a twin, those of its module do."""
        return captured.graph_module if self.exported is None else self.model

    def _canonical(self, captured: Capture) -> fx.GraphModule:
        canonical = self._canonized(captured, threshold_relu=self.threshold_relu)
        if any(self._asks_a_clip(captured, canonical, method) for method in self.methods):
            canonical = self._canonized(captured, threshold_relu=False)
        return canonical

    def sharing(self, inputs: tuple[Tensor, ...]) -> list[list[int]]:
        """Which methods can share a canonical graph, each by its index: one may ask for another than it has alone."""
        captured = self.captured(inputs)
        canonical = self._canonized(captured, threshold_relu=self.threshold_relu)
        groups: dict[bool, list[int]] = {}
        for index, method in enumerate(self.methods):
            groups.setdefault(self._asks_a_clip(captured, canonical, method), []).append(index)
        return list(groups.values())

    def _asks_a_clip(self, captured: Capture, canonical: fx.GraphModule, method: Method) -> bool:
        """Whether a composite has a rule for a ReLU that goes by its values, or relevance, where it only clips."""
        clips = {n for n in canonical.graph.nodes if n.op == "call_function" and unwrap(n)[0] is thresholded_relu}
        assigned = self._assigned(captured, canonical, method, None) if clips else ()
        asked = [each for each in assigned if each.node in clips and each.by_composite]
        return any(not isinstance(each.rule, Transpose) for each in asked)

    def _canonized(self, captured: Capture, *, threshold_relu: bool) -> fx.GraphModule:
        canonical = canonical_of(captured, self._root(captured), threshold_relu=threshold_relu)
        if not self.trainable:
            fold_constants(canonical)
        prepare(canonical, rewrites_of(self.optimize))
        if not self.trainable:
            _own_tensors(canonical)
        Program.number(canonical)
        return canonical

    def _assigned(
        self, captured: Capture, canonical: fx.GraphModule, method: Method, explained: fx.Node | None
    ) -> list[Assignment]:
        return assign(
            canonical.graph,
            captured.modules,
            method.composite,
            unmatched=self.unmatched,
            gradient=method.gradient,
            last=method.last,
            explained=explained,
        )

    def _pass(
        self, captured: Capture, canonical: fx.GraphModule, method: Method, final_activation: str
    ) -> RelevancePass:
        whole = fx.GraphModule(canonical, copy.deepcopy(canonical.graph), "Twin")
        logits = logits_of(whole.graph) if final_activation == "skip" else None
        written = emit(
            whole,
            self._assigned(captured, whole, method, logits),
            record=self.record(captured) if callable(self.record) else self.record,
            times_input=method.gradient,
            logits=logits,
            batched=has_batch(canonical),
        )
        optimize(Emitted(whole, written, constant=not self.trainable), rewrites_of(self.optimize))
        whole.graph.lint()
        whole.recompile()
        return RelevancePass(whole, written, recomputed=self.recompute, stretched=self.recompute and self.trainable)


def _written(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The buffers that a graph writes to."""
    return {
        operand
        for node in graph_module.graph.nodes
        if writes_buffers(node)
        for operand in (node.args[:1] if node.target is torch.ops.aten.copy_.default else node.args)
        if isinstance(operand, fx.Node) and operand.op == "get_attr"
    }


def _read_only(captured: fx.GraphModule, root: nn.Module) -> list[Tensor]:
    """The tensors of the model that a graph reads, without those that it writes to."""
    written = {node.target for node in _written(captured)}
    paths = dict.fromkeys(str(node.target) for node in captured.graph.find_nodes(op="get_attr"))
    return [attrgetter(path)(root) for path in paths if path not in written]


def _own_tensors(canonical: fx.GraphModule) -> None:
    """Give a graph whose constants are folded copies of its other tensors, so that it never mixes weights, old and new.

    Buffers that it writes to stay the model's.
    """
    kept = {node.target for node in _written(canonical)}
    for node in canonical.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        if path in kept or FOLDED.of(node):
            continue
        kept.add(path)
        owner, _, name = path.rpartition(".")
        module = canonical.get_submodule(owner)
        with torch.inference_mode(False):
            value = getattr(module, name).detach().clone()
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            setattr(module, name, value)
