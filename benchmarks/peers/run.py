"""Have zennit's and captum's own tests of LRP ask fxlrp, from checkouts of their sources; none of them is copied.

    python benchmarks/peers/run.py [zennit | captum ...] [--zennit FOLDER] [--captum FOLDER] [-- PYTEST OPTIONS]

The checkouts are looked for beside this repository. Of another zennit than the installed one, put it into PYTHONPATH.
Each module and rule is captured anew, about half a second each. For zennit, options go behind the ones
given here: ``-- -k "0xdeadbeef and (test_linear_rule or test_simple_rule)"`` takes one of its seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RULES = "test_linear_rule or test_simple_rule"


def tests_of(peer: str, sources: Path) -> list[str]:
    """The test files of LRP, and which of their tests are asked."""
    if peer == "captum":
        return ["tests/attr/test_lrp.py", "tests/attr/layer/test_layer_lrp.py"]
    # Moved by zennit 1.0. Its "extended" tests are the same ones from further seeds.
    folder = "tests/unit" if (sources / "tests" / "unit").is_dir() else "tests"
    return [f"{folder}/test_rules.py", "-m", "not extended", "-k", RULES]


def run(peer: str, sources: Path, options: list[str]) -> int:
    if not sources.is_dir():
        print(f"{peer}: no checkout at {sources}; give its folder with --{peer}")
        return 1
    further = [str(sources)] if peer == "captum" else []
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(HERE), *further]
    command = [sys.executable, "-m", "pytest", "-p", f"as_{peer}", "-p", "no:cacheprovider", "-q", "-rf", "--tb=line"]
    print(f"{peer}: {sources}", flush=True)
    return subprocess.run(
        [*command, *tests_of(peer, sources), *options],
        cwd=sources,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=False,
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", help="zennit, captum (default: both)")
    for peer in ("zennit", "captum"):
        parser.add_argument(f"--{peer}", type=Path, default=ROOT.parent / peer, help="a checkout of its sources")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    found = [
        run(peer, getattr(args, peer).resolve(), sys.argv[split + 1 :]) for peer in args.peers or ["zennit", "captum"]
    ]
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
