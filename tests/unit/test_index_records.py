from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, sample_features

from matchflow_index.records import GallerySpec, ImageRecord, RowLayout
from matching_strategies import random_batch

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    image_id=texts,
    row_id=st.integers(1, 2**63 - 1),
    labels=st.dictionaries(texts, texts, max_size=4),
    update_time_s=st.floats(0, 1e10),
)
def test_a_record_is_read_as_it_was_written(
    image_id: str, row_id: int, labels: dict[str, str], update_time_s: float
) -> None:
    record = ImageRecord(
        image_id=image_id,
        row_id=row_id,
        content_hash="abc",
        labels=labels,
        width_px=3,
        height_px=4,
        update_time_s=update_time_s,
    )
    assert ImageRecord.decode(record.encode()) == record


def test_a_specification_is_read_as_it_was_written() -> None:
    spec = gallery_spec(keep_thumbnails=False)
    assert GallerySpec.decode(spec.encode()) == spec


@settings(deadline=None)
@given(cells=st.integers(1, 20), dim=st.integers(2, 40), count=st.integers(0, 5), seed=st.integers(0, 1000))
def test_rows_hold_features_bit_for_bit(cells: int, dim: int, count: int, seed: int) -> None:
    batch = random_batch(np.random.default_rng(seed), count, cells, dim)
    layout = RowLayout(cells=cells, dim=dim)
    packed = [layout.pack(batch[k]) for k in range(count)]
    assert all(len(row) == layout.size_bytes for row in packed)
    rows = np.frombuffer(b"".join(packed), np.uint8).reshape(count, layout.size_bytes)
    unpacked = layout.unpack(rows)
    for name in ("embeddings", "cells", "scales"):
        array = getattr(unpacked, name)
        np.testing.assert_array_equal(array, getattr(batch, name))
        assert array.dtype == getattr(batch, name).dtype
        assert array.flags.c_contiguous
        assert array.flags.aligned


def test_a_row_of_sixteen_cells_of_128_takes_2592_bytes() -> None:
    assert RowLayout(cells=16, dim=128).size_bytes == 2592


def test_a_layout_follows_the_gallery() -> None:
    layout = RowLayout.of(gallery_spec())
    assert layout.size_bytes == len(layout.pack(sample_features(1)[0]))


@pytest.mark.parametrize(
    "module", ["records", "labels", "rankings", "shortlist", "evaluation", "ivf_index", "lmdb_rows"]
)
def test_the_worked_examples_hold(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"matchflow_index.{module}"))
    assert results.attempted
    assert not results.failed
