"""Measure what docs/performance.md and the README say of speed, on one thread.

    python benchmarks/performance [SECTION ...] [--networks NAME ...] [--size N] [--rounds N]
    python benchmarks/performance --check [SECTION ...]
    python benchmarks/performance --cuda [--eager]

Prints a table for each section. With --write, keeps the figures in figures.json and puts the tables into the
documentation; with --check, says what got worse than these by more than a tenth and more than the noise of both.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from marks import put

from performance.classes import CLASSES, several
from performance.compiled import COMPILED
from performance.conversion import CONVERSION, converted
from performance.device import DEVICE
from performance.growth import GROWTH
from performance.heatmaps import HEATMAPS
from performance.measuring import Figure, grow
from performance.memory import MEMORY
from performance.methods import method_of
from performance.networks import images
from performance.rewrites import REWRITTEN
from performance.rounding import ROUNDING
from performance.section import Row, Section, Settings, merged, table, worse
from performance.shares import SHARES
from performance.training import TRAINING

ON_THE_CPU = (HEATMAPS, REWRITTEN, ROUNDING, TRAINING, CLASSES, CONVERSION, MEMORY, GROWTH, COMPILED, SHARES)
SECTIONS = {section.name: section for section in (*ON_THE_CPU, DEVICE)}
FIGURES = Path(__file__).parent / "figures.json"
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")


def child(subject: Sequence) -> list[float]:
    """What is measured in a process of its own."""
    what, *rest = subject
    if what == "conversion":
        return converted(*rest)
    kind, *rest = rest
    if kind == "classes":
        return [grow(several(*rest))]
    network, method, rule, size = rest
    run = method_of(method, network, images(1, size), rule)
    assert run is not None
    return [grow(run)]


def about(section: Section, command: str, rounds: int) -> str:
    """Where and by what a table was made."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "zennit"))
    where = torch.cuda.get_device_name() if "--cuda" in command else f"one thread of {platform.machine()}"
    how = "once" if section.once else f"{rounds} interleaved rounds, medians ± half the range"
    return f"`{command}`, {date.today()}: {packages}, {where}, {how}."


def measured(section: Section, settings: Settings) -> list[Row]:
    """The rows of a section; where it is interrupted, those that there are."""
    rows = list[Row]()
    try:
        for row in section.rows(settings):
            rows.append(row)
            print(f"  {', '.join(map(str, list(row.values())[:2]))}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("  interrupted", file=sys.stderr)
    finally:
        if rows:
            print(f"{section.text}\n\n{table(rows)}\n", flush=True)
    return rows


def stored() -> dict[str, dict]:
    """The figures that were kept, by section."""
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figure = lambda value: Figure(*value) if isinstance(value, list) else value
    for kept in found.values():
        kept["rows"] = [{name: figure(value) for name, value in row.items()} for row in kept["rows"]]
    return found


def write(found: dict[str, dict]) -> None:
    """Keep figures, and put their tables in between the marks of the pages."""
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    for name, kept in found.items():
        body = lambda rows, name=name, kept=kept: f"{SECTIONS[name].text}\n\n{table(rows)}\n\n{kept['about']}"
        for page in PAGES:
            put(page, name, name, body(kept["rows"]))
            put(page, f"{name}: resnet50", name, body([row for row in kept["rows"] if row["network"] == "resnet50"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all but device")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="of torchvision; each section has its own")
    parser.add_argument("--size", type=int, metavar="N", help="of the images")
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="how often each thing is timed (%(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="keep the figures, and put them into the documentation")
    parser.add_argument("--check", action="store_true", help="compare with the figures that are kept")
    parser.add_argument("--cuda", action="store_true", help="the section device, on a GPU")
    parser.add_argument("--eager", action="store_true", help="do not compile: of device, which compiles each thing")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(child(args.child)))
        return
    names = args.sections or (["device"] if args.cuda else [section.name for section in ON_THE_CPU])
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    if args.cuda and not torch.cuda.is_available():
        parser.error("--cuda needs a GPU that this PyTorch can see")
    settings, before, lost = Settings(args.networks, args.size, args.rounds, not args.eager), stored(), []
    for name in names:
        print(f"\n## {name}\n", flush=True)
        section, command = SECTIONS[name], f"python benchmarks/performance {'--cuda' if args.cuda else name}"
        rows = measured(section, settings)
        print(about(section, command, args.rounds), flush=True)
        if args.check and name in before:
            lost += worse(section, rows, before[name]["rows"])
        if args.write:
            kept = stored()
            rows = merged(kept.get(name, {}).get("rows", []), rows)
            write(kept | {name: {"about": about(section, command, args.rounds), "rows": rows}})
    if args.check:
        print("\n" + ("\n".join(lost) or "Nothing got worse."))
        raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
