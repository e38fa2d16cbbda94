"""Image ids by slot and slots by image id."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_index import image_ids
from matchflow_index.errors import CacheDamagedError
from matchflow_index.image_ids import ImageIds

names = st.sampled_from(["", "a", "b", "plumless", "buckeroo", "猫", "z" * 300]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=5
)


def check(ids: ImageIds, expected: list[str]) -> None:
    assert len(ids) == len(expected)
    assert [ids[slot] for slot in range(len(ids))] == expected
    for name in {*expected, "nobody"}:
        assert ids.slots(name) == [slot for slot, other in enumerate(expected) if other == name]


@given(
    steps=st.lists(st.lists(names, max_size=8), max_size=6), tail=st.integers(0, 20), share=st.sampled_from([0, 0.5])
)
@settings(deadline=None)
def test_every_slot_is_found_by_its_id_however_the_ids_came(steps: list[list[str]], tail: int, share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_ids, "LARGEST_TAIL", tail)
        patch.setattr(image_ids, "TAIL_SHARE", share)
        ids, expected = ImageIds(), list[str]()
        check(ids, expected)
        for step in steps:
            ids.extend(step)
            expected += step
            check(ids, expected)
        again = ImageIds.decode(ids.encode(), size=len(expected))
        check(again, expected)
        again.extend(["a", "new"])
        check(again, [*expected, "a", "new"])


@given(ids=st.lists(names, max_size=12), data=st.data())
@settings(deadline=None)
def test_some_ids_are_taken_in_their_order(ids: list[str], data: st.DataObject) -> None:
    kept = sorted(data.draw(st.frozensets(st.integers(0, len(ids) - 1)))) if ids else []
    whole = ImageIds()
    whole.extend(ids)
    check(whole.taken(np.array(kept, np.int64)), [ids[slot] for slot in kept])
    assert whole.of(kept) == [ids[slot] for slot in kept]


def test_ids_with_equal_checksums_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    monkeypatch.setattr(image_ids, "LARGEST_TAIL", 0)
    monkeypatch.setattr(image_ids, "TAIL_SHARE", 0)
    ids = ImageIds()
    ids.extend(["plumless", "other", "buckeroo", "plumless"])
    assert ids.slots("plumless") == [0, 3]
    assert ids.slots("buckeroo") == [2]


def test_a_million_ids_take_about_forty_bytes_each() -> None:
    ids = ImageIds()
    count = 200_000
    ids.extend([f"gallery/image-{k:07}" for k in range(count)])
    assert sum(array.nbytes for array in ids.encode().values()) + ids._order.nbytes + ids._sorted.nbytes < 50 * count
    assert ids.slots("gallery/image-0123456") == [123_456]
    assert not ids._tail


@pytest.mark.parametrize(
    "wrong", [{"id_ends": [1, 1, 2]}, {"id_ends": [2, 1, 3]}, {"id_text": []}, {"id_ends": [1, 2]}]
)
def test_ids_that_nobody_wrote_are_refused(wrong: dict[str, list[int]]) -> None:
    ids = ImageIds()
    ids.extend(["a", "b", "c"])
    with pytest.raises(CacheDamagedError):
        ImageIds.decode({**ids.encode(), **{name: np.array(values) for name, values in wrong.items()}}, size=3)
