"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar

import click

from ..composites.listing import COMPOSITES

__all__ = ["MODEL", "NAMES", "Question", "about_a_model", "writes_a_picture"]

NAMES = ", ".join(each.name for each in COMPOSITES if each.by_name)

Function = TypeVar("Function", bound=Callable[..., None])


@dataclass(frozen=True)
class Question:
    """Which model is explained, how and for which class, as it was typed."""

    model: str
    weights: str | None
    classes: int
    composite: str
    target: str | None


MODEL = (
    click.option("--model", required=True, metavar="MODEL", help="torchvision:NAME or timm:NAME."),
    click.option(
        "--weights",
        metavar="FILE",
        help="A state dict (.pth, .pt, .safetensors), or 'random'. Without: the library's pretrained weights, "
        "which it may have to download.",
    ),
    click.option("--classes", default=1000, show_default=True, type=click.IntRange(1), help="How many it has."),
)

OPTIONS = (
    *MODEL,
    click.option(
        "--composite",
        metavar="NAME",
        default="epsilon_plus_flat",
        show_default=True,
        help=f"Which rules: {NAMES}. print(fxlrp.composites.listed()) says what each does.",
    ),
    click.option("--target", metavar="CLASS", help="What to explain: index or name. Without: the most probable class."),
)


def about_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a `Question`, which the command gets as its first argument."""

    @wraps(command)
    def asked(
        *, model: str, weights: str | None, classes: int, composite: str, target: str | None, **others: object
    ) -> None:
        command(Question(model, weights, classes, composite, target), **others)

    for option in reversed(OPTIONS):
        asked = option(asked)
    return asked


def writes_a_picture(text: str, default: str | None = None) -> Callable[[Function], Function]:
    """Adds the option that says where to draw. Whether that can be is looked at before anything else is done."""

    def checked(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
        from ..io.files import check_picture

        if path is not None:
            check_picture(path)
        return path

    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=None if default is None else Path(default),
        show_default=default is not None,
        callback=checked,
        help=f"{text} Its ending says the format.",
    )
