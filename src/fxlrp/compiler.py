"""The programs of one model: captured when first needed, and found again by the inputs' shapes and the model's mode."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.export import ExportedProgram
from zennit.core import BasicHook, Composite

from . import composites
from .canonizers import canonize_graph, fold_constants, reads
from .capture import Capture, Output, capture
from .errors import InputError, ModulePathError
from .given import check_inputs
from .graph import writes_buffers
from .marks import FOLDED
from .models import copy_sharing_tensors, count_fused_steps, lends_tensors, settings, stand_in, weights
from .ops.activation import thresholded_relu
from .reading import unwrap
from .relevance.assign import Assignment, assign
from .relevance.emit import emit
from .relevance.logits import logits_of
from .relevance.program import Program, RelevancePass, has_batch
from .relevance.rewrites import Emitted, optimize, prepare, rewrites_of
from .rules.plain import Transpose
from .values import is_wrapped
from .wording import near_to

__all__ = ["Method", "Programs", "outside_inference_mode"]

_CAPTURING = threading.RLock()

CAPTURES = 16
"""How many programs a model has at a time; the one that was used least recently goes first."""

KEYS = 256
"""For how many shapes of inputs it knows one."""

HOMES = 4
"""In how many settings a model that is given tensors for a call has a copy that is captured in its place."""

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


class Programs:
    """The programs of one model.

    Parameters
    ----------
    model : nn.Module
        The model, or the module of an exported program.
    methods : sequence of Method
        How it is explained.
    exported : ExportedProgram or None
        What is captured in its place.
    trainable : bool
        Whether parameters stay live.
    record : sequence of str or callable
        Module paths, or a function of the capture that gives them.
    output : str, int, callable or None
        As of `fxlrp.convert`.
    unmatched : {"error", "gradient", "note"}
        As of `fxlrp.convert`; "note": say so of an op that has no rule.
    threshold_relu : bool
        As of `fxlrp.convert`.
    final_activation : {"skip", "keep"}
        As of `fxlrp.convert`.
    optimize : bool or collection of str
        As of `fxlrp.convert`.

    Raises
    ------
    CompositeError, ModulePathError
        If a composite or `record` names a module that is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[Method],
        *,
        exported: ExportedProgram | None = None,
        trainable: bool,
        record: Record = (),
        output: Output = None,
        unmatched: str = "error",
        threshold_relu: bool = True,
        final_activation: str = "keep",
        optimize: bool | Collection[str] = True,
    ) -> None:
        self._lender: nn.Module | None = None
        self._model, self._exported, self._methods = model, exported, methods
        self._trainable, self._record, self._output = trainable, record, output
        self._unmatched, self._threshold_relu = unmatched, threshold_relu
        self._final_activation = final_activation
        self._optimize = rewrites_of(optimize)
        self.clear()
        if not trainable:
            count_fused_steps()
        if exported is None:
            paths = dict(model.named_modules(remove_duplicate=False))
            for method in methods:
                if method.composite is not None:
                    composites.check_names(method.composite, paths)
            for path in () if callable(record) else record:
                if path not in paths:
                    near = near_to(path, paths)
                    raise ModulePathError(f"record names the module '{path}', which the model has not.{near}")

    def of(self, inputs: tuple[Any, ...]) -> Program:
        """The program for these inputs, made if need be; of weights as they are now."""
        search: Any = torch.compiler.disable(self._of)
        return search(inputs)

    def _of(self, inputs: tuple[Any, ...]) -> Program:
        if torch._C._are_functorch_transforms_active():
            forms = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs]
            # What is captured is no part of what torch.func differentiates, or maps.
            with temporarily_clear_interpreter_stack():
                plain = [torch.zeros(f[0], dtype=f[1], device=f[2]) if isinstance(f, tuple) else f for f in forms]
                return self._of(tuple(plain))
        if lends_tensors(self._model):
            return self._at_home().of(inputs)
        if any(_is_empty(x) for x in inputs):
            return self._of_empty(inputs)
        shapes = tuple(
            (type(x), x.dtype, tuple(x.shape), x.stride()) if isinstance(x, Tensor) else type(x) for x in inputs
        )
        now = settings(self._model)
        program = self._known_for(shapes, now)
        if program is None or not program.is_of(weights):
            # torch.export is not made for several threads, nor are those that meet at a cold program.
            with _CAPTURING:
                program = self._known_for(shapes, now) or self._made(inputs, shapes, now)
                if not program.is_of(weights):
                    program = self._renewed(program)
        return program

    def _at_home(self) -> Programs:
        """The programs of a copy that has parameters of its own, for a model that was given others for a call.

        What was given is no part of the copy, but where parameters are constants: then these have its values.

        Raises
        ------
        InputError
            If parameters are constants, and what was given is a tensor within a transform of torch.func.
        """
        lent = [*self._model.parameters(), *self._model.buffers()]
        if not self._trainable and any(map(is_wrapped, lent)):
            raise InputError(
                "a twin that is not trainable has its parameters folded into constants, which torch.func cannot "
                "differentiate, or map over: convert the model with trainable=True"
            )
        now = settings(self._model) | {"tensors": tuple((each.shape, each.dtype, each.device) for each in lent)}
        with _CAPTURING:
            key = tuple(now.items())
            if key not in self._homes:
                home = copy.copy(self)
                home._model, home._lender = stand_in(self._model), self._model
                home.clear()
                self._homes = OrderedDict([*self._homes.items(), (key, home)][-HOMES:])
            home = self._homes[key]
            if not self._trainable:
                home._take_over(lent)
            return home

    def _take_over(self, values: list[Tensor]) -> None:
        """Have these values in the model's parameters and buffers."""
        # They are kept: no other tensor is to take their place in memory.
        taken, version = self._taken
        same = len(taken) == len(values) and all(a is b for a, b in zip(taken, values, strict=True))
        if same and weights(values) == version:
            return
        # What is written to in inference mode is not counted.
        with torch.inference_mode(False), torch.no_grad():
            for own, value in zip((*self._model.parameters(), *self._model.buffers()), values, strict=True):
                own.copy_(value)
        self._taken = values, weights(values)

    def _of_empty(self, inputs: tuple[Any, ...]) -> Program:
        """The program that takes any batch, and so an empty one, at which torch.export can capture nothing."""
        program = self._of(tuple(x.new_zeros((2, *x.shape[1:])) if _is_empty(x) else x for x in inputs))
        for x, node in zip(inputs, program.capture.placeholders, strict=True):
            if _is_empty(x) and isinstance(node.meta["val"].shape[0], int):
                raise InputError(
                    f"the batch is empty, shape {tuple(x.shape)}, and the model was captured for a fixed number of "
                    "samples: leave out the call"
                )
        return program

    def clear(self) -> None:
        """Forget all of them."""
        self.all, self._known, self._immaterial = [], OrderedDict(), [frozenset()]
        self._homes, self._taken = OrderedDict(), ([], ())

    def _known_for(self, shapes: Any, now: dict[Any, Any]) -> Program | None:
        known = self._known
        for immaterial in self._immaterial:
            key = shapes, immaterial, _without(now, immaterial)
            if key in known:
                known.move_to_end(key)
                return known[key]
        return None

    def _made(self, inputs: tuple[Any, ...], shapes: Any, now: dict[Any, Any]) -> Program:
        """A program that was made for other sizes or settings and fits, or a new one; the oldest of many is dropped."""
        check_inputs(inputs)
        program = self._find(inputs, now)
        changed = frozenset(key for key in {*now, *program.settings} if now.get(key) != program.settings.get(key))
        if changed not in self._immaterial:
            self._immaterial.append(changed)
        known = OrderedDict([*self._known.items(), ((shapes, changed, _without(now, changed)), program)])
        kept = list(dict.fromkeys(reversed(known.values())))[:CAPTURES]
        # A new one: other threads may be looking into the old.
        self._known = OrderedDict([(key, of) for key, of in known.items() if of in kept][-KEYS:])
        self.all = [each for each in dict.fromkeys((*self.all, program)) if each in kept]
        return program

    def _find(self, inputs: tuple[Tensor, ...], now: dict[Any, Any]) -> Program:
        for program in self.all:
            if program.settings == now and program.capture.fits(inputs):
                return program
        captured = capture(self._source(), inputs, self._output, keep=reads())
        if self._exported is not None and not captured.fits(inputs):
            made_for = ", ".join(f"{tuple(n.meta['val'].shape)} {n.meta['val'].dtype}" for n in captured.placeholders)
            raise InputError(
                f"the exported program was made for inputs {made_for}: export it for others, or convert the model"
            )
        fingerprint = captured.fingerprint()
        for program in self.all:
            # Attributes that changed were immaterial, if the graph is the same.
            same = all(now.get(key) == value for key, value in program.settings.items() if not isinstance(key, tuple))
            fits = program.capture.fits(inputs) or not program.size_bound
            if same and fits and program.fingerprint == fingerprint:
                return program
        return self._program(captured, fingerprint, now)

    def _program(self, captured: Capture, fingerprint: tuple[Any, ...], now: dict[Any, Any]) -> Program:
        canonical = self._canonical(captured)
        passes = [self._pass(captured, canonical, method, self._final_activation) for method in self._methods]
        tensors = [] if self._trainable else _read_only(captured.graph_module, self._root(captured))
        program = Program(captured, fingerprint, canonical, passes, now, tensors, weights(tensors), self._lender)

        def of_output() -> Program:
            return replace(program, passes=[self._pass(captured, canonical, m, "keep") for m in self._methods])

        return replace(program, of_output=of_output) if any(each.of_logits for each in passes) else program

    def _renewed(self, stale: Program) -> Program:
        """The same program, of the weights as they are now: nothing is captured again."""
        new = self._program(stale.capture, stale.fingerprint, stale.settings)
        self._known = OrderedDict((key, new if of is stale else of) for key, of in self._known.items())
        self.all = [new if of is stale else of for of in self.all]
        return new

    def _source(self) -> nn.Module | ExportedProgram:
        """What is captured: the model, or a copy with the same parameters that foreign canonizers were applied to."""
        if self._exported is not None:
            return self._exported
        canonizers = [c for m in self._methods if m.composite for c in composites.foreign_canonizers(m.composite)]
        if not canonizers:
            return self._model
        changed = copy_sharing_tensors(self._model)
        for canonizer in canonizers:
            canonizer.apply(changed)
        return changed

    def _root(self, captured: Capture) -> nn.Module:
        """What holds the tensors: those of an exported program do not move with a twin, those of its module do."""
        return captured.graph_module if self._exported is None else self._model

    def _canonical(self, captured: Capture) -> fx.GraphModule:
        canonical = self._canonized(captured, threshold_relu=self._threshold_relu)
        if any(self._asks_a_clip(captured, canonical, method) for method in self._methods):
            canonical = self._canonized(captured, threshold_relu=False)
        return canonical

    def _asks_a_clip(self, captured: Capture, canonical: fx.GraphModule, method: Method) -> bool:
        """Whether a composite has a rule for a ReLU that goes by its values, or relevance, where it only clips."""
        clips = {n for n in canonical.graph.nodes if n.op == "call_function" and unwrap(n)[0] is thresholded_relu}
        steps = self._assigned(captured, canonical, method, None) if clips else ()
        return any(step.by_composite and not isinstance(step.rule, Transpose) for step in steps if step.node in clips)

    def _canonized(self, captured: Capture, *, threshold_relu: bool) -> fx.GraphModule:
        canonical = fx.GraphModule(self._root(captured), copy.deepcopy(captured.graph_module.graph), "Canonical")
        canonize_graph(canonical, threshold_relu=threshold_relu)
        prepare(canonical, self._optimize)
        if not self._trainable:
            fold_constants(canonical)
            _own_tensors(canonical)
        Program.number(canonical)
        return canonical

    def steps(self, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, list[Assignment]]:
        """The canonical graph, and which rule each op gets by the first method: nothing is written yet."""
        check_inputs(inputs)
        captured = capture(self._source(), inputs, self._output, keep=reads())
        canonical = self._canonical(captured)
        logits = logits_of(canonical.graph) if self._final_activation == "skip" else None
        return canonical, self._assigned(captured, canonical, self._methods[0], logits)

    def _assigned(
        self, captured: Capture, canonical: fx.GraphModule, method: Method, explained: fx.Node | None
    ) -> list[Assignment]:
        return assign(
            canonical.graph,
            captured.modules,
            method.composite,
            unmatched=self._unmatched,
            gradient=method.gradient,
            last=method.last,
            explained=explained,
        )

    def _pass(
        self, captured: Capture, canonical: fx.GraphModule, method: Method, final_activation: str
    ) -> RelevancePass:
        whole = fx.GraphModule(canonical, copy.deepcopy(canonical.graph), "Twin")
        logits = logits_of(whole.graph) if final_activation == "skip" else None
        assigned = self._assigned(captured, whole, method, logits)
        record = self._record(captured) if callable(self._record) else self._record
        written = emit(
            whole,
            assigned,
            record=record,
            times_input=method.gradient,
            logits=logits,
            batched=has_batch(canonical),
        )
        optimize(Emitted(whole, written, constant=not self._trainable), self._optimize)
        whole.graph.lint()
        whole.recompile()
        return RelevancePass(whole, written)


def _is_empty(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == 0


def _without(now: dict[Any, Any], names: frozenset[Any]) -> tuple[Any, ...]:
    return tuple(item for item in now.items() if item[0] not in names)


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


@contextmanager
def outside_inference_mode(*values: Any) -> Iterator[tuple[Any, ...]]:
    """Leave inference mode (not its freedom from gradients), with these tensors as ones that were made outside of it.

    In inference mode, torch.func.vjp gives zeros without a word (torch 2.9).
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield tuple(x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in values)
