"""The pieces of the caches: checksummed files, the slab and the coarse index."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, sample_features

from matchflow_index.cachefile import CacheHeader, read_cache, write_cache
from matchflow_index.coarse import CoarseIndex
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.records import RowLayout
from matchflow_index.slab import CellSlab

if TYPE_CHECKING:
    from pathlib import Path

HEADER = CacheHeader(
    kind="slots",
    gallery_id="demo",
    gallery_uuid="u",
    sequence=3,
    slots=2,
    cells=4,
    dim=8,
    slots_checksum=1,
    slab_checksum=2,
)
LAYOUT = RowLayout(cells=GRID.size, dim=DIM)


def test_a_cache_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "slots.cache"
    write_cache(path, HEADER, b"payload")
    write_cache(path, replace(HEADER, sequence=4), b"")
    assert read_cache(path) == (replace(HEADER, sequence=4), b"")
    assert list(tmp_path.iterdir()) == [path]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_damaged_byte_goes_unnoticed(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "slots.cache"
    write_cache(path, HEADER, bytes(range(40)))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CacheDamagedError):
        read_cache(path)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_missing_byte_goes_unnoticed(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "slots.cache"
    write_cache(path, HEADER, bytes(range(40)))
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    with pytest.raises(CacheDamagedError):
        read_cache(path)


def test_a_missing_cache_is_damaged_too(tmp_path: Path) -> None:
    with pytest.raises(CacheDamagedError, match="missing"):
        read_cache(tmp_path / "slots.cache")


def test_a_cache_that_could_not_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "slots.cache"
    write_cache(path, HEADER, b"old")
    # Something stands where the new file would be written.
    (tmp_path / ".slots.cache.new").mkdir()
    with pytest.raises(OSError, match=r"slots\.cache\.new"):
        write_cache(path, HEADER, b"new")
    assert read_cache(path) == (HEADER, b"old")


def packed(count: int, seed: int = 0) -> list[bytes]:
    batch = sample_features(count, seed)
    return [LAYOUT.pack(batch[k]) for k in range(count)]


def test_a_slab_gives_back_what_was_written_in_any_order(tmp_path: Path) -> None:
    slab = CellSlab.create(tmp_path / "new" / "cells.slab", LAYOUT)
    batch = sample_features(700)
    rows = packed(700)
    for start in range(0, 700, 100):
        slab.write(rows[start : start + 100])
        slab.publish(100)
    slots = np.array([699, 0, 256, 0])
    gathered = slab.gather(slots)
    np.testing.assert_array_equal(gathered.embeddings, batch.embeddings[slots])
    np.testing.assert_array_equal(gathered.cells, batch.cells[slots])
    np.testing.assert_array_equal(gathered.scales, batch.scales[slots])
    np.testing.assert_array_equal(slab.embeddings(5, 9), batch.embeddings[5:9])
    slab.close()


def test_rows_that_were_never_published_are_written_over(tmp_path: Path) -> None:
    slab = CellSlab.create(tmp_path / "cells.slab", LAYOUT)
    slab.write(packed(3, seed=1))
    slab.write(packed(2, seed=2))
    slab.publish(2)
    np.testing.assert_array_equal(slab.embeddings(0, 2), sample_features(2, seed=2).embeddings)
    slab.write([])
    assert slab.size == 2
    slab.close()


def test_a_slab_counts_its_checksum_on_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    slab = CellSlab.create(path, LAYOUT)
    assert slab.checksum() == 0
    for seed in range(3):
        slab.write(packed(200, seed))
        slab.publish(200)
        if seed != 1:
            slab.checksum()
    slab.synchronise()
    again = CellSlab.open(path, LAYOUT, 600, read_only=True)
    assert again.checksum() == slab.checksum() != 0
    slab.close()
    again.close()


def test_a_new_slab_leaves_the_old_one_to_those_who_have_it_open(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    old = CellSlab.create(path, LAYOUT)
    old.write(packed(2, seed=1))
    old.publish(2)
    new = CellSlab.create(path, LAYOUT)
    new.write(packed(2, seed=2))
    np.testing.assert_array_equal(old.embeddings(0, 2), sample_features(2, seed=1).embeddings)
    old.close()
    new.close()


def test_a_private_slab_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    slab = CellSlab.private(LAYOUT)
    slab.write(packed(3))
    slab.publish(3)
    np.testing.assert_array_equal(slab.embeddings(0, 3), sample_features(3).embeddings)
    assert not list(tmp_path.iterdir())
    slab.close()


def test_a_slab_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    CellSlab.create(path, LAYOUT).close()
    slab = CellSlab.open(path, LAYOUT, 0, read_only=True)
    with pytest.raises(StoreUnavailableError, match="2 more rows"):
        slab.write(packed(2))
    slab.close()


def test_a_slab_that_cannot_be_created_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="created"):
        CellSlab.create(tmp_path / "file" / "cells.slab", LAYOUT)


def coarse_of(count: int) -> CoarseIndex:
    coarse = CoarseIndex(DIM)
    coarse.add(sample_features(count).embeddings)
    return coarse


def test_proposals_are_the_best_of_those_allowed() -> None:
    coarse, embeddings = coarse_of(50), sample_features(50).embeddings
    allowed = np.arange(50) % 3 == 0
    slots, values = coarse.propose(embeddings[7], 5, allowed)
    cosines = embeddings @ embeddings[7]
    expected = sorted(np.flatnonzero(allowed), key=lambda slot: -cosines[slot])[:5]
    assert slots.tolist() == expected
    np.testing.assert_allclose(values, cosines[expected], atol=1e-6)


def test_proposals_end_where_the_allowed_end() -> None:
    allowed = np.zeros(50, np.bool_)
    allowed[[3, 49]] = True
    slots, _ = coarse_of(50).propose(sample_features(1).embeddings[0], 10, allowed)
    assert sorted(slots.tolist()) == [3, 49]


def test_an_empty_index_proposes_nothing() -> None:
    slots, values = CoarseIndex(DIM).propose(sample_features(1).embeddings[0], 10, None)
    assert not len(slots)
    assert not len(values)


def test_a_coarse_index_is_read_as_it_was_written() -> None:
    query = sample_features(1, seed=9).embeddings[0]
    again = CoarseIndex.decode(coarse_of(20).encode(), size=20, dim=DIM)
    assert again.size == 20
    assert again.propose(query, 20, None)[0].tolist() == coarse_of(20).propose(query, 20, None)[0].tolist()


@pytest.mark.parametrize(("size", "dim"), [(19, DIM), (20, DIM + 1)])
def test_a_coarse_index_of_another_size_is_refused(size: int, dim: int) -> None:
    with pytest.raises(CacheDamagedError, match="expected a flat index"):
        CoarseIndex.decode(coarse_of(20).encode(), size=size, dim=dim)


def test_another_kind_of_index_is_refused() -> None:
    other = bytes(faiss.serialize_index(faiss.IndexFlatL2(DIM)))
    with pytest.raises(CacheDamagedError, match="expected a flat index"):
        CoarseIndex.decode(other, size=0, dim=DIM)


def test_what_is_no_index_is_refused() -> None:
    with pytest.raises(CacheDamagedError, match="FAISS"):
        CoarseIndex.decode(b"no index at all", size=0, dim=DIM)
