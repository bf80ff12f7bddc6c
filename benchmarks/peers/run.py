"""Have zennit's and captum's own tests of LRP ask fxlrp, from checkouts of their sources; none of them is copied.

    python benchmarks/peers/run.py [zennit | captum ...] [--zennit FOLDER] [--captum FOLDER] [-- PYTEST OPTIONS]

The checkouts are looked for beside this repository; they are to be of the versions that are tested:

    git clone --branch 0.5.1 https://github.com/chr5tphr/zennit ../zennit
    git clone --branch v0.8.0 https://github.com/pytorch/captum ../captum

Zennit's tests ask the installed zennit for its rules; another one goes into PYTHONPATH. Captum is taken from its
checkout. Each module and rule is captured anew, half a second each. For zennit, options go behind the ones given here:
``-- -k "0xdeadbeef and (test_linear_rule or test_simple_rule)"`` takes one of its seeds. A table tells how many passed,
what was left out, and what failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ("zennit", "captum")
RULES = "test_linear_rule or test_simple_rule"


@dataclass(frozen=True)
class Outcome:
    """What a suite found.

    Attributes
    ----------
    peer, version : str
        Whose tests they are.
    passed : int
        How many of them passed.
    failed : dict
        The message of each that did not, by its name.
    left_out : Counter
        How many were not asked, by the reason.
    """

    peer: str
    version: str
    passed: int
    failed: dict[str, str]
    left_out: Counter[str]

    def __str__(self) -> str:
        lines = [f"{self.peer:<8} {self.version:<10} {self.passed} of {self.passed + len(self.failed)}"]
        lines += [f"    left out ({count}): {why}" for why, count in self.left_out.items()]
        lines += [f"    FAILED {name}: {why}" for name, why in self.failed.items()]
        return "\n".join(lines)


def tests_of(peer: str, sources: Path) -> list[str]:
    """The test files of LRP, and which of their tests are asked."""
    if peer == "captum":
        return ["tests/attr/test_lrp.py", "tests/attr/layer/test_layer_lrp.py"]
    # Moved by zennit 1.0. Its "extended" tests are the same ones from further seeds.
    folder = "tests/unit" if (sources / "tests" / "unit").is_dir() else "tests"
    return [f"{folder}/test_rules.py", "-m", "not extended", "-k", RULES]


def run(peer: str, sources: Path, options: list[str]) -> Outcome | None:
    """Run a peer's tests; None, and a word on it, where there are none or they could not be run."""
    if not sources.is_dir():
        print(f"{peer}: no checkout at {sources}; give its folder with --{peer}")
        return None
    further = [str(sources)] if peer == "captum" else []
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(HERE), *further]
    print(f"{peer}: {sources}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "outcome.xml"
        command = [sys.executable, "-m", "pytest", "-p", f"as_{peer}", "-p", "no:cacheprovider", "-q", "--tb=line"]
        subprocess.run(
            [*command, f"--junitxml={written}", *tests_of(peer, sources), *options],
            cwd=sources,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            check=False,
        )
        return read(peer, written) if written.exists() else None


def read(peer: str, written: Path) -> Outcome:
    """What pytest wrote."""
    tree = ElementTree.parse(written)
    versions = [p.get("value", "") for p in tree.iter("property") if p.get("name") == "version"]
    passed, failed, left_out = 0, {}, Counter[str]()
    for case in tree.iter("testcase"):
        wrong = next((found for tag in ("failure", "error") if (found := case.find(tag)) is not None), None)
        skipped = case.find("skipped")
        if wrong is not None:
            message = wrong.get("message", "").partition("\n")[0]
            failed[f"{case.get('classname')}.{case.get('name')}"] = message
        elif skipped is not None:
            left_out[skipped.get("message", "")] += 1
        else:
            passed += 1
    return Outcome(peer, versions[0] if versions else "?", passed, failed, left_out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help="zennit, captum (default: both)")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, default=ROOT.parent / peer, help="a checkout of its sources")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    found = [run(peer, getattr(args, peer).resolve(), sys.argv[split + 1 :]) for peer in args.peers or PEERS]
    print(f"\n{'suite':<8} {'version':<10} passed")
    outcomes = [outcome for outcome in found if outcome is not None]
    print(*outcomes, sep="\n")
    return int(len(outcomes) < len(found) or any(o.failed or not o.passed for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
