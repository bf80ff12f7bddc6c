"""Draw which room of fxlrp imports which, into a page of the documentation.

    python docs/import_graph.py docs/design.md [--check]

A room is a module, or a package, directly in fxlrp. An import counts wherever it stands: at the top, in functions,
under ``TYPE_CHECKING``. A graph is written between the marks, of the imports that no others imply; `--check` says
instead whether it is the one that is there. Fails if there is a circle, of rooms or of modules.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import networkx as nx

SOURCES = Path(__file__).resolve().parents[1] / "src"
START, END = "<!-- import graph: begin -->\n", "<!-- import graph: end -->"


def files() -> dict[str, Path]:
    """The files of fxlrp by their module's name."""
    found = {}
    for file in sorted((SOURCES / "fxlrp").rglob("*.py")):
        parts = file.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path, known: set[str]) -> set[str]:
    """What of fxlrp a module imports; of a package's name, the submodule if it is one."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = (f"{module}.{alias.name}" for alias in node.names)
            found |= {each if each in known else module for each in names}
    return (found & known) - {name}


def modules() -> nx.DiGraph:
    """All modules, with an edge to each that one imports."""
    of = files()
    return nx.DiGraph({name: sorted(imported(name, file, set(of))) for name, file in of.items()})


def rooms(graph: nx.DiGraph) -> nx.DiGraph:
    """The same of rooms; ``fxlrp`` itself, which imports by name what it is asked for, is none."""
    room = lambda name: name.split(".")[1]
    edges = [(room(a), room(b)) for a, b in graph.edges if "." in a and "." in b]
    return nx.DiGraph([(a, b) for a, b in edges if a != b])


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """The sets of nodes that import one another."""
    return [sorted(each) for each in nx.strongly_connected_components(graph) if len(each) > 1]


def drawn(graph: nx.DiGraph) -> str:
    """The graph as Mermaid draws it."""
    edges = sorted(nx.transitive_reduction(graph).edges)
    return "```mermaid\ngraph LR\n" + "".join(f"    {a} --> {b}\n" for a, b in edges) + "```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    graph = modules()
    if found := circles(graph) + circles(rooms(graph)):
        sys.exit("\n".join(f"these import one another: {', '.join(each)}" for each in found))
    text = args.page.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    new = before + START + drawn(rooms(graph)) + END + after
    if not args.check:
        args.page.write_text(new)
    elif new != text:
        sys.exit(f"the graph in {args.page} is not that of today: python docs/import_graph.py {args.page}")


if __name__ == "__main__":
    main()
