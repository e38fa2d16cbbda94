"""Labels, conditions and filters for property tests; values are few, so that they meet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from matchflow_index import ImageFilter, LabelCondition, LabelRange

if TYPE_CHECKING:
    from matchflow_index import LabelValue

START = datetime(2026, 1, 1, tzinfo=UTC)
EAST = timezone(timedelta(hours=5, minutes=30))

texts = st.sampled_from(["noto", "fluent", "", "x", "ß", "a\0b"])
numbers = st.sampled_from([-1.5, -0.0, 0.0, 0, 1, 1.0, 2, 1e300, 5e-324, 2.0**53]) | st.floats(
    allow_nan=False, allow_infinity=False
)
times = st.sampled_from(
    [
        START,
        START.astimezone(EAST),
        START + timedelta(microseconds=1),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1),
    ]
)
values: st.SearchStrategy[LabelValue] = texts | numbers | times
fields = st.sampled_from(["designer", "class", "year", "unseen"])
labels = st.dictionaries(st.sampled_from(["designer", "class", "year"]), values)


def _ranges(ends: st.SearchStrategy[float] | st.SearchStrategy[datetime]) -> st.SearchStrategy[LabelRange]:
    names = st.lists(st.sampled_from(["gte", "gt", "lte", "lt"]), min_size=1, unique=True)
    return names.flatmap(lambda chosen: st.builds(LabelRange, **dict.fromkeys(chosen, ends)))


ranges = _ranges(numbers) | _ranges(times)
conditions = st.builds(
    LabelCondition,
    field=fields,
    any_of=st.none() | st.frozensets(values, max_size=8),
    within=st.none() | ranges,
    negated=st.booleans(),
)
image_ids = st.sampled_from(["a", "b", "c", "d"])
filters = st.builds(
    ImageFilter,
    conditions=st.lists(conditions, max_size=3).map(tuple),
    any_ids=st.none() | st.frozensets(image_ids),
    exclude=st.frozensets(image_ids),
)
