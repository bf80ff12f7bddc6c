"""What the papers on choosing rules found, looked for in networks trained on scenes: the tables of docs/evaluation.md.

    python benchmarks/papers [SECTION ...] [--networks NETWORK ...] [--images N] [--kept FOLDER] [--write]

localization    Kohlbrenner et al. 2020, Table I
perturbation    Bermudez Schettino 2022, chapter 4, with its contours
canonization    Pahde et al. 2023, tables A.13 to A.20
tuning          rules tuned by gradient, beside a grid and TPE
trials          the time of a search, beside zennit

Trains what networks they need (scene_networks.py), or takes them from FOLDER. With --write, puts the tables into the
documentation, and the pictures beside them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from marks import put
from scene_networks import NETWORKS, Training

from papers.canonization import CANONIZATION
from papers.localization import LOCALIZATION
from papers.perturbation import PERTURBATION
from papers.section import Settings
from papers.trials import TRIALS
from papers.tuning import TUNING

SECTIONS = {each.name: each for each in (LOCALIZATION, PERTURBATION, CANONIZATION, TUNING, TRIALS)}
DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=list(SECTIONS), help="all, if there is none")
    parser.add_argument("--networks", nargs="+", metavar="NETWORK", choices=NETWORKS, help="each section has its own")
    parser.add_argument("--images", type=int, metavar="N", help="how many test scenes; each section has its own number")
    parser.add_argument("--count", type=int, metavar="N", help="training scenes (default: 3000; of relation, 20000)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--trials", type=int, default=16, metavar="N", help="to a grid's side (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="of each search (default: %(default)s)")
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help="where networks are kept, and looked for first")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="for the pictures")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into the documentation")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    how = Training("shapes", args.count, args.epochs, args.size, args.seed, args.kept)
    pictures = DOCS if args.write else args.output
    settings = Settings(args.networks, args.images, how, args.trials, args.seconds, pictures)
    numbers = {name: getattr(args, name) for name in ("images", "count", "epochs", "size", "trials", "seconds")}
    chosen = "".join(f" --{name} {value:g}" for name, value in numbers.items() if value != parser.get_default(name))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "zennit"))
    for name in args.sections:
        start = time.process_time()
        body = SECTIONS[name].body(settings)
        taken = (time.process_time() - start) / 60
        threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
        about = (
            f"`python benchmarks/papers {name}{chosen}`, {date.today()}, seed {args.seed}: {packages}, {threads} of "
            f"{platform.machine()}, {taken:.0f} minutes of the processor."
        )
        text = f"{SECTIONS[name].text}\n\n{body}\n\n{about}"
        print(f"\n## {name}\n\n{text}", flush=True)
        if args.write:
            put(DOCS / "evaluation.md", name, name, text)


if __name__ == "__main__":
    main()
