"""Which models of torchvision, timm and transformers fxlrp converts: the sweep behind docs/zoo.md.

    python benchmarks/zoo.py [LIBRARY ...] [--jobs N] [--retry] [--kept FILE] [-o docs/zoo.md]

Takes hours; interrupted, the same command goes on. What is found is kept in a
JSON file (benchmarks/zoo.json), of which the page is written. The largest model
takes 20 GB, others up to 10 GB: what ran out of memory is tried again with
--retry and one job.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from fxlrp.zoo import Sweep, Trial
from fxlrp.zoo.catalogue import LIBRARIES
from fxlrp.zoo.sweep import table

HEAD = """# The zoo

What `python benchmarks/zoo.py` found with {versions}.
Composite {composite}, float64; random weights, with biases, batch-norm statistics and layer scales as training leaves
them; the smallest image of 64 pixels or more that the model takes. Of timm the smallest model of each family of names
(the part before the first underscore), if it has at most 150 million parameters; of transformers each classifier, with
few layers. A model passes if it is converted, its output is kept to 1e-9, and the ledger leaks no more than 1e-9 of
what any op receives.

*Attention* is a product of two matrices that both depend on the input. *Unconserved* is what rules drop by their own
definition (softmax, a first-order expansion, above all). *Batch norms left* are those, and other scales and shifts of
channels, that no linear layer could take in: they are linear ops with a rule of their own.

`fxlrp models timm` does the same on the command line, for a library, for single models (`timm:convnext_atto`) and for
functions of your own that return a model, or a model and its inputs (`mypackage.models:make`); `fxlrp.check` says of
one model what will happen to each of its ops.
"""


def share(trials: Sequence[Trial]) -> str:
    passed = sum(trial.passed for trial in trials)
    return f"{passed} of {len(trials)} ({passed / len(trials):.1%})" if trials else "-"


def page(sweep: Sweep) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sweep.conditions["versions"].items())
    parts = [HEAD.format(versions=versions, composite=sweep.conditions["composite"])]
    of = {library: [t for t in sweep.trials.values() if t.name.startswith(f"{library}:")] for library in LIBRARIES}
    of = {library: trials for library, trials in of.items() if trials}
    rows = ["| library | tried | pass | without attention |", "| --- | --- | --- | --- |"]
    for library, trials in of.items():
        tried = f"{len(trials)} of {len(sweep.names(library))}"
        rows.append(f"| {library} | {tried} | {share(trials)} | {share([t for t in trials if t.attention is False])} |")
    parts.append("\n".join(rows) + "\n")
    for library, trials in of.items():
        parts.append(f"## {library}\n\n{table(trials)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--kept", type=Path, default=Path(__file__).with_name("zoo.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/zoo.md"))
    args = parser.parse_args()
    sweep = Sweep(args.kept)
    if args.retry:
        sweep.forget(lambda trial: not trial.passed and trial.name.partition(":")[0] in args.libraries)
    for library in args.libraries:
        names = sweep.names(library, progress=track)
        todo = [name for name in names if name not in sweep.trials]
        for trial in track(sweep.run(todo, jobs=args.jobs, seconds=args.seconds), library, total=len(todo)):
            if not trial.passed:
                print(f"{trial.name}: {trial.failure}", flush=True)
        args.output.write_text(page(sweep))


if __name__ == "__main__":
    main()
