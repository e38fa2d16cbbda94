"""The filter of a search, from its message."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from matchflow_index import ImageFilter, LabelCondition, LabelRange
from matchflow_service import fields, names
from matchflow_service.errors import FieldInvalidError
from matchflow_service.labels import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matchflow.v1 import search_pb2
    from matchflow_index import Labels, LabelValue

MAX_IMAGES = 10_000
MAX_CONDITIONS = 64
MAX_CONDITION_VALUES = 1_000
ENDS: tuple[Literal["gte", "gt", "lte", "lt"], ...] = ("gte", "gt", "lte", "lt")


def parse_filter(message: search_pb2.Filter, gallery_id: str, *, also_excluded: str | None) -> ImageFilter:
    """Return the conditions of a search in `gallery_id`; `also_excluded` is an image id to leave out besides.

    What `exclude_same` says depends on the query: see `differing`.
    """
    fields.at_most(message.labels, "filter.labels", MAX_CONDITIONS)
    excluded = _image_ids(message.exclude_images, gallery_id, "filter.exclude_images")
    if also_excluded is not None:
        excluded |= {also_excluded}
    return ImageFilter(
        conditions=tuple(_condition(label, f"filter.labels[{i}]") for i, label in enumerate(message.labels)),
        any_ids=_image_ids(message.images, gallery_id, "filter.images") if message.images else None,
        exclude=excluded,
    )


def parse_exclude_same(request: search_pb2.SearchRequest) -> tuple[str, ...]:
    """Return the labels in which hits must differ from the query; FieldInvalidError unless that is a stored image."""
    wanted, field = request.filter.exclude_same, "filter.exclude_same"
    fields.at_most(wanted, field, MAX_CONDITIONS)
    source = request.query.WhichOneof("source")
    if wanted and source != "image":
        raise FieldInvalidError(
            field, f"expected a stored image as query, whose labels are known; got {source or 'none'}"
        )
    return tuple(fields.label_name(name, f"{field}[{i}]") for i, name in enumerate(wanted))


def differing(image_filter: ImageFilter, labels: Labels, names: Iterable[str]) -> ImageFilter:
    """Return the filter that also wants images to differ from `labels` in these; a label that is not there is free."""
    different = tuple(
        LabelCondition(field=name, any_of=frozenset({labels[name]}), negated=True) for name in names if name in labels
    )
    return replace(image_filter, conditions=image_filter.conditions + different)


def _image_ids(image_names: Sequence[str], gallery_id: str, field: str) -> frozenset[str]:
    fields.at_most(image_names, field, MAX_IMAGES)
    return frozenset(names.parse_image_in(name, gallery_id, f"{field}[{i}]") for i, name in enumerate(image_names))


def _condition(message: search_pb2.LabelCondition, field: str) -> LabelCondition:
    any_of, within = _what_holds(message, field)
    return LabelCondition(
        field=fields.label_name(message.field, f"{field}.field"), any_of=any_of, within=within, negated=message.negated
    )


def _what_holds(
    message: search_pb2.LabelCondition, field: str
) -> tuple[frozenset[LabelValue] | None, LabelRange | None]:
    """Return the values and the range of a condition, of which at most one is there."""
    asked = {
        "any_of": bool(message.any_of),
        "any_number_of": bool(message.any_number_of),
        "number_range": message.HasField("number_range"),
        "time_range": message.HasField("time_range"),
        "is_present": message.is_present,
    }
    given = [name for name, there in asked.items() if there]
    if len(given) > 1:
        raise FieldInvalidError(f"{field}.{given[1]}", f"expected one kind of condition; got {' and '.join(given)}")
    match given:
        case ["any_of"]:
            fields.at_most(message.any_of, f"{field}.any_of", MAX_CONDITION_VALUES)
            texts = (fields.label_value(text, f"{field}.any_of[{i}]") for i, text in enumerate(message.any_of))
            return frozenset(texts), None
        case ["any_number_of"]:
            where = f"{field}.any_number_of"
            fields.at_most(message.any_number_of, where, MAX_CONDITION_VALUES)
            numbers = (fields.finite(number, f"{where}[{i}]") for i, number in enumerate(message.any_number_of))
            return frozenset(numbers), None
        case ["number_range" | "time_range" as name]:
            return None, _range(getattr(message, name), f"{field}.{name}")
        case ["is_present"]:
            return None, None
        case _:
            raise FieldInvalidError(f"{field}.any_of", "expected at least one value, a range or is_present; got none")


def _range(message: search_pb2.NumberRange | search_pb2.TimeRange, field: str) -> LabelRange:
    parse = fields.finite if message.DESCRIPTOR.name == "NumberRange" else parse_time
    ends = {end: parse(getattr(message, end), f"{field}.{end}") for end in ENDS if message.HasField(end)}
    if not ends:
        raise FieldInvalidError(field, f"expected at least one of {', '.join(ENDS)}; got none")
    return LabelRange(**ends)
