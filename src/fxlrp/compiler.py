"""The programs of one model: captured when first needed, and found again by the inputs' shapes and the model's mode."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._guards import CompileContext, tracing

from .errors import FxlrpError, InputError
from .models import count_fused_steps, lends_tensors, settings, stand_in, weights
from .recipe import Recipe
from .relevance.program import Program
from .values import is_wrapped

__all__ = ["Programs"]

_CAPTURING = threading.RLock()

CAPTURES = 16
"""How many programs a model has at a time; the one that was used least recently goes first."""

KEYS = 256
"""For how many shapes of inputs it knows one."""

HOMES = 4
"""In how many settings a model that is given tensors for a call has a copy that is captured in its place."""

_GIVEN = (
    "a twin or an ISNet whose model has been given other tensors, or another mode, in the code that torch.compile "
    "compiles is run as it is, without it"
)


class Programs:
    """The programs of one model.

    Parameters
    ----------
    recipe : Recipe
        How they are made.
    lender : nn.Module or None
        Whose parameters and buffers they are run with, in place of the model's own.

    Raises
    ------
    CompositeError, ModulePathError, InputError
        If the recipe does not fit the model.
    """

    def __init__(self, recipe: Recipe, lender: nn.Module | None = None) -> None:
        recipe.check()
        self._recipe, self._lender = recipe, lender
        self._numbers = itertools.count()
        self._modules: list[nn.Module] = []
        self.clear()
        if not recipe.trainable:
            count_fused_steps()

    def of(self, inputs: tuple[Tensor, ...]) -> Program:
        """The program for these inputs, made if need be; of weights as they are now."""
        return self._followed(inputs) if torch.compiler.is_dynamo_compiling() else self._of(inputs)

    def _followed(self, inputs: tuple[Tensor, ...]) -> Program:
        """The same for torch.compile, which follows comparisons, but neither the search nor a capture.

        What is read and compared here is compared again at each call of the compiled code.
        """
        self._list_modules()
        modes = [module.training for module in self._modules]
        parameters = [each for module in self._modules for each in module._parameters.values() if each is not None]
        if not (self._is_in(modes) and all(isinstance(each, nn.Parameter) for each in parameters)):
            torch._dynamo.graph_break(msg=_GIVEN)
            return self._apart(inputs)
        for name in self._names_of_now():
            program = getattr(self._shelf, name)
            if program.capture.fits(inputs):
                return program
        # The length of a range is a number: a size is no longer one that may change.
        name, problem = self._named([(tuple(len(range(n)) for n in x.shape), x.dtype, x.device) for x in inputs])
        if problem:
            torch._dynamo.graph_break(msg=problem)
            return self._apart(inputs)
        return getattr(self._shelf, name)

    @torch.compiler.assume_constant_result
    def _list_modules(self) -> None:
        """Have a list of the model's modules, but for recurrent layers, which torch.compile refuses to look at."""
        self._modules = [each for each in self._recipe.model.modules() if not isinstance(each, nn.RNNBase)]

    @torch.compiler.assume_constant_result
    def _is_in(self, modes: list[bool]) -> bool:
        """Whether the modules are in these modes, and not to be so once the compiled code has run."""
        return modes == [module.training for module in self._modules]

    @torch.compiler.assume_constant_result
    def _names_of_now(self) -> tuple[str, ...]:
        """The names of the programs of the model as it is, in its modes and with its weights."""
        now, compiling = settings(self._recipe.model), CompileContext.current_compile_id()
        with tracing(None), _CAPTURING:
            for program in self.all:
                if not program.is_of(weights):
                    self._renewed(program)
            found = {name: each.prepared() for name, each in vars(self._shelf).items() if each.settings == now}
            # Where torch.compile begins again, it is to go the same way as before.
            return tuple(name for name in found if self._made_for.get(name) != compiling)

    @torch.compiler.assume_constant_result
    def _named(self, forms: list[tuple[Any, ...]]) -> tuple[str, str]:
        """The name of the program for inputs of these forms; or why there is none."""
        inputs = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in forms)
        try:
            # What is captured is no part of what torch.compile traces.
            with tracing(None):
                program = self._of(inputs).prepared()
        except FxlrpError as error:
            return "", str(error)
        return next(name for name, each in vars(self._shelf).items() if each is program), ""

    def _of(self, inputs: tuple[Tensor, ...]) -> Program:
        if torch._C._are_functorch_transforms_active():
            forms = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs]
            # What is captured is no part of what torch.func differentiates, or maps.
            with temporarily_clear_interpreter_stack():
                plain = [torch.zeros(f[0], dtype=f[1], device=f[2]) if isinstance(f, tuple) else f for f in forms]
                return self._of(tuple(plain))
        if lends_tensors(self._recipe.model):
            return self._at_home().of(inputs)
        if any(_is_empty(x) for x in inputs):
            return self._of_empty(inputs)
        shapes = tuple(
            (type(x), x.dtype, tuple(x.shape), x.stride()) if isinstance(x, Tensor) else type(x) for x in inputs
        )
        now = settings(self._recipe.model)
        program = self._known_for(shapes, now)
        if program is None or not program.is_of(weights):
            # torch.export is not made for several threads, nor are those that meet at a cold program.
            with _CAPTURING:
                program = self._known_for(shapes, now) or self._made(inputs, shapes, now)
                if not program.is_of(weights):
                    program = self._renewed(program)
        return program

    _apart: Any = torch.compiler.disable(_of)

    def _at_home(self) -> Programs:
        """The programs of a copy that has parameters of its own, for a model that was given others for a call.

        What was given is no part of the copy, but where parameters are constants: then these have its values.

        Raises
        ------
        InputError
            If parameters are constants, and what was given is a tensor within a transform of torch.func.
        """
        lent = [*self._recipe.model.parameters(), *self._recipe.model.buffers()]
        if not self._recipe.trainable and any(map(is_wrapped, lent)):
            raise InputError(
                "a twin that is not trainable has its parameters folded into constants, which torch.func cannot "
                "differentiate, or map over: convert the model with trainable=True"
            )
        now = settings(self._recipe.model) | {"tensors": tuple((each.shape, each.dtype, each.device) for each in lent)}
        with _CAPTURING:
            key = tuple(now.items())
            if key not in self._homes:
                home = Programs(replace(self._recipe, model=stand_in(self._recipe.model)), self._recipe.model)
                self._homes = OrderedDict([*self._homes.items(), (key, home)][-HOMES:])
            home = self._homes[key]
            if not self._recipe.trainable:
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
            for own, value in zip(
                (*self._recipe.model.parameters(), *self._recipe.model.buffers()), values, strict=True
            ):
                own.copy_(value)
        self._taken = values, weights(values)

    def _of_empty(self, inputs: tuple[Tensor, ...]) -> Program:
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
        self._shelf, self._known, self._immaterial = SimpleNamespace(), OrderedDict(), [frozenset()]
        self._homes, self._taken, self._made_for = OrderedDict(), ([], ()), {}

    @property
    def all(self) -> list[Program]:
        """All of them, the latest last."""
        return list(vars(self._shelf).values())

    def _known_for(self, shapes: tuple[object, ...], now: dict[Hashable, Hashable]) -> Program | None:
        known = self._known
        for immaterial in self._immaterial:
            key = shapes, immaterial, _without(now, immaterial)
            if key in known:
                known.move_to_end(key)
                return known[key]
        return None

    def _made(self, inputs: tuple[Tensor, ...], shapes: tuple[object, ...], now: dict[Hashable, Hashable]) -> Program:
        """A program that was made for other sizes or settings and fits, or a new one; the oldest of many is dropped."""
        program = self._find(inputs, now)
        changed = frozenset(key for key in {*now, *program.settings} if now.get(key) != program.settings.get(key))
        if changed not in self._immaterial:
            self._immaterial.append(changed)
        known = OrderedDict([*self._known.items(), ((shapes, changed, _without(now, changed)), program)])
        kept = list(dict.fromkeys(reversed(known.values())))[:CAPTURES]
        # A new one: other threads may be looking into the old.
        self._known = OrderedDict([(key, of) for key, of in known.items() if of in kept][-KEYS:])
        if program not in self.all:
            name = f"program_{next(self._numbers)}"
            self._made_for[name] = CompileContext.current_compile_id()
            setattr(self._shelf, name, program)
        for name, each in list(vars(self._shelf).items()):
            if each not in kept:
                delattr(self._shelf, name)
        return program

    def _find(self, inputs: tuple[Tensor, ...], now: dict[Hashable, Hashable]) -> Program:
        for program in self.all:
            if program.settings == now and program.capture.fits(inputs):
                return program
        found = self._recipe.calls(inputs) if self.all else None
        for program in self.all:
            if found is not None and found == program.capture.trace.calls and self._speaks_for(program, inputs, now):
                return program
        captured = self._recipe.captured(inputs)
        if self._recipe.exported is not None and not captured.fits(inputs):
            made_for = ", ".join(f"{tuple(n.meta['val'].shape)} {n.meta['val'].dtype}" for n in captured.placeholders)
            raise InputError(
                f"the exported program was made for inputs {made_for}: export it for others, or convert the model"
            )
        fingerprint = captured.fingerprint()
        for program in self.all:
            if program.fingerprint == fingerprint and self._speaks_for(program, inputs, now):
                return program
        return self._recipe.program(captured, fingerprint, now, self._lender)

    def _speaks_for(self, program: Program, inputs: tuple[Tensor, ...], now: dict[Hashable, Hashable]) -> bool:
        """Whether a program, of which the graph is the same, may run these inputs."""
        # Attributes that changed were immaterial.
        same = all(now.get(key) == value for key, value in program.settings.items() if not isinstance(key, tuple))
        return same and (program.capture.fits(inputs) or not program.size_bound)

    def _renewed(self, stale: Program) -> Program:
        """The same program, of the weights as they are now: nothing is captured again."""
        new = self._recipe.program(stale.capture, stale.fingerprint, stale.settings, self._lender)
        self._known = OrderedDict((key, new if of is stale else of) for key, of in self._known.items())
        (name,) = (name for name, each in vars(self._shelf).items() if each is stale)
        setattr(self._shelf, name, new)
        return new


def _is_empty(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == 0


def _without(now: dict[Hashable, Hashable], names: frozenset[Hashable]) -> tuple[object, ...]:
    return tuple(item for item in now.items() if item[0] not in names)
