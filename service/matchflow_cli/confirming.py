"""Ask before something is deleted for good."""

import typer

from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE


def confirmed(question: str) -> bool:
    """Return what somebody answers; CommandError when nobody is there to."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise CommandError("nothing was deleted: nobody answered; add --yes", exit_code=MISUSE) from None
