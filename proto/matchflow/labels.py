"""Labels of images: texts, numbers and times, as values and as messages."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from matchflow.errors import InvalidFieldError
from matchflow.v1 import types_pb2

if TYPE_CHECKING:
    from matchflow.v1 import gallery_pb2, ingest_pb2

LabelValue: TypeAlias = str | float | dt.datetime
"""A text, a number, or a time with its zone."""
Labels: TypeAlias = Mapping[str, LabelValue]
Expiry: TypeAlias = dt.datetime | dt.timedelta
"""A time with its zone, or how long after the request arrives."""


def refusal(field: str, problem: str) -> InvalidFieldError:
    """Return the error of a field that never leaves the client."""
    error = InvalidFieldError(f"{field}: {problem}")
    error.fields = {field: problem}
    return error


def labels_message(labels: Labels, field: str = "labels") -> types_pb2.Labels:
    """Return labels as a message; InvalidFieldError for a value that is no text, finite number or time with a zone."""
    message = types_pb2.Labels()
    for name, value in labels.items():
        where = f"{field}[{name!r}]"
        try:
            match value:
                case str():
                    message.values[name] = value
                case dt.datetime():
                    message.times[name].CopyFrom(timestamp(value, where))
                case _:
                    message.numbers[name] = number(value, where)
        except (TypeError, ValueError) as error:  # texts that are no Unicode, names that are no texts
            raise refusal(where, f"expected Unicode text; {error}") from error
    return message


def labels_of(message: types_pb2.Labels) -> dict[str, LabelValue]:
    """Return labels as values; times are in UTC."""
    times = {name: time.ToDatetime(tzinfo=dt.UTC) for name, time in message.times.items()}
    return {**message.values, **message.numbers, **times}


def number(value: object, field: str) -> float:
    """Return a number as the wire has it; InvalidFieldError for what is none, or loses digits there."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise refusal(field, f"expected a text, a number or a time; got {value!r}")
    try:
        sent = float(value)
    except OverflowError:
        sent = math.inf
    if not math.isfinite(sent):
        raise refusal(field, f"expected a finite number; got {value!r}")
    if isinstance(value, int) and sent != value:
        raise refusal(field, f"expected a number that float64 holds exactly; got {value}: send it as text")
    return sent


def timestamp(value: dt.datetime, field: str) -> Timestamp:
    """Return a time as a message; InvalidFieldError for one without a zone."""
    if value.utcoffset() is None:
        raise refusal(field, f"expected a time with its zone, such as datetime.now(UTC); got {value!r} without")
    message = Timestamp()
    try:
        message.FromDatetime(value)
    except (ValueError, OverflowError) as error:
        raise refusal(field, f"expected a time of the years 1 to 9999 in UTC; got {value!r}") from error
    return message


def set_expiry(message: gallery_pb2.Image | ingest_pb2.IngestImagesRequest, expire_time: Expiry | None) -> None:
    """Set when an image is gone; None: it stays. InvalidFieldError for a time without a zone."""
    if isinstance(expire_time, dt.timedelta):
        message.ttl.FromTimedelta(expire_time)
    elif expire_time is not None:
        message.expire_time.CopyFrom(timestamp(expire_time, "expire_time"))
