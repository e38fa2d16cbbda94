from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from matchflow_index import ImageFilter, ImageRecord, LabelCondition
from matchflow_index.filters import LabelColumns

fields = st.sampled_from(["designer", "class", "unseen"])
values = st.sampled_from(["noto", "fluent", "", "x"])
labels = st.dictionaries(st.sampled_from(["designer", "class", "year"]), values)
conditions = st.builds(LabelCondition, field=fields, any_of=st.frozensets(values), negated=st.booleans())


@given(
    batches=st.lists(st.lists(labels, max_size=5), max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 100), labels), max_size=5),
    condition=conditions,
)
def test_the_columns_say_what_the_condition_says_of_each_image(
    batches: list[list[dict[str, str]]], changes: list[tuple[int, dict[str, str]]], condition: LabelCondition
) -> None:
    columns, plain = LabelColumns(), [each for batch in batches for each in batch]
    for batch in batches:
        columns.extend(batch)
    for slot, each in changes:
        if plain:
            columns.replace(slot % len(plain), each)
            plain[slot % len(plain)] = each
    assert columns.mask(condition).tolist() == [condition.accepts(each) for each in plain]


def test_columns_grow_beyond_their_first_size() -> None:
    columns = LabelColumns()
    for start in range(0, 5000, 700):
        columns.extend([{"number": str(k)} for k in range(start, start + 700)])
    mask = columns.mask(LabelCondition(field="number", any_of=frozenset({"3", "4321"})))
    assert np.flatnonzero(mask).tolist() == [3, 4321]


def record(image_id: str, **labels: str) -> ImageRecord:
    return ImageRecord(
        image_id=image_id, row_id=1, content_hash="", labels=labels, width_px=0, height_px=0, update_time_s=0.0
    )


def test_a_filter_wants_every_condition_and_no_excluded_image() -> None:
    image_filter = ImageFilter(
        labels=(
            LabelCondition(field="designer", any_of=frozenset({"noto", "fluent"})),
            LabelCondition(field="class", any_of=frozenset({"cat"}), negated=True),
        ),
        exclude=frozenset({"b"}),
    )
    assert image_filter.accepts(record("a", designer="noto"))
    assert image_filter.accepts(record("a", designer="fluent", **{"class": "dog"}))
    assert not image_filter.accepts(record("b", designer="noto"))
    assert not image_filter.accepts(record("a", designer="noto", **{"class": "cat"}))
    assert not image_filter.accepts(record("a"))


def test_an_empty_filter_takes_everything() -> None:
    assert ImageFilter().accepts(record("a"))


def test_a_condition_without_values_takes_nothing_unless_negated() -> None:
    nothing = LabelCondition(field="designer", any_of=frozenset())
    everything = LabelCondition(field="designer", any_of=frozenset(), negated=True)
    assert not nothing.accepts({"designer": "noto"})
    assert everything.accepts({"designer": "noto"})
