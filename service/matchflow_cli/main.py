"""The entry point of the command `matchflow`; where only the client is installed it says what is missing."""

from __future__ import annotations

import sys

# What the extras bring; without them there is no command line, only the client.
OF_THE_EXTRAS = {"rich", "typer"}


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from matchflow_cli.application import run  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        if error.name not in OF_THE_EXTRAS:
            raise
        sys.exit(f"matchflow: the command line needs {error.name}; run: pip install 'matchflow[service]'")
    sys.exit(run(sys.argv[1:]))
