"""The cell slab: what is read is what was written last, whoever else has the file open."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, sample_features

from matchflow_index import slab as slab_module
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.records import RowLayout
from matchflow_index.slab import BLOCK_ROWS, HEADER_BYTES, CellSlab

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUT = RowLayout(cells=GRID.size, dim=DIM)
ROW_BYTES = LAYOUT.size_bytes


def packed(count: int, seed: int = 0) -> list[bytes]:
    batch = sample_features(count, seed)
    return [LAYOUT.pack(batch[k]) for k in range(count)]


def content(slab: CellSlab) -> list[bytes]:
    return [row.tobytes() for row in slab.stored(np.arange(slab.size))]


def test_a_slab_gives_back_what_was_written_in_any_order(tmp_path: Path) -> None:
    slab = CellSlab.create(tmp_path / "new" / "cells.slab", LAYOUT)
    batch = sample_features(700)
    rows = packed(700)
    for start in range(0, 700, 100):
        slab.append(rows[start : start + 100])
    slots = np.array([699, 0, 256, 0])
    gathered = slab.gather(slots)
    np.testing.assert_array_equal(gathered.embeddings, batch.embeddings[slots])
    np.testing.assert_array_equal(gathered.cells, batch.cells[slots])
    np.testing.assert_array_equal(gathered.scales, batch.scales[slots])
    np.testing.assert_array_equal(slab.embeddings(5, 9), batch.embeddings[5:9])
    np.testing.assert_array_equal(slab.gather_embeddings(slots), batch.embeddings[slots])
    slab.close()


def test_arrays_of_rows_are_appended_like_rows() -> None:
    slab, rows = CellSlab.private(LAYOUT), packed(5)
    slab.append_array(np.stack([np.frombuffer(row, np.uint8) for row in rows]))
    assert content(slab) == rows
    slab.append([])
    assert slab.size == 5
    slab.close()


@given(
    steps=st.lists(
        st.tuples(st.just("append"), st.integers(0, 300))
        | st.tuples(st.just("replace"), st.integers(0, 999))
        | st.tuples(st.just("erase"), st.integers(0, 999))
        | st.tuples(st.just("check"), st.just(0)),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=50)
def test_whatever_is_written_in_whatever_order_bytes_and_checksums_are_those_of_a_list(
    steps: list[tuple[str, int]],
) -> None:
    slab, rows = CellSlab.private(LAYOUT), list[bytes]()
    for seed, (what, number) in enumerate(steps):
        if what == "append":
            new = packed(number, seed)
            slab.append(new)
            rows += new
        elif what == "replace" and rows:
            new = packed(min(3, len(rows)), seed)
            start = number % (len(rows) - len(new) + 1)
            slab.replace(start, new)
            rows[start : start + len(new)] = new
        elif what == "erase" and rows:
            slots = {number % len(rows), 7 * number % len(rows)}
            slab.erase(np.array(sorted(slots)))
            rows = [bytes(ROW_BYTES) if k in slots else row for k, row in enumerate(rows)]
        else:
            slab.checksums()
    assert content(slab) == rows
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    assert slab.checksums().tolist() == [zlib.crc32(b"".join(block)) for block in blocks]
    slab.close()


def test_a_slab_is_opened_as_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    slab, rows = CellSlab.create(path, LAYOUT), packed(600)
    slab.append(rows)
    slab.synchronise()
    slab.close()
    again = CellSlab.open(path, LAYOUT, 600, slab.token, read_only=True)
    assert content(again) == rows
    assert again.checksums().tolist() == slab.checksums().tolist()
    again.close()


def test_rows_beyond_the_size_that_somebody_knows_are_written_over(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    slab = CellSlab.create(path, LAYOUT)
    slab.append(packed(300, seed=1))
    slab.close()
    again, more = CellSlab.open(path, LAYOUT, 3, slab.token, read_only=False), packed(2, seed=2)
    again.append(more)
    assert content(again) == packed(300, seed=1)[:3] + more
    again.close()


def test_a_slab_that_is_not_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    slab = CellSlab.create(path, LAYOUT)
    slab.append(packed(3))
    slab.close()
    length = path.stat().st_size
    rows = (length - HEADER_BYTES) // ROW_BYTES
    attempts: tuple[Callable[[], object], ...] = (
        lambda: CellSlab.open(path, LAYOUT, 3, "0" * 32, read_only=True),
        lambda: CellSlab.open(path, RowLayout(cells=GRID.size, dim=DIM - 1), 3, slab.token, read_only=True),
        lambda: CellSlab.open(path, LAYOUT, rows + 1, slab.token, read_only=True),
        lambda: CellSlab.open(tmp_path / "nowhere", LAYOUT, 3, slab.token, read_only=True),
    )
    for attempt in attempts:
        with pytest.raises(CacheDamagedError):
            attempt()
    path.write_bytes(b"\0" * length)
    with pytest.raises(CacheDamagedError, match="another slab"):
        CellSlab.open(path, LAYOUT, 3, slab.token, read_only=True)


def test_no_two_slabs_have_the_same_token() -> None:
    slabs = [CellSlab.private(LAYOUT) for _ in range(5)]
    assert len({slab.token for slab in slabs}) == 5
    for slab in slabs:
        slab.close()


def test_a_new_slab_leaves_the_old_one_to_those_who_have_it_open(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    old, new = CellSlab.create(path, LAYOUT), CellSlab.create(path, LAYOUT)
    old.append(packed(2, seed=1))
    new.append(packed(2, seed=2))
    assert content(old) == packed(2, seed=1)
    old.close()
    new.close()


def test_a_reader_sees_what_a_writer_erases(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    writer = CellSlab.create(path, LAYOUT)
    writer.append(packed(5))
    reader = CellSlab.open(path, LAYOUT, 5, writer.token, read_only=True)
    writer.erase(np.array([1, 3]))
    writer.append(packed(3000, seed=1))
    rows = packed(5)
    assert content(reader) == [rows[0], bytes(ROW_BYTES), rows[2], bytes(ROW_BYTES), rows[4]]
    reader.close()
    writer.close()


def test_a_private_slab_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    slab = CellSlab.private(LAYOUT)
    slab.append(packed(3))
    assert content(slab) == packed(3)
    assert not list(tmp_path.iterdir())
    slab.close()


def test_what_was_mapped_can_be_read_after_closing_and_growing() -> None:
    slab, rows = CellSlab.private(LAYOUT), packed(3)
    slab.append(rows)
    view = slab._rows
    slab.append(packed(2000, seed=1))
    slab.close()
    slab.close()
    assert slab.closed
    assert view[1].tobytes() == content(slab)[1] == rows[1]


def test_what_is_closed_is_never_written_to() -> None:
    """The number of its descriptor may be another file's by then."""
    slab = CellSlab.private(LAYOUT)
    slab.append(packed(3))
    slab.close()
    acts: tuple[Callable[[], object], ...] = (lambda: slab.erase(np.array([0])), lambda: slab.append(packed(1)))
    for act in acts:
        with pytest.raises(StoreUnavailableError):
            act()
    assert slab.size == 3


