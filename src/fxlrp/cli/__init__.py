"""The command line: a file for each command."""

from __future__ import annotations

import click

# Torch takes seconds to import: commands import what needs it where they use it, so that --help is quick.
from ..errors import FxlrpError
from . import audit, demo, evaluate, explain, models, search, train

__all__ = ["main"]


class _Group(click.Group):
    """Shows fxlrp's errors as one line."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FxlrpError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxlrp", prog_name="fxlrp")
def main() -> None:
    """Explain what a neural network looks at, with layer-wise relevance propagation."""


for _command in (
    audit.audit,
    demo.demo,
    evaluate.evaluate,
    explain.explain,
    models.models,
    search.search,
    train.train,
):
    main.add_command(_command)
