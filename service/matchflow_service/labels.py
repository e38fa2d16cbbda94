"""Labels between messages and values: texts, numbers and times, each within its limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from matchflow.v1 import types_pb2
from matchflow_service import fields
from matchflow_service.errors import FieldInvalidError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf import timestamp_pb2

    from matchflow_index import LabelValue

MAX_LABELS = 64
# 0001-01-01 to 9999-12-31, as google.protobuf.Timestamp has it.
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
MAX_NANOS = 999_999_999
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_labels(message: types_pb2.Labels, field: str) -> dict[str, LabelValue]:
    """Return the labels of an image; FieldInvalidError for one that can't be stored, or has values of two kinds."""
    count = len(message.values) + len(message.numbers) + len(message.times)
    if count > MAX_LABELS:
        raise FieldInvalidError(field, f"expected at most {MAX_LABELS} labels; got {count}")
    labels: dict[str, LabelValue] = {}
    for name, text in message.values.items():
        fields.label_name(name, f"{field}.values")
        labels[name] = fields.label_value(text, f"{field}.values[{name}]")
    for name, number in message.numbers.items():
        _check_name(name, labels, f"{field}.numbers")
        labels[name] = fields.finite(number, f"{field}.numbers[{name}]")
    for name, time in message.times.items():
        _check_name(name, labels, f"{field}.times")
        labels[name] = parse_time(time, f"{field}.times[{name}]")
    return labels


def _check_name(name: str, labels: Mapping[str, LabelValue], field: str) -> None:
    fields.label_name(name, field)
    if name in labels:
        raise FieldInvalidError(field, f"expected each label in one map only; got {shown(name)} again")


def labels_message(labels: Mapping[str, LabelValue]) -> types_pb2.Labels:
    """Return labels as a message."""
    message = types_pb2.Labels()
    for name, value in labels.items():
        match value:
            case str():
                message.values[name] = value
            case datetime():
                message.times[name].FromDatetime(value)
            case _:
                message.numbers[name] = value
    return message


def parse_time(message: timestamp_pb2.Timestamp, field: str) -> datetime:
    """Return a time to the microsecond."""
    if not (FIRST_SECOND <= message.seconds <= LAST_SECOND and 0 <= message.nanos <= MAX_NANOS):
        raise FieldInvalidError(
            field, f"expected a time of the years 1 to 9999; got {message.seconds} s and {message.nanos} ns since 1970"
        )
    return EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
