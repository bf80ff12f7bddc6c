"""A capture that fails: what there is to say of it, and nothing else."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast

import torch
from torch import nn

from ..frames import is_users

__all__ = ["why_not", "without_graphs"]

_LOGGERS = [logging.getLogger(f"torch.fx.experimental.{name}") for name in ("recording", "symbolic_shapes")]

_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized|torch\.ao\.quantization\.(observer|fake_quantize)")


class _WithoutGraphs:
    """The standard error stream, but for the graph as far as it came, which torch.export prints when it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._left_out = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        # The line's end is written by itself.
        self._left_out = "def forward(self" in text or (self._left_out and text == "\n")
        return len(text) if self._left_out else self._stream.write(text)


@contextmanager
def without_graphs() -> Iterator[None]:
    """Keep torch.export from printing and logging what the error says that is raised anyway."""
    levels = [logger.level for logger in _LOGGERS]
    try:
        for logger in _LOGGERS:
            logger.setLevel(logging.CRITICAL)
        with redirect_stderr(cast(TextIO, _WithoutGraphs(sys.stderr))):
            yield
    finally:
        for logger, level in zip(_LOGGERS, levels, strict=True):
            logger.setLevel(level)


def why_not(model: nn.Module, error: Exception) -> str:
    """Why `torch.export` could not capture a model: in which module, at which of the user's lines, and what to do."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    line = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    path, module = _innermost(model, error)
    place = f" in module '{path}' ({type(module).__name__})" if path else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{type(model).__name__} cannot be captured{place}{line}: {reason}{_hint(model, module, error)}"


def _innermost(model: nn.Module, error: Exception) -> tuple[str, nn.Module]:
    """The module, with its path, that was called last before the error."""
    paths = {id(module): (path, module) for path, module in model.named_modules()}
    called = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((paths[one] for one in reversed(called) if one in paths), ("", model))


def _hint(model: nn.Module, module: nn.Module, error: Exception) -> str:
    if type(module).__module__.startswith("torchvision.transforms"):
        return (
            ". What prepares images is no part of what can be explained: apply it before, and convert the model "
            "without it (of a Sequential, model[1:])"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return ". It is TorchScript: put the nn.Module that it was made from in its place"
    if quantized := [path for path, part in model.named_modules() if _QUANTIZED.match(type(part).__module__)]:
        return f". '{quantized[0]}' is quantized: explain the floating-point model that it was made from"
    if isinstance(error, TypeError) and module is model:
        return (
            f". Its forward takes {inspect.signature(model.forward)}: give the inputs in a tuple, in this order; a "
            "batch is one tensor, made with torch.stack"
        )
    if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
        return (
            " The model's control flow depends on the values of its input; make the choice outside of the model, or "
            "compute both branches and select with torch.where."
        )
    return ""
