"""A graph as Python code that a person reads."""

from __future__ import annotations

import inspect
import re

from torch import fx

__all__ = ["readable"]


def readable(graph: fx.Graph) -> str:
    """A graph as code: ops under their short names, no marks of where a value is freed."""
    code = re.sub(r";\s+\w+ = .*None$", "", graph.python_code("self").src.strip(), flags=re.MULTILINE)
    code = re.sub(r"torch\.ops\.(aten\.\w+)\.\w+", r"\1", code)
    for function in {node.target for node in graph.nodes if inspect.isfunction(node.target)}:
        qualified = f"{function.__module__}.{function.__name__}".replace(".", "_")
        code = re.sub(rf"\b{qualified}(_\d+)?\(", f"{function.__name__}(", code)
    return "\n".join(line.rstrip() for line in code.splitlines() if line.strip()) + "\n"
