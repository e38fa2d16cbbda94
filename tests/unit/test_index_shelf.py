"""The state in memory, the shortlist taken from it, and the checks in front of it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import (
    DIM,
    GRID,
    empty_shelf,
    gallery_spec,
    new_image,
    new_images,
    put_update,
    removal,
    sample_features,
    sight_of,
)

from matchflow_index import FeaturesRejectedError, ImageFilter, LabelCondition, SearchQuery, errors
from matchflow_index import slots as slots_module
from matchflow_index.checks import check_features, check_image
from matchflow_index.errors import CacheDamagedError
from matchflow_index.flat_index import FlatIndex
from matchflow_index.growing import GrowingArray
from matchflow_index.shelf import Update
from matchflow_index.shortlist import Shortlist, best_first, propose
from matchflow_index.slab import CellSlab
from matchflow_index.slots import Slots
from matchflow_index.truth import Change, ChangeKind
from matchflow_matching import MatchMode, MatchSettings, global_cosines, match

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index import ImageRecord
    from matchflow_index.shelf import Shelf

FEATURES = sample_features(64)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = empty_shelf()
    yield shelf
    shelf.close()


def put(shelf: Shelf, *names: str, **labels: str) -> None:
    """Put images with one change each; the features are those of the slot's number."""
    start, sequence = shelf.size, shelf.sequence + 1
    updates = [put_update(name, sequence + k, FEATURES[(start + k) % 64], labels) for k, name in enumerate(names)]
    shelf.apply(updates, shelf.sequence + len(names))


def proposed(shelf: Shelf, place: int, count: int) -> Shortlist:
    with sight_of(shelf) as sight:
        return propose(sight, SearchQuery(features=FEATURES[place]), count)


def is_zero(shelf: Shelf, slot: int) -> bool:
    return not shelf.slab.stored(np.array([slot])).any()