def test_a_slab_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cells.slab"
    created = CellSlab.create(path, LAYOUT)
    created.close()
    slab = CellSlab.open(path, LAYOUT, 0, created.token, read_only=True)
    with pytest.raises(StoreUnavailableError, match="2 more rows"):
        slab.append(packed(2))
    assert slab.size == 0
    slab.close()


def test_a_slab_that_cannot_be_created_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="created"):
        CellSlab.create(tmp_path / "file" / "cells.slab", LAYOUT)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    descriptors = Path("/proc/self/fd")
    open_before = len(list(descriptors.iterdir()))
    monkeypatch.setattr(os, "pwrite", full)
    acts: tuple[Callable[[], object], ...] = (
        lambda: CellSlab.create(tmp_path / "cells.slab", LAYOUT),
        lambda: CellSlab.private(LAYOUT),
    )
    for create in acts:
        with pytest.raises(StoreUnavailableError, match="No space left"):
            create()
    assert len(list(descriptors.iterdir())) == open_before


def test_reserved_rows_take_disk_once_and_appending_them_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.posix_fallocate

    def noted(descriptor: int, offset: int, length: int) -> None:
        asked.append(length)
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    slab = CellSlab.private(LAYOUT)
    slab.reserve(10)
    slab.reserve(10)
    slab.append(packed(4))
    slab.append(packed(6))
    assert asked == [10 * ROW_BYTES]
    slab.reserve(1)
    assert asked == [10 * ROW_BYTES, ROW_BYTES]
    slab.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_promises_nothing_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    slab = CellSlab.private(LAYOUT)
    slab.append(packed(3))
    assert content(slab) == packed(3)
    slab.close()


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    slab = CellSlab.private(LAYOUT)
    slab.append(packed(3))
    assert content(slab) == packed(3)
    slab.close()


def test_lengths_of_cells_do_not_depend_on_how_many_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slab = CellSlab.private(LAYOUT)
    slab.append(packed(50))
    whole = slab.cell_norms(0, 50)
    monkeypatch.setattr(slab_module, "STEP_ROWS", 7)
    np.testing.assert_array_equal(slab.cell_norms(0, 50), whole)
    np.testing.assert_array_equal(slab.cell_norms(13, 29), whole[13:29])
    slab.close()
