"""Run the server as the environment says: `python -m matchflow_service`."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from matchflow_service.errors import StartError
from matchflow_service.server import serve
from matchflow_service.settings import ServiceSettings


def main() -> int:
    """Serve until told to stop; return the exit status."""
    try:
        asyncio.run(serve(ServiceSettings.from_environment()))
    except (StartError, ValidationError) as error:
        sys.stderr.write(f"matchflow: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
