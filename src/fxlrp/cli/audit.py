"""`fxlrp audit`: the ledger of one image."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import FxlrpError
from ..io.console import make_console, say
from .options import Question, about_a_model, writes_a_picture

__all__ = ["audit"]

LEAK = 1e-6
"""What an audit in float64 calls a leak; rounding stays far below."""


@click.command(epilog="Example: fxlrp audit cat.jpg --model torchvision:resnet50 --composite epsilon_plus -o flow.png")
@click.argument("image", type=click.Path(path_type=Path), required=False)
@about_a_model
@click.option("--rows", default=20, show_default=True, type=click.IntRange(0), help="How many to print; 0 for all.")
@writes_a_picture("A picture of the flow to write.")
def audit(question: Question, *, image: Path | None, rows: int, output: Path | None) -> None:
    """Account for every unit of relevance, op by op, in float64.

    Prints the ledger, with the worst rows first: what biases, stabilizers and the rules' own definitions took. What
    nothing accounts for is a leak: a mistake of fxlrp, and exit code 1. Without IMAGE, the input is random.
    """
    from ..ledger import audit as account
    from ..plot import flow, write
    from ..zoo import noise
    from .subject import load_subject, twin_of

    console = make_console()
    subject = load_subject(console, question, image)
    loaded, index = subject.loaded, subject.index
    x = loaded.input(subject.picture or noise()).double()
    loaded.model.double()
    twin = twin_of(console, subject, x)
    with console.status("Accounting …"):
        ledger = account(twin, x, index)
    what = "random, smooth like a photograph's, always the same" if image is None else str(image)
    lines = [
        f"model  {question.model}, weights {question.weights or 'pretrained'}, float64",
        f"input  {tuple(x.shape)}: {what}",
        f"why    {'the highest output' if index is None else loaded.classes[index]}, {question.composite}",
    ]
    say(console, "\n".join([*lines, "", ledger.table(rows or None)]))
    if output is not None:
        write(flow(ledger, title=f"{question.model}, {question.composite}"), output)
        say(console, f"The flow is drawn in {output}.")
    if not ledger.leak <= LEAK:
        worst = ledger.worst[0]
        raise FxlrpError(
            f"relevance leaks: {ledger.leak:.1e} of what comes in at {worst.node} ({worst.op}, {worst.rule}) is "
            "accounted for by nothing. This is a mistake of fxlrp, or of a rule or op that was registered"
        )
