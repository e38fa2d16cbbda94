"""Which images may be hits: conditions on labels as values, and the filter that they become."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

from matchflow.labels import LabelValue, number, refusal, timestamp
from matchflow.v1 import search_pb2
from matchflow.values import ImageRef

if TYPE_CHECKING:
    from collections.abc import Collection

ENDS = ("gte", "gt", "lte", "lt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """A number or a time between ends, as far as they are given: Between(gte=18, lt=65)."""

    gte: float | dt.datetime | None = None
    gt: float | dt.datetime | None = None
    lte: float | dt.datetime | None = None
    lt: float | dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Present:
    """The label is there, whatever its value."""


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not hold; an image without the label passes: Not("c1"), Not(["c1", "c2"]), Not(Present())."""

    condition: Condition


@dataclass(frozen=True, slots=True, init=False)
class AllOf:
    """Several conditions on one label: AllOf(Present(), Not("c1"))."""

    conditions: tuple[Condition, ...]

    def __init__(self, *conditions: Condition) -> None:
        object.__setattr__(self, "conditions", conditions)


Condition: TypeAlias = Union[LabelValue, Iterable[str], Iterable[float], Between, Present, Not, AllOf]  # noqa: UP007
"""A value, values of which one must hold, or one of Between, Present, Not, AllOf."""
LabelConditions: TypeAlias = Mapping[str, Condition]
"""Label name -> what must hold of it."""


def search_filter(
    gallery: str,
    *,
    where: LabelConditions | None = None,
    where_not: LabelConditions | None = None,
    images: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    exclude_same: Iterable[str] = (),
) -> search_pb2.Filter:
    """Return the filter; InvalidFieldError for what can't be said.

    where, where_not: what must hold of labels, and what must not. images: the only ids that may be hits; exclude: ids
    that never are. exclude_same: labels in which hits must differ from the stored query image.
    """
    only = None if images is None else list(images)
    if only is not None and not only:
        raise refusal("images", "expected at least one id; leave it out to search all")
    conditions = [
        *((name, condition) for name, condition in (where or {}).items()),
        *((name, Not(condition)) for name, condition in (where_not or {}).items()),
    ]
    return search_pb2.Filter(
        labels=[message for name, condition in conditions for message in _messages(name, condition)],
        exclude_images=[ImageRef(gallery, image_id).name for image_id in exclude],
        images=[ImageRef(gallery, image_id).name for image_id in only or ()],
        exclude_same=exclude_same,
    )


def _messages(name: str, condition: Condition, *, negated: bool = False) -> Iterator[search_pb2.LabelCondition]:
    field = f"where[{name!r}]"
    match condition:
        case Not():
            yield from _messages(name, condition.condition, negated=not negated)
        case AllOf() if negated and len(condition.conditions) != 1:
            raise refusal(field, "expected Not of one condition; got Not(AllOf(...)): negate its parts one by one")
        case AllOf():
            for part in condition.conditions:
                yield from _messages(name, part, negated=negated)
        case _:
            message = _message(condition, field)
            message.field, message.negated = name, negated
            yield message


def _message(condition: Condition, field: str) -> search_pb2.LabelCondition:
    match condition:
        case Present():
            return search_pb2.LabelCondition(is_present=True)
        case Between():
            return _range(condition, field)
        case str():
            return search_pb2.LabelCondition(any_of=[condition])
        case dt.datetime():
            return _range(Between(gte=condition, lte=condition), field)
        case Iterable() if not isinstance(condition, (bytes, bytearray)):
            return _any_of(list(condition), field)
        case _:
            return search_pb2.LabelCondition(any_number_of=[number(condition, field)])


def _any_of(values: Collection[object], field: str) -> search_pb2.LabelCondition:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values):
        return search_pb2.LabelCondition(any_of=texts)
    if texts or any(isinstance(value, dt.datetime) for value in values):
        raise refusal(field, "expected only texts, or only numbers, of which one must hold; for times see Between")
    return search_pb2.LabelCondition(any_number_of=[number(value, field) for value in values])


def _range(ends: Between, field: str) -> search_pb2.LabelCondition:
    given = {end: value for end in ENDS if (value := getattr(ends, end)) is not None}
    times = {end: timestamp(value, field) for end, value in given.items() if isinstance(value, dt.datetime)}
    if not given or len(times) not in {0, len(given)}:
        raise refusal(field, f"expected numbers or times as ends, at least one; got {ends}")
    if times:
        return search_pb2.LabelCondition(time_range=search_pb2.TimeRange(**times))
    numbers = {end: number(value, field) for end, value in given.items()}
    return search_pb2.LabelCondition(number_range=search_pb2.NumberRange(**numbers))
