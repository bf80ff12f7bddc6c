"""`fxlrp explain`: the relevance of one image as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from ..io.console import make_console, say
from .options import Question, about_a_model, writes_a_picture

__all__ = ["explain"]


@click.command(epilog="Example: fxlrp explain cat.jpg --model torchvision:resnet50 --target tabby -o why.png")
@click.argument("image", type=click.Path(path_type=Path))
@about_a_model
@writes_a_picture("The picture to write.", "relevance.png")
def explain(question: Question, *, image: Path, output: Path) -> None:
    """Explain what a model sees in IMAGE: print the top classes, and draw their relevance."""
    from ..plot import Panel, save
    from .subject import load_subject, twin_of
    from .tables import top_table

    console = make_console()
    subject = load_subject(console, question, image)
    loaded = subject.loaded
    assert subject.picture is not None
    x = loaded.input(subject.picture)
    twin = twin_of(console, subject, x)
    with console.status("Explaining …"):
        out = twin(x, subject.index)
    logits = out.output[0]
    index = int(logits.argmax()) if subject.index is None else subject.index
    console.print(top_table(logits, loaded.classes))
    chance = float(logits.softmax(0)[index])
    view = loaded.photo(x)[0]
    why = f"why “{loaded.classes[index]}”?\n{question.composite}"
    panels = [
        Panel(f"{loaded.classes[index]}\n{chance:.1%}", photo=view),
        Panel(why, photo=view, relevance=out.relevance[0]),
    ]
    save([panels], output)
    say(console, f"Why “{loaded.classes[index]}” ({chance:.1%}) is drawn in {output}.")
