"""Structured logs: the code logs through the standard library, and structlog writes every record."""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import TYPE_CHECKING, Any

import structlog

from matchflow_service.calls import NO_REQUEST, request_id

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


# A message may quote what a client sent.
MAX_EVENT_LENGTH = 2000


def configure(*, log_format: str, level: str) -> None:
    """Send every record of the process to standard error, as JSON lines or as text for people."""
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[Processor] = [
        add_request_id,
        on_one_line,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict | dict[str, Any]:
    """Add the id of the call in whose context the record was made."""
    identity = request_id.get()
    if identity != NO_REQUEST:
        event["request_id"] = identity
    return event


def on_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Cut the message where it is too long, and escape what would forge another line or steer a terminal."""
    text = str(event["event"])[:MAX_EVENT_LENGTH]
    event["event"] = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return event
