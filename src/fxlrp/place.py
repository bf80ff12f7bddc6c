"""Where a node stands: in which module of the user's model, and at which of the user's lines."""

from __future__ import annotations

import re

from torch import fx

from .frames import OURS, is_users
from .graph import name_of_target
from .reading import unwrap

__all__ = ["module_calls", "module_path", "source_line", "where"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]*)')


def module_calls(node: fx.Node) -> list[tuple[str, str]]:
    """The calls of modules that `node` lies in, outermost first: (path, key); a module's every call has its own key."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(path, f"{path}@{key}") for key, (path, _) in stack.items()]


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that `node` lies in, '' for the model itself."""
    calls = module_calls(node)
    return calls[-1][0] if calls else ""


def source_line(node: fx.Node) -> str | None:
    """The user's own line that made `node` (``file:line: code``), None where the capture has none."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    # What stands in front of a frame of fxlrp has called fxlrp: it is no part of the model.
    ours = [index for index, frame in enumerate(frames) if frame["file"].startswith(OURS)]
    own = [frame for frame in frames[max(ours, default=-1) + 1 :] if is_users(frame["file"])]
    return f"{own[-1]['file']}:{own[-1]['line']}: {own[-1]['code'].strip()}" if own else None


def where(node: fx.Node) -> str:
    """Name the op of `node`, its module path and its source line, for an error message."""
    target = unwrap(node)[0] if node.op == "call_function" else node.target
    path = module_path(node)
    place = f"in module '{path}'" if path else "in the model's own forward"
    line = source_line(node)
    return f"{name_of_target(target)} {place}" + (f" ({line})" if line else "")
