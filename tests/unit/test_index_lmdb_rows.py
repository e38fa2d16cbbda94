"""Rows in LMDB, cut into parts that fill its pages."""

from __future__ import annotations

import doctest
import tempfile
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_index import lmdb_rows
from matchflow_index.lmdb_rows import PAGE_BYTES, delete_row, get_rows, parts_of, put_row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Any]:
    with lmdb.open(str(tmp_path / "rows"), max_dbs=1, map_size=1 << 28, sync=False) as environment:
        yield environment


def row_of(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def pages(size: int, parts: int) -> float:
    """Return how many pages a row takes in so many parts, as far as LMDB's layout says."""
    step = -(-size // parts)
    taken = (step + 8 + 13 + 1) & ~1
    if taken > (PAGE_BYTES - 16) // 2:
        return parts * -(-(step + 16) // PAGE_BYTES)
    return parts / ((PAGE_BYTES - 16) // (taken + 2))


@given(size=st.integers(1, 200_000))
def test_the_parts_are_never_worse_than_one_piece(size: int) -> None:
    parts = parts_of(size)
    assert 1 <= parts <= 255
    assert pages(size, parts) <= pages(size, 1) + 1e-9


@pytest.mark.parametrize("size", [1, 100, 2592, 4096, 10_000, 70_000])
def test_rows_are_read_as_they_were_written(environment: Any, size: int) -> None:
    database = environment.open_db(b"rows")
    rows = {row_id: row_of(size, row_id) for row_id in (1, 2, 255, 256, 70_000)}
    with environment.begin(write=True) as txn:
        for row_id, row in rows.items():
            put_row(txn, database, row_id, row)
    with environment.begin() as txn:
        assert get_rows(txn, database, [256, 3, 1, 1, 70_000, 70_001]) == [
            rows[256],
            None,
            rows[1],
            rows[1],
            rows[70_000],
            None,
        ]
        assert get_rows(txn, database, []) == []


@given(sizes=st.lists(st.integers(1, 9000), max_size=12), gone=st.frozensets(st.integers(1, 14)))
@settings(deadline=None, max_examples=30)
def test_what_is_deleted_is_gone_and_nothing_else(sizes: list[int], gone: frozenset[int]) -> None:
    rows = {row_id: row_of(size, row_id) for row_id, size in enumerate(sizes, 1)}
    with (
        tempfile.TemporaryDirectory() as folder,
        lmdb.open(folder, max_dbs=1, map_size=1 << 26, sync=False) as env,
    ):
        database = env.open_db(b"rows")
        with env.begin(write=True) as txn:
            for row_id, row in rows.items():
                put_row(txn, database, row_id, row)
            for row_id in gone:
                assert delete_row(txn, database, row_id) == (parts_of(len(rows[row_id])) if row_id in rows else 0)
            expected = [None if row_id in gone else rows.get(row_id) for row_id in range(15)]
            assert get_rows(txn, database, range(15)) == expected
            left = sum(parts_of(len(row)) for row_id, row in rows.items() if row_id not in gone)
            assert txn.stat(database)["entries"] == left


def test_five_thousand_rows_of_2592_bytes_take_little_more_than_their_bytes(environment: Any) -> None:
    database, raw = environment.open_db(b"rows"), 5_000 * 2_592
    for start in range(0, 5_000, 500):
        with environment.begin(write=True) as txn:
            for row_id in range(start + 1, start + 501):
                put_row(txn, database, row_id, row_of(2_592, row_id))
    with environment.begin() as txn:
        stat = txn.stat(database)
        assert stat["overflow_pages"] == 0
    used = (environment.info()["last_pgno"] + 1) * stat["psize"]
    assert used <= 1.12 * raw


def test_the_worked_example_holds() -> None:
    results = doctest.testmod(lmdb_rows)
    assert results.attempted
    assert not results.failed
