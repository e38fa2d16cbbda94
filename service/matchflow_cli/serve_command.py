"""`matchflow serve`: run the server."""

import asyncio
import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE

MIB = 1024 * 1024


class StoreDurability(enum.StrEnum):
    """What an acknowledged image survives: the loss of power, or the end of any process."""

    DISK = "disk"
    PROCESS = "process"


class LogFormat(enum.StrEnum):
    """How the log looks."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(enum.StrEnum):
    """What is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


def serve(
    *,
    store: Annotated[
        str | None,
        typer.Option(help="Folder of the galleries, made if missing; or redis://host:port/db, shared by many servers."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of this server alone for what it derives from a store on Redis.")
    ] = None,
    durability: Annotated[
        StoreDurability | None, typer.Option(help="When an image in a folder counts as stored. Default: disk.")
    ] = None,
    read_only: Annotated[
        bool | None,
        typer.Option("--read-only", help="Only search a store in a folder, also beside the server that writes to it."),
    ] = None,
    reads_without_store_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds that searches go on, and say so, while a store on Redis does not answer. Default: 60."
        ),
    ] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Folder of a bundle; again for more. The first is the default model.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one. Default: 50051.")] = None,
    provider: Annotated[str | None, typer.Option(help="ONNX Runtime execution provider.")] = None,
    encoder_threads: Annotated[int | None, typer.Option(help="Concurrent calls of the model.")] = None,
    encoder_batch_size: Annotated[int | None, typer.Option(help="Images per call of the model at most.")] = None,
    encoder_wait_ms: Annotated[float | None, typer.Option(help="How long a batch waits for more images.")] = None,
    encoder_queue_size: Annotated[int | None, typer.Option(help="Images that may wait for the model.")] = None,
    search_threads: Annotated[int | None, typer.Option(help="Searches that run at once.")] = None,
    max_image_mib: Annotated[int | None, typer.Option(help="Largest image file taken, in MiB.")] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help="Most pixels of an image.")] = None,
    max_message_mib: Annotated[int | None, typer.Option(help="Largest message taken, in MiB.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Seconds that calls get to end when told to stop.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="How the log looks. Default: json.")] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="What is logged. Default: INFO.")] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    What no flag says, the environment does: MATCHFLOW_STORE, MATCHFLOW_BUNDLES (paths parted by ':'), MATCHFLOW_PORT
    and so on. The log goes to standard error.
    """
    given: dict[str, Any] = {
        "store": store,
        "cache": cache,
        "durability": durability,
        "read_only": read_only,
        "reads_without_store_s": reads_without_store_s,
        "bundles": bundle or None,
        "host": host,
        "port": port,
        "provider": provider,
        "encoder_threads": encoder_threads,
        "encoder_batch_size": encoder_batch_size,
        "encoder_wait_ms": encoder_wait_ms,
        "encoder_queue_size": encoder_queue_size,
        "search_threads": search_threads,
        "max_image_bytes": max_image_mib and max_image_mib * MIB,
        "max_image_pixels": max_image_pixels,
        "max_message_bytes": max_message_mib and max_message_mib * MIB,
        "drain_s": drain_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    run({name: value for name, value in given.items() if value is not None})


def run(flags: dict[str, Any]) -> None:
    """Serve with these settings above those of the environment; raises CommandError for settings that are no good."""
    from pydantic import ValidationError  # noqa: PLC0415

    from matchflow_service.server import serve as serve_forever  # noqa: PLC0415 - brings faiss and ONNX Runtime
    from matchflow_service.settings import ServiceSettings  # noqa: PLC0415

    try:
        settings = ServiceSettings(**flags)
    except ValidationError as error:
        raise CommandError("; ".join(map(_describe, error.errors())), exit_code=MISUSE) from error
    asyncio.run(serve_forever(settings))


def _describe(problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    flag = "bundle" if name == "bundles" else name.replace("_", "-").replace("-bytes", "-mib")
    if problem["type"] == "missing":
        return f"the server needs --{flag}, or MATCHFLOW_{name.upper()} in the environment"
    return f"--{flag} or MATCHFLOW_{name.upper()}: {problem['msg']}; got {problem['input']!r}"
