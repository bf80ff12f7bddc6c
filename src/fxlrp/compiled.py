"""What a twin and an ISNet are: a module around a model, which runs programs made of the model's captures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from .compiler import Programs

__all__ = ["CompiledModule"]


class CompiledModule(nn.Module, ABC):
    """A module that runs programs of a model.

    A subclass says what they are made by, in `_start`; what that sets is not copied, nor written to a file.
    """

    model: nn.Module
    _programs: Programs
    _made_by_start: tuple[str, ...] = ("_programs",)

    @abstractmethod
    def _start(self) -> None:
        """Make what is made anew in each copy: captures hold functions, and a copy's model has tensors of its own."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Buffers are new tensors after a move: captures hold the old ones.
        self._programs.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._made_by_start}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()
