"""The fields that rule when an image may change and when it ends: etag, expire_time and ttl."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from matchflow_service.errors import FieldInvalidError, shown
from matchflow_service.labels import LAST_SECOND, parse_time

if TYPE_CHECKING:
    from matchflow.v1 import gallery_pb2, ingest_pb2

ETAG = re.compile(r'"([1-9][0-9]{0,18})"', re.ASCII)


def etag(sequence: int) -> str:
    """Return the etag of an image that this change wrote; empty for 0: there is none, or it is not known.

    >>> etag(17)
    '"17"'
    """
    return f'"{sequence}"' if sequence else ""


def parse_etag(value: str, field: str) -> int | None:
    """Return the change that an etag stands for; None for an empty one."""
    if not value:
        return None
    found = ETAG.fullmatch(value)
    if found is None:
        raise FieldInvalidError(field, f"expected an etag as the server gave it; got {shown(value)}")
    return int(found[1])


def parse_expiry(message: gallery_pb2.Image | ingest_pb2.IngestImagesRequest, prefix: str = "") -> float | None:
    """Return when an image ends, in seconds since 1970; None: it stays."""
    now_s = time.time()
    match message.WhichOneof("expiration"):
        case "expire_time":
            expire_time = parse_time(message.expire_time, f"{prefix}expire_time")
            if expire_time.timestamp() <= now_s:
                raise FieldInvalidError(f"{prefix}expire_time", f"expected a time to come; got {expire_time}")
            return expire_time.timestamp()
        case "ttl":
            ttl_s = message.ttl.seconds + message.ttl.nanos / 1e9
            if not 0 < ttl_s < LAST_SECOND - now_s:
                raise FieldInvalidError(f"{prefix}ttl", f"expected more than 0 s, to the year 9999; got {ttl_s:g} s")
            return now_s + ttl_s
        case _:
            return None
