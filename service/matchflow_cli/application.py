"""The application: its commands, and how a run ends."""

import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated

import typer

from matchflow_cli import (
    doctor_command,
    evaluate_command,
    explain_command,
    export_command,
    gallery_commands,
    generation_commands,
    ingest_command,
    search_command,
    serve_command,
    tune_command,
)
from matchflow_cli.failures import exit_code_of, one_line


@dataclass(slots=True)
class Invocation:
    """What was asked for beside the command."""

    debug: bool = False


def application() -> typer.Typer:
    """Return the application with all its commands."""
    app = typer.Typer(
        name="matchflow",
        help="Image retrieval that says why two images match.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command("export")(export_command.export)
    app.command("serve")(serve_command.serve)
    app.command("ingest")(ingest_command.ingest)
    app.command("search")(search_command.search)
    app.command("explain")(explain_command.explain)
    app.add_typer(gallery_commands.application(), name="gallery")
    app.add_typer(generation_commands.application(), name="generation")
    app.command("eval")(evaluate_command.evaluate)
    app.command("tune")(tune_command.tune)
    app.command("doctor")(doctor_command.doctor)
    return app


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        typer.echo(f"matchflow {metadata.version('matchflow')}")
        raise typer.Exit


def _options(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    context.obj.debug = debug
    # `serve` configures its own log. Elsewhere warnings of the libraries are no business of who runs a command.
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(name)s: %(message)s")


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    invocation = Invocation()
    try:
        typer.main.get_command(application()).main(list(arguments), prog_name="matchflow", obj=invocation)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does; what is left unwritten must not fail again at exit.
        sys.stdout = None
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        if invocation.debug:
            traceback.print_exception(error)
        sys.stderr.write(f"matchflow: {one_line(error)}\n")
        return exit_code_of(error)
    return 0
