"""What is known of an image by name: texts, numbers and times."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

# A text, a finite number, or a time with its zone.
LabelValue: TypeAlias = str | float | datetime
Labels: TypeAlias = "Mapping[str, LabelValue]"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class LabelKind(enum.StrEnum):
    """The three kinds of values; those of different kinds are never equal, and in no order."""

    TEXT = "text"
    NUMBER = "number"
    TIME = "time"


def kind_of(value: LabelValue) -> LabelKind:
    """Return the kind of a value.

    >>> kind_of(3)
    <LabelKind.NUMBER: 'number'>
    """
    if isinstance(value, str):
        return LabelKind.TEXT
    return LabelKind.TIME if isinstance(value, datetime) else LabelKind.NUMBER


def microseconds(time: datetime) -> int:
    """Return a time as whole microseconds since 1970, exactly: as float64 seconds the far future loses some.

    >>> microseconds(datetime(1970, 1, 2, tzinfo=UTC))
    86400000000
    """
    return (time - EPOCH) // _MICROSECOND


def encode_label(value: LabelValue) -> str | float | list[int]:
    """Return a label's value as JSON has it: a time is a list of its microseconds since 1970.

    >>> encode_label(datetime(1970, 1, 2, tzinfo=UTC))
    [86400000000]
    """
    return [microseconds(value)] if isinstance(value, datetime) else value


def decode_label(value: str | float | list[int]) -> LabelValue:
    """Return the value that `encode_label` wrote.

    >>> decode_label([86400000000])
    datetime.datetime(1970, 1, 2, 0, 0, tzinfo=datetime.timezone.utc)
    """
    return EPOCH + value[0] * _MICROSECOND if isinstance(value, list) else value


def as_text(value: LabelValue) -> str:
    """Return a value as a text that names it, for what tells classes apart: equal values of a kind have equal texts.

    >>> as_text("cat"), as_text(3.0), as_text(0.1), as_text(EPOCH)
    ('cat', '3', '0.1', '1970-01-01T00:00:00+00:00')
    """
    match value:
        case str():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat()
        case _:
            return str(int(value)) if value == int(value) else repr(value)
