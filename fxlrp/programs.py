"""The programs of one model: captured when first needed, and found again by the inputs' shapes and the model's mode."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from zennit.core import BasicHook, Composite

from . import composites, ops
from .assign import Step, assign
from .canonizers import canonize_graph, fold_constants
from .capture import Capture, Output, capture, process_groups
from .emit import emit
from .errors import InputError, ModulePathError
from .given import check_inputs
from .program import Program, RelevancePass

__all__ = ["Method", "Programs", "outside_inference_mode"]

_ = ops  # Importing the package fills the vocabulary.

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
    exported : ExportedProgram or None
        What is captured in its place.
    methods : sequence of Method
        How it is explained.
    trainable : bool
        Whether parameters stay live.
    record : sequence of str or callable
        Module paths, or a function of the capture that gives them.
    output, unmatched, threshold_relu
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
    ) -> None:
        self._model, self._exported, self._methods = model, exported, methods
        self._trainable, self._record, self._output = trainable, record, output
        self._unmatched, self._threshold_relu = unmatched, threshold_relu
        self.all: list[Program] = []
        self._known: dict[Any, Program] = {}
        if exported is None:
            paths = dict(model.named_modules(remove_duplicate=False))
            for method in methods:
                if method.composite is not None:
                    composites.check_names(method.composite, paths)
            for path in () if callable(record) else record:
                if path not in paths:
                    near = difflib.get_close_matches(path, paths, n=3)
                    hint = f" Near to it are: {', '.join(near)}." if near else ""
                    raise ModulePathError(f"record names the module '{path}', which the model has not.{hint}")

    def of(self, inputs: tuple[Any, ...]) -> Program:
        """The program for these inputs, made if need be."""
        key = (
            tuple((type(x), x.dtype, tuple(x.shape)) if isinstance(x, Tensor) else type(x) for x in inputs),
            (
                # What was put in place of another module or tensor is in no capture; captures keep theirs alive.
                tuple((id(module), module.training) for module in self._model.modules()),
                tuple(id(tensor) for tensor in (*self._model.parameters(), *self._model.buffers())),
            ),
        )
        if key not in self._known:
            check_inputs(inputs)
            self._known[key] = self._find(inputs, key[1])
        return self._known[key]

    def clear(self) -> None:
        """Forget all of them."""
        self.all, self._known = [], {}

    def _find(self, inputs: tuple[Tensor, ...], state: tuple[Any, ...]) -> Program:
        """A program that was made for other sizes and fits, or a new one."""
        tried = {id(program): program for (_, of), program in self._known.items() if of == state}
        for program in tried.values():
            if program.capture.fits(inputs):
                return program
        captured = capture(self._source(), inputs, self._output)
        if self._exported is not None and not captured.fits(inputs):
            made_for = ", ".join(f"{tuple(n.meta['val'].shape)} {n.meta['val'].dtype}" for n in captured.placeholders)
            raise InputError(
                f"the exported program was made for inputs {made_for}: export it for others, or convert the model"
            )
        fingerprint = captured.fingerprint()
        for program in tried.values():
            if program.fingerprint == fingerprint and not program.size_bound:
                return program
        canonical = self._canonical(captured)
        program = Program(captured, fingerprint, canonical, [self._pass(captured, canonical, m) for m in self._methods])
        self.all.append(program)
        return program

    def _source(self) -> nn.Module | ExportedProgram:
        """What is captured: the model, or a copy with the same parameters that foreign canonizers were applied to."""
        if self._exported is not None:
            return self._exported
        canonizers = [c for m in self._methods if m.composite for c in composites.foreign_canonizers(m.composite)]
        if not canonizers:
            return self._model
        tensors = [*self._model.parameters(), *self._model.buffers()]
        changed = copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors} | process_groups(self._model))
        for canonizer in canonizers:
            canonizer.apply(changed)
        return changed

    def _canonical(self, captured: Capture) -> fx.GraphModule:
        # An exported program's own tensors do not move with the twin; those of the module made of it do.
        root = captured.graph_module if self._exported is None else self._model
        canonical = fx.GraphModule(root, copy.deepcopy(captured.graph_module.graph), "Canonical")
        canonize_graph(canonical, threshold_relu=self._threshold_relu)
        if not self._trainable:
            fold_constants(canonical)
        Program.number(canonical)
        return canonical

    def steps(self, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, list[Step]]:
        """The canonical graph, and which rule each op gets by the first method: nothing is written yet."""
        check_inputs(inputs)
        captured = capture(self._source(), inputs, self._output)
        canonical = self._canonical(captured)
        return canonical, self._assigned(captured, canonical, self._methods[0])

    def _assigned(self, captured: Capture, canonical: fx.GraphModule, method: Method) -> list[Step]:
        return assign(
            canonical.graph,
            captured.modules,
            method.composite,
            unmatched=self._unmatched,
            gradient=method.gradient,
            last=method.last,
        )

    def _pass(self, captured: Capture, canonical: fx.GraphModule, method: Method) -> RelevancePass:
        whole = fx.GraphModule(canonical, copy.deepcopy(canonical.graph), "Twin")
        steps = self._assigned(captured, whole, method)
        record = self._record(captured) if callable(self._record) else self._record
        written = emit(whole, steps, record=record, constant=not self._trainable, times_input=method.gradient)
        whole.graph.lint()
        whole.recompile()
        return RelevancePass(whole, written)


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
