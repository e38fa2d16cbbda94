"""The state in memory, the shortlist taken from it, and the checks in front of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, gallery_spec, new_image, new_images, sample_features

from matchflow_index import FeaturesRejectedError, ImageFilter, ImageRecord, LabelCondition, errors
from matchflow_index.checks import check_features, check_image
from matchflow_index.coarse import CoarseIndex
from matchflow_index.growing import GrowingArray
from matchflow_index.records import RowLayout
from matchflow_index.shelf import Shelf
from matchflow_index.shortlist import best_first, propose
from matchflow_index.slab import CellSlab
from matchflow_index.truth import Change, ChangeKind
from matchflow_matching import MatchMode, MatchSettings, global_cosines, match

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUT = RowLayout(cells=GRID.size, dim=DIM)
FEATURES = sample_features(64)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    slab = CellSlab.private(LAYOUT)
    yield Shelf(slab=slab, coarse=CoarseIndex(DIM), row_ids=np.empty(0, np.int64), records=[], sequence=0)
    slab.close()


def a_record(name: str, row_id: int, **labels: str) -> ImageRecord:
    return ImageRecord(
        image_id=name, row_id=row_id, content_hash="", labels=labels, width_px=0, height_px=0, update_time_s=0.0
    )


def put(shelf: Shelf, *names: str, **labels: str) -> None:
    """Put images; the row id is the number of the slot plus 100, the features those of the slot."""
    start = len(shelf.records)
    records = [a_record(name, 100 + start + k, **labels) for k, name in enumerate(names)]
    shelf.slab.write([LAYOUT.pack(FEATURES[start + k]) for k in range(len(names))])
    shelf.apply([(change(shelf.sequence + 1 + k, ChangeKind.PUT, record), record) for k, record in enumerate(records)])


def change(sequence: int, kind: ChangeKind, record: ImageRecord) -> Change:
    return Change(sequence=sequence, kind=kind, image_id=record.image_id, row_id=record.row_id)


def test_every_row_has_one_slot_everywhere(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    put(shelf, "c")
    assert shelf.count == shelf.slab.size == shelf.coarse.size == 3
    assert shelf.row_ids.tolist() == [100, 101, 102]
    assert shelf.sequence == 3
    assert [shelf.slot(name) for name in "abc"] == [0, 1, 2]
    np.testing.assert_array_equal(shelf.slab.gather(np.array([2, 0])).cells, FEATURES.cells[[2, 0]])


def test_without_dead_slots_or_filter_everything_is_allowed_without_a_mask(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    assert shelf.allowed(ImageFilter()) is None
    assert shelf.allowed(ImageFilter(exclude=frozenset({"nobody"}))) is None


def test_dead_slots_are_not_allowed(shelf: Shelf) -> None:
    put(shelf, "a", "b")
    put(shelf, "a")
    allowed = shelf.allowed(ImageFilter())
    assert allowed is not None
    assert allowed.tolist() == [False, True, True]
    assert shelf.live_slots.tolist() == [1, 2]
    assert shelf.record("a") == a_record("a", 102)


def test_an_image_that_comes_and_goes_in_one_transaction_leaves_a_dead_slot(shelf: Shelf) -> None:
    records = [a_record("a", 100), a_record("a", 101)]
    shelf.slab.write([LAYOUT.pack(FEATURES[k]) for k in range(2)])
    shelf.apply(
        [
            (change(1, ChangeKind.PUT, records[0]), records[0]),
            (change(2, ChangeKind.PUT, records[1]), records[1]),
            (change(3, ChangeKind.REMOVE, records[1]), None),
        ]
    )
    assert shelf.count == 0
    assert shelf.records == [None, None]
    assert shelf.sequence == 3


def test_nothing_to_apply_changes_nothing(shelf: Shelf) -> None:
    put(shelf, "a")
    shelf.apply([])
    assert (shelf.sequence, shelf.count) == (1, 1)


def test_labels_and_exclusions_narrow_what_is_allowed(shelf: Shelf) -> None:
    put(shelf, "a", "b", colour="red")
    put(shelf, "c", colour="blue")
    red = LabelCondition(field="colour", any_of=frozenset({"red"}))
    allowed = shelf.allowed(ImageFilter(conditions=(red,), exclude=frozenset({"b", "c"})))
    assert allowed is not None
    assert allowed.tolist() == [True, False, False]


def test_a_coarse_index_without_memory_leaves_the_slots_in_step(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    put(shelf, "a")

    def refuse(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(CoarseIndex, "add", refuse)
        with pytest.raises(MemoryError):
            put(shelf, "b")
    assert shelf.slab.size == shelf.coarse.size == shelf.count == len(shelf.records) == 1
    put(shelf, "c")
    shortlist = propose(shelf, FEATURES.embeddings[1], 1, ImageFilter())
    assert shortlist.records[0].image_id == "c"


def test_a_shortlist_outlives_what_it_was_taken_from(shelf: Shelf) -> None:
    put(shelf, *(f"image-{k}" for k in range(20)))
    shortlist = propose(shelf, FEATURES.embeddings[3], 5, ImageFilter())
    cells = shortlist.features.cells.copy()
    put(shelf, *(f"image-{k}" for k in range(20)))
    np.testing.assert_array_equal(shortlist.features.cells, cells)
    assert shortlist.records[0] == a_record("image-3", 103)
    assert shortlist.sequence == 20


@given(count=st.integers(1, 70), copies=st.integers(1, 64), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_shortlist_is_the_head_of_the_full_order(count: int, copies: int, seed: int) -> None:
    """However many images are equal: the cut falls where the order of ids says."""
    slab = CellSlab.private(LAYOUT)
    shelf = Shelf(slab=slab, coarse=CoarseIndex(DIM), row_ids=np.empty(0, np.int64), records=[], sequence=0)
    names = [f"{k:02}" for k in np.random.default_rng(seed).permutation(64)]
    sources = np.arange(64) % copies
    slab.write([LAYOUT.pack(FEATURES[source]) for source in sources.tolist()])
    records = [a_record(name, k) for k, name in enumerate(names)]
    shelf.apply([(change(k + 1, ChangeKind.PUT, record), record) for k, record in enumerate(records)])
    shortlist = propose(shelf, FEATURES.embeddings[0], count, ImageFilter())
    cosines = global_cosines(FEATURES.embeddings[0], FEATURES.embeddings[sources])
    expected = best_first(cosines, names.__getitem__)[:count]
    assert [record.image_id for record in shortlist.records] == [names[k] for k in expected]
    np.testing.assert_array_equal(shortlist.cosines, cosines[expected])
    slab.close()


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
