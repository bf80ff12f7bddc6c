"""A program: a capture with its relevance passes written into it, and how it is run for one seed or many."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ..capture import Capture
from ..errors import FxlrpError
from ..graph import drop_dead_code
from ..marks import NUMBER, SIZE_BOUND, UNBATCHED
from ..models import tensors_by_path
from .relevance_pass import RelevancePass, without_readings
from .seeds import Target, as_tensor, is_given, seed_relevance
from .stretches import in_stretches
from .unwritten import numbered, unwritten

__all__ = ["Program", "has_batch"]

SEEDS_TAKE = 1 << 30
"""How many bytes the values that several seeds are propagated by may take at a time."""

VALUES = 8
"""How many values, as large as the largest, each of them takes at most: 3 to 7 (docs/performance.md)."""

Recorded = dict[str, Tensor | tuple[Tensor, ...]]
Found = tuple[tuple[Tensor | None, ...], Recorded]


@dataclass(eq=False)
class Program:
    """A capture with its relevance passes: one for each method of explanation.

    Attributes
    ----------
    capture : Capture
        The model's graph.
    fingerprint : tuple
        What another capture shares if this program can stand for it.
    canonical : fx.GraphModule
        The canonical forward pass, its nodes numbered.
    passes : sequence of RelevancePass
        The same with each method's relevance pass.
    settings : dict
        What of the model it bakes in (`fxlrp.models.settings`).
    tensors : list of Tensor
        The model's, whose values it bakes in.
    weights : tuple
        What `fxlrp.models.weights` was of these.
    lender : nn.Module or None
        Whose parameters and buffers it is run with, in place of its own.
    chunk_size : int or None
        As of `fxlrp.convert`.
    of_output : callable or None
        If the passes start from the logits in front of a final activation, and so speak of classes alone: makes the
        program whose passes start from the output, for seeds that are given.
    """

    capture: Capture
    fingerprint: tuple[object, ...]
    canonical: fx.GraphModule
    passes: Sequence[RelevancePass]
    settings: dict[Hashable, Hashable]
    tensors: list[Tensor]
    weights: tuple[object, ...]
    lender: nn.Module | None = None
    chunk_size: int | None = None
    of_output: Callable[[], Program] | None = None

    def __post_init__(self) -> None:
        self.rank = self.capture.output.meta["val"].ndim
        self._number = numbered(self)

    @cached_property
    def _of_output(self) -> Program:
        return self if self.of_output is None else self.of_output()

    def prepared(self) -> Program:
        """Itself, with all that is otherwise made when first needed: torch.compile cannot follow that."""
        _ = self._forward_half
        # What is wrong with a program that is never run is not to be raised.
        with suppress(FxlrpError):
            _ = self._of_output._forward_half
        return self

    def is_of(self, weights: Callable[[list[Tensor]], tuple[object, ...]]) -> bool:
        """Whether the tensors whose values it bakes in are as they were."""
        return not self.tensors or weights(self.tensors) == self.weights

    def checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs; compiled code asks again at each call, when it has these, whether `is_of` still holds."""
        if not self.tensors or not torch.compiler.is_dynamo_compiling():
            return inputs
        return unwritten(inputs[0], self._number), *inputs[1:]

    @staticmethod
    def number(canonical: fx.GraphModule) -> None:
        """Number the nodes of a canonical graph: by this they are found again in its copies, which rename them."""
        for number, node in enumerate(canonical.graph.nodes):
            NUMBER.put(node, number)

    def pass_for(self, target: Target) -> RelevancePass:
        """The first method's pass for a target: from the output, or from the logits in front of a final activation."""
        return (self._of_output if is_given(as_tensor(target)) else self).passes[0]

    @property
    def graph_module(self) -> fx.GraphModule:
        """Forward and relevance pass of the first method."""
        return self.passes[0].graph_module

    @property
    def batched(self) -> bool:
        """Whether the output has a batch; if not, its only dimension are the classes of one sample."""
        return has_batch(self.canonical)

    @property
    def tuned(self) -> bool:
        """Whether relevance has a gradient with respect to what rules hold."""
        return any(each.tuned for each in self.passes)

    @property
    def size_bound(self) -> bool:
        """Whether it speaks for one spatial size alone, even if the capture of another one is the same graph."""
        return SIZE_BOUND.of(self.canonical)

    @cached_property
    def _forward_half(self) -> fx.GraphModule:
        """Inputs to (output, values that the relevance halves take, by number)."""
        graph = without_readings(self.canonical.graph)
        end = next(node for node in graph.nodes if node.op == "output")
        wanted = {number for each in self.passes for number in each.relevance_half[1]}
        values = {NUMBER.of(node): node for node in graph.nodes if NUMBER.of(node) in wanted}
        end.args = ((end.args[0], values),)
        drop_dead_code(graph)
        half = fx.GraphModule(self.canonical, graph, "Forward")
        return in_stretches(half) if any(each.stretched for each in self.passes) else half

    def _called(self, part: fx.GraphModule, *args: object) -> Any:
        if self.lender is None:
            return part(*args)
        lent = tensors_by_path(self.lender)
        paths = {str(node.target) for node in part.graph.find_nodes(op="get_attr")}
        return functional_call(part, {path: lent[path] for path in lent.keys() & paths}, args)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Mapping[int, object]]:
        """The model's output, and the values that `relevance` needs."""
        return self._called(self._forward_half, *inputs)

    def relevance(self, values: Mapping[int, object], seed: Tensor, method: int = 0) -> Found:
        """Relevance of each input and what was recorded, from a seed of the output's shape or K of them (K in front).

        Parameters
        ----------
        values : dict
            From `forward`.
        seed : Tensor
            Relevance of the output.
        method : int
            Which pass.
        """
        half, numbers = self.passes[method].relevance_half
        saved = [values[number] for number in numbers]
        run = lambda one: self._called(half, one, *saved)
        if seed.ndim == self.rank:
            return run(seed)
        if self.passes[method].stretched and torch.is_grad_enabled():
            # What autograd keeps of a stretch is not to be mapped over.
            return _joined([run(one) for one in seed], torch.stack)
        several = torch.vmap(run, 0, self.passes[method].out_dims, randomness="different")
        size = self._at_a_time(saved)
        if size is None or size >= len(seed):
            return several(seed)
        return _joined([several(part) for part in seed.split(size)], torch.cat)

    def _at_a_time(self, saved: Sequence[object]) -> int | None:
        """How many seeds are propagated at a time; None for all."""
        # A compiled pass has all of them: which values it makes is up to the compiler.
        if self.chunk_size is not None or torch.compiler.is_compiling():
            return self.chunk_size
        largest = max((x.numel() * x.element_size() for x in saved if isinstance(x, Tensor)), default=0)
        return max(1, SEEDS_TAKE // (VALUES * largest)) if largest else None

    def run(self, inputs: tuple[Tensor, ...], target: Target) -> tuple[Tensor, tuple[Tensor | None, ...], Recorded]:
        """Output, relevance of each input, and what was recorded; for K seeds, the relevance half runs for each."""
        target = as_tensor(target)
        if not is_given(target) or (isinstance(target, Tensor) and target.ndim == self.rank):
            return self._called(self.pass_for(target).run, *inputs, target)
        output, values = self._of_output.forward(inputs)
        return output, *self._of_output.relevance(values, seed_relevance(output, target))

    def run_all(
        self, inputs: tuple[Tensor, ...], target: Target, *, only: int | None = None
    ) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
        """Output, and relevance of each input by each method; one forward pass, where they start from the output.

        Parameters
        ----------
        inputs : tuple of Tensor
            The model's.
        target : int, Tensor or None
            Classes, or one seed.
        only : int or None
            The one method that is asked for.
        """
        methods = range(len(self.passes)) if only is None else [only]
        target = as_tensor(target)
        program = self._of_output if is_given(target) else self
        if any(program.passes[method].of_logits for method in methods):
            found = [self._called(program.passes[method].run, *inputs, target) for method in methods]
            return found[0][0], [relevance for _, relevance, _ in found]
        output, values = program.forward(inputs)
        seed = seed_relevance(output, target, batched=self.batched)
        return output, [program.relevance(values, seed, method)[0] for method in methods]


def _joined(parts: Sequence[Found], join: Callable[[tuple[Tensor, ...]], Tensor]) -> Found:
    """Of several seeds, one tensor for each; none where no relevance arrives."""
    return pytree.tree_map(lambda *each: None if each[0] is None else join(each), *parts)


def has_batch(canonical: fx.GraphModule) -> bool:
    """Whether the output of a canonical graph has a batch: one of a single dimension may be of one sample.

    It is one if the inputs have none, or no dimension of this size.
    """
    value = next(node for node in canonical.graph.nodes if node.op == "output").args[0].meta["val"]
    if value.ndim != 1 or not isinstance(value.shape[0], int):
        return True
    sizes = [size for n in canonical.graph.nodes if n.op == "placeholder" for size in n.meta["val"].shape]
    same = any(isinstance(size, int) and size == value.shape[0] for size in sizes)
    return same and not UNBATCHED.of(canonical)
