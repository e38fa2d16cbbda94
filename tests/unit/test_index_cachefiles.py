"""The pieces of the caches: checksummed files and the exact coarse index."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import DIM, sample_features

from matchflow_index.cachefile import CacheHeader, read_cache, write_cache
from matchflow_index.coarse import decode_coarse, encode_coarse
from matchflow_index.errors import CacheDamagedError
from matchflow_index.flat_index import FlatIndex

if TYPE_CHECKING:
    from pathlib import Path

HEADER = CacheHeader(
    kind="slots",
    gallery_id="demo",
    gallery_uuid="u",
    sequence=3,
    history="00ff",
    slots=2,
    cells=4,
    dim=8,
    slab_token="t",
)


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


def coarse_of(count: int) -> FlatIndex:
    coarse = FlatIndex(DIM)
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
    slots, values = FlatIndex(DIM).propose(sample_features(1).embeddings[0], 10, None)
    assert not len(slots)
    assert not len(values)


def test_a_coarse_index_is_read_as_it_was_written() -> None:
    query = sample_features(1, seed=9).embeddings[0]
    again = FlatIndex.decode(coarse_of(20).encode(), size=20, dim=DIM)
    assert again.size == 20
    assert again.propose(query, 20, None)[0].tolist() == coarse_of(20).propose(query, 20, None)[0].tolist()


@pytest.mark.parametrize(("size", "dim"), [(19, DIM), (20, DIM + 1)])
def test_a_coarse_index_of_another_size_is_refused(size: int, dim: int) -> None:
    with pytest.raises(CacheDamagedError, match="expected a flat index"):
        FlatIndex.decode(coarse_of(20).encode(), size=size, dim=dim)


@pytest.mark.parametrize("size", [0, 1, 20])
def test_an_index_says_of_which_kind_it_is(size: int) -> None:
    index = coarse_of(size)
    again = decode_coarse(encode_coarse(index), size=size, dim=DIM)
    assert isinstance(again, FlatIndex)
    assert again.encode() == index.encode()


@pytest.mark.parametrize("data", [b"", b"no index at all", b"hnsw"])
def test_another_kind_of_index_is_refused(data: bytes) -> None:
    with pytest.raises(CacheDamagedError, match="expected one of"):
        decode_coarse(data, size=0, dim=DIM)


@given(gone=st.frozensets(st.integers(0, 29)), count=st.integers(1, 40))
@settings(deadline=None)
def test_what_was_removed_is_zero_and_all_others_stay(gone: frozenset[int], count: int) -> None:
    index, embeddings = coarse_of(30), sample_features(30).embeddings
    index.remove(np.array(sorted(gone), np.int64))
    live = np.array([slot for slot in range(30) if slot not in gone], np.int64)
    for again in (index, FlatIndex.decode(index.encode(), size=30, dim=DIM)):
        assert not again.embeddings(np.arange(30))[sorted(gone)].any()
        if len(live):
            np.testing.assert_array_equal(again.embeddings(live), embeddings[live])
        allowed = np.zeros(30, np.bool_)
        allowed[live] = True
        slots, _ = again.propose(embeddings[3], count, allowed)
        expected = live[np.argsort(-(embeddings[live] @ embeddings[3]))][:count]
        assert slots.tolist() == expected.tolist()