def test_every_row_has_one_slot_everywhere(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    put(shelf, "c")
    assert shelf.count == shelf.size == shelf.slab.size == shelf.coarse.size == 3
    assert shelf.slots.row_ids.values.tolist() == [101, 102, 103]
    assert shelf.slots.sequences.values.tolist() == [1, 2, 3]
    assert shelf.sequence == 3
    assert [shelf.slot(name) for name in "abc"] == [0, 1, 2]
    np.testing.assert_array_equal(shelf.slab.gather(np.array([2, 0])).cells, FEATURES.cells[[2, 0]])


def test_without_conditions_everything_alive_is_allowed_without_a_mask(shelf: Shelf) -> None:
    put(shelf, "a", "b", "a")
    everything = shelf.select(ImageFilter(exclude=frozenset({"nobody"})), 0.0)
    assert (everything.allowed, everything.without, everything.count) == (None, frozenset(), 2)
    but_one = shelf.select(ImageFilter(exclude=frozenset({"a"})), 0.0)
    assert (but_one.allowed, but_one.without, but_one.count) == (None, frozenset({2}), 1)


def test_dead_slots_are_not_proposed(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    put(shelf, "a")
    assert shelf.live_slots.tolist() == [1, 2]
    assert shelf.slot("a") == 2
    shortlist = proposed(shelf, 0, 5)
    assert sorted(shortlist.image_ids) == ["a", "b"]
    assert sorted(shortlist.slots.tolist()) == [1, 2]
    assert shortlist.total == 2


def test_an_image_that_comes_and_goes_in_one_transaction_leaves_a_dead_slot(shelf: Shelf) -> None:
    shelf.apply([put_update("a", 1, FEATURES[0]), put_update("a", 2, FEATURES[1]), removal("a", 3)], 3)
    assert (shelf.count, shelf.size, shelf.sequence) == (0, 2, 3)
    assert shelf.slot("a") is None
    assert is_zero(shelf, 0)
    assert is_zero(shelf, 1)


def test_nothing_to_apply_changes_nothing(shelf: Shelf) -> None:
    put(shelf, "a")
    shelf.apply([], 1)
    assert (shelf.sequence, shelf.count) == (1, 1)


def test_what_was_applied_before_does_nothing_again(shelf: Shelf) -> None:
    updates = [
        put_update("a", 1, FEATURES[0]),
        put_update("b", 2, FEATURES[1]),
        put_update("a", 3, FEATURES[2]),
        removal("b", 4),
    ]
    shelf.apply(updates, 4)
    for start in range(4):
        shelf.apply(updates[start:], 4)
        assert (shelf.count, shelf.sequence, shelf.live_slots.tolist()) == (1, 4, [2])


def test_a_put_whose_row_is_gone_ends_what_was_there_before(shelf: Shelf) -> None:
    """Who replays a log finds no row for an image that a later change replaced."""
    put(shelf, "a")
    undone = put_update("a", 2, FEATURES[1])
    shelf.apply([Update(change=undone.change)], 2)
    assert (shelf.count, shelf.slot("a")) == (0, None)
    assert is_zero(shelf, 0)


def test_labels_and_expiry_follow_a_record_of_the_same_row_only(shelf: Shelf) -> None:
    put(shelf, "a", colour="red")
    first = put_update("a", 1, FEATURES[0]).record
    assert first is not None
    change = Change(sequence=2, kind=ChangeKind.RELABEL, image_id="a", row_id=101, time_s=0.0)
    relabelled = replace(first, sequence=2, labels={"colour": "blue"}, expire_time_s=5.0)
    shelf.apply([Update(change=change, record=relabelled)], 2)
    blue = LabelCondition(field="colour", any_of=frozenset({"blue"}))
    assert shelf.select(ImageFilter(conditions=(blue,)), 4.9).count == 1
    assert shelf.select(ImageFilter(conditions=(blue,)), 5.0).count == 0
    assert shelf.expired(5.0) == ["a"]
    other = replace(relabelled, sequence=3, row_id=7, labels={"colour": "red"})
    shelf.apply([Update(change=replace(change, sequence=3), record=other)], 3)
    assert shelf.select(ImageFilter(conditions=(blue,)), 0.0).count == 1


def test_labels_exclusions_and_ids_narrow_what_is_allowed(shelf: Shelf) -> None:
    put(shelf, "a", "b", colour="red")
    put(shelf, "c", colour="blue")
    red = LabelCondition(field="colour", any_of=frozenset({"red"}))
    selection = shelf.select(ImageFilter(conditions=(red,), exclude=frozenset({"b", "c"})), 0.0)
    assert selection.allowed is not None
    assert (selection.allowed.tolist(), selection.without, selection.count) == ([True, False, False], frozenset(), 1)
    ids = frozenset({"b", "c", "nobody"})
    selection = shelf.select(ImageFilter(conditions=(red,), any_ids=ids), 0.0)
    assert selection.allowed is not None
    assert (selection.allowed.tolist(), selection.count) == ([False, True, False], 1)


def test_what_has_expired_is_not_allowed(shelf: Shelf) -> None:
    shelf.apply([put_update(name, k, FEATURES[k], expire_time_s=10.0 * k) for k, name in enumerate("abc", 1)], 3)
    assert shelf.select(ImageFilter(), 9.9).allowed is None
    for image_filter in (ImageFilter(), ImageFilter(any_ids=frozenset("abc"))):
        selection = shelf.select(image_filter, 20.0)
        assert selection.allowed is not None
        assert (selection.allowed.tolist(), selection.count) == ([False, False, True], 1)
    assert shelf.expired(20.0) == ["a", "b"]
    shelf.apply([removal("a", 4)], 4)
    assert shelf.expired(100.0) == ["b", "c"]


def test_features_of_what_is_removed_are_zero_in_the_slab_and_the_index(shelf: Shelf) -> None:
    put(shelf, "a", "b", "a")
    assert is_zero(shelf, 0)
    assert not is_zero(shelf, 1)
    assert shelf.is_erased
    assert isinstance(shelf.coarse, FlatIndex)
    assert not shelf.coarse.embeddings(np.array([0])).any()
    assert shelf.cell_norms[0] == 0


def test_what_is_pinned_is_erased_once_the_last_pin_is_gone(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    for _ in range(2):
        with shelf.lock.reading():
            shelf.pin()
    shelf.apply([removal("a", 3)], 3)
    assert not shelf.is_erased
    assert not is_zero(shelf, 0)
    assert proposed(shelf, 0, 5).image_ids == ["b"]
    shelf.unpin()
    assert not is_zero(shelf, 0)
    shelf.unpin()
    assert shelf.is_erased
    assert is_zero(shelf, 0)


def test_a_closed_slab_is_left_alone(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    with shelf.lock.reading():
        shelf.pin()
    shelf.apply([removal("a", 3)], 3)
    shelf.close()
    shelf.close()
    shelf.unpin()
    assert not shelf.is_erased
    assert proposed(shelf, 1, 5).image_ids == ["b"]


def test_an_image_can_be_put_again_after_its_removal(shelf: Shelf) -> None:
    put(shelf, "a")
    shelf.apply([removal("a", 2)], 2)
    put(shelf, "a", "b")
    shelf.apply([removal("b", 5), removal("nobody", 6)], 6)
    assert (shelf.slot("a"), shelf.count, shelf.live_slots.tolist(), shelf.sequence) == (1, 1, [1], 6)


@pytest.mark.parametrize("fault", [(FlatIndex, "add"), (CellSlab, "cell_norms")])
def test_an_index_without_memory_leaves_the_slots_in_step(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, fault: tuple[type, str]
) -> None:
    put(shelf, "a")

    def refuse(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(*fault, refuse)
        with pytest.raises(MemoryError):
            put(shelf, "b")
    assert shelf.slab.size == shelf.coarse.size == shelf.count == shelf.size == shelf.sequence == 1
    put(shelf, "c")
    assert proposed(shelf, 1, 1).image_ids == ["c"]


def test_a_shortlist_outlives_what_it_was_taken_from(shelf: Shelf) -> None:
    put(shelf, *(f"image-{k}" for k in range(20)))
    shortlist = proposed(shelf, 3, 5)
    cells = shortlist.features.cells.copy()
    put(shelf, *(f"image-{k}" for k in range(20)))
    np.testing.assert_array_equal(shortlist.features.cells, cells)
    assert (shortlist.image_ids[0], shortlist.row_ids[0], shortlist.sequence) == ("image-3", 104, 20)


@given(count=st.integers(1, 70), copies=st.integers(1, 64), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_shortlist_is_the_head_of_the_full_order(count: int, copies: int, seed: int) -> None:
    """However many images are equal: the cut falls where the order of ids says."""
    shelf = empty_shelf()
    names = [f"{k:02}" for k in np.random.default_rng(seed).permutation(64)]
    sources = np.arange(64) % copies
    shelf.apply([put_update(name, k + 1, FEATURES[int(sources[k])]) for k, name in enumerate(names)], 64)
    shortlist = proposed(shelf, 0, count)
    cosines = global_cosines(FEATURES.embeddings[0], FEATURES.embeddings[sources])
    expected = best_first(cosines, names.__getitem__)[:count]
    assert shortlist.image_ids == [names[k] for k in expected]
    np.testing.assert_array_equal(shortlist.cosines, cosines[expected])
    shelf.close()


@given(
    kept=st.lists(st.integers(0, 11), unique=True).map(sorted),
    gone=st.frozensets(st.integers(1, 12), max_size=6),
)
@settings(deadline=None)
def test_columns_are_read_as_they_were_written_and_taken_as_they_are(kept: list[int], gone: frozenset[int]) -> None:
    shelf = empty_shelf()
    puts = [put_update(f"image-{k}", k, FEATURES[k], {"k": float(k)}, expire_time_s=9.0 * k) for k in range(1, 13)]
    shelf.apply([*puts, *(removal(f"image-{k}", 20 + k) for k in sorted(gone))], 40)
    again = Slots.decode(shelf.slots.encode(), size=12)
    taken = shelf.slots.taken(np.array(kept, np.int64))
    for name in slots_module._COLUMNS:
        values = getattr(shelf.slots, name).values
        np.testing.assert_array_equal(getattr(again, name).values, values)
        np.testing.assert_array_equal(getattr(taken, name).values, values[kept])
    assert again.ids.of(range(12)) == shelf.slots.ids.of(range(12))
    assert taken.ids.of(range(len(kept))) == shelf.slots.ids.of(kept)
    there = LabelCondition(field="k", any_of=frozenset({float(k) for k in range(1, 8)}))
    mask = shelf.slots.labels.mask(there)
    np.testing.assert_array_equal(again.labels.mask(there), mask)
    np.testing.assert_array_equal(taken.labels.mask(there), mask[kept])
    shelf.close()


@pytest.mark.parametrize(
    "name",
    [
        "row_ids",
        "live",
        "widths_px",
        "heights_px",
        "from_thumbnail",
        "labels",
        "id_text",
        "id_ends",
        "id_checksums",
    ],
)
def test_columns_that_lack_one_are_refused(shelf: Shelf, name: str) -> None:
    put(shelf, "a", "b")
    arrays = shelf.slots.encode()
    with pytest.raises(CacheDamagedError):
        Slots.decode({key: array for key, array in arrays.items() if key != name}, size=2)
    with pytest.raises(CacheDamagedError):
        Slots.decode({**arrays, name: arrays[name][:1]}, size=2)
    with pytest.raises(CacheDamagedError):
        Slots.decode(arrays, size=3)


def record_of(name: str, sequence: int, **changes: Any) -> ImageRecord:
    record = put_update(name, sequence, FEATURES[0]).record
    assert record is not None
    return replace(record, **{"content_hash": "sha256:x", "update_time_s": 17.0, **changes})


def apply_put(shelf: Shelf, record: ImageRecord) -> None:
    update = put_update(record.image_id, record.sequence, FEATURES[record.sequence])
    shelf.apply([replace(update, record=record)], record.sequence)


def as_known(record: ImageRecord) -> ImageRecord:
    return replace(record, content_hash="", update_time_s=0.0)


def test_a_record_is_known_but_for_content_hash_and_update_time(shelf: Shelf) -> None:
    records = [
        record_of(
            "a", 1, width_px=640, height_px=480, labels={"n": 1.5, "s": "x", "t": datetime(2026, 1, 1, tzinfo=UTC)}
        ),
        record_of("b", 2, expire_time_s=1234.5678901, from_thumbnail=True),
        record_of("ß", 3, width_px=50_000, height_px=1, labels={"s": "y"}),
    ]
    for record in records:
        apply_put(shelf, record)
    first, second, third = (as_known(record) for record in records)
    assert shelf.records_of(["ß", "nobody", "a", "b", "a"]) == [third, None, first, second, first]
    assert shelf.records_of([]) == []
    for slots in (Slots.decode(shelf.slots.encode(), size=3), shelf.slots.taken(np.arange(3))):
        assert slots.records([1, 0, 2]) == [second, first, third]


def test_what_is_known_follows_changes_and_goes_with_the_image(shelf: Shelf) -> None:
    first = record_of("a", 1, width_px=640, height_px=480, labels={"s": "x", "n": 1.0}, from_thumbnail=True)
    apply_put(shelf, first)
    relabelled = replace(first, sequence=2, labels={"s": "z"}, expire_time_s=99.0)
    change = Change(sequence=2, kind=ChangeKind.RELABEL, image_id="a", row_id=first.row_id, time_s=0.0)
    shelf.apply([Update(change=change, record=relabelled)], 2)
    assert shelf.records_of(["a"]) == [as_known(relabelled)]
    replaced = record_of("a", 3, width_px=32, height_px=16)
    apply_put(shelf, replaced)
    assert shelf.records_of(["a"]) == [as_known(replaced)]
    shelf.apply([removal("a", 4)], 4)
    assert shelf.records_of(["a"]) == [None]
    # Nothing of what is gone is kept.
    for name in ("widths_px", "heights_px", "from_thumbnail"):
        assert not getattr(shelf.slots, name).values.any()
    assert shelf.slots.labels.of(np.arange(2)) == [{}, {}]


def test_a_size_beyond_what_a_column_holds_is_the_largest_that_it_holds(shelf: Shelf) -> None:
    apply_put(shelf, record_of("a", 1, width_px=2**40, height_px=2**31 - 1))
    (record,) = shelf.records_of(["a"])
    assert record is not None
    assert (record.width_px, record.height_px) == (2**31 - 1, 2**31 - 1)


def test_cosines_are_bit_equal_to_those_of_match() -> None:
    query = sample_features(1, seed=5)[0]
    for mode in MatchMode:
        matches = match(query, FEATURES, MatchSettings.of(mode), grid=GRID)
        np.testing.assert_array_equal(global_cosines(query.embedding, FEATURES.embeddings), matches.cosine)


@given(pieces=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=900), max_size=5))
@settings(deadline=None)
def test_a_growing_array_holds_what_was_added(pieces: list[list[int]]) -> None:
    array = GrowingArray(np.int32)
    for piece in pieces:
        array.extend(np.array(piece, np.int32))
    assert array.values.tolist() == [value for piece in pieces for value in piece]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.zeros(DIM, np.float32)}, "embedding of image 'a'.*unit length"),
        ({"embedding": np.zeros(DIM + 1, np.float32)}, r"expected float32 \[8\]; got float32 \[9\]"),
        ({"cells": np.zeros((GRID.size, DIM), np.uint8)}, r"expected int8 \[4, 8\]; got uint8 \[4, 8\]"),
        ({"scales": np.full(GRID.size, np.nan, np.float16)}, "scales of image 'a'.*finite"),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(change: dict[str, Any], message: str) -> None:
    image = new_image("a", sample_features(1)[0])
    with pytest.raises(FeaturesRejectedError, match=message):
        check_image(replace(image, features=replace(image.features, **change)), gallery_spec())


def test_good_features_pass() -> None:
    for image in new_images(5):
        check_image(image, gallery_spec())
        check_features(image.features, gallery_spec(), "it")


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__))
    real = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert drawn == real
    assert all(issubclass(getattr(errors, name), errors.GalleryIndexError) for name in real)
