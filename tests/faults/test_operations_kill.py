"""Backup, restore and compaction are killed at random moments: what is there afterwards is whole, or nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec, new_images

from matchflow_index import GalleryStore
from matchflow_index.backup import back_up
from matchflow_index.backup_file import BackupReader
from matchflow_index.opening import StorePlace, opened_truth
from matchflow_index.restoring import restore, stored_gallery
from matchflow_index.verifying import verify

if TYPE_CHECKING:
    from pathlib import Path

IMAGES, KILLS = 1_200, 8
BEGIN = """
import sys
from pathlib import Path
from matchflow_index import backup_file
from matchflow_index.opening import StorePlace, opened_truth
# Many small transactions: a kill has where to hit.
backup_file.CHUNK_BYTES = 4_000
store, file = Path(sys.argv[1]), Path(sys.argv[2])
print("begun", flush=True)
"""
RESTORE = """
from matchflow_index.restoring import restore
with opened_truth(StorePlace(folder=store), read_only=False) as truth:
    restore(file, truth)
"""
BACKUP = """
from matchflow_index.backup import back_up
from matchflow_index.restoring import stored_gallery
with opened_truth(StorePlace(folder=store), read_only=True) as truth:
    back_up(truth, stored_gallery(truth, "demo"), file)
"""
COMPACT = """
from matchflow_index.compaction import compact
compact(StorePlace(folder=store), keep_changes=10)
"""


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    with GalleryStore.open(tmp_path / "store") as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(IMAGES))
        gallery.delete([f"image-{k:03}" for k in range(0, 200, 2)])
    return StorePlace(folder=tmp_path / "store")


def backed_up(place: StorePlace, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchflow_index.backup_file.CHUNK_BYTES", 4_000)
    with opened_truth(place, read_only=True) as truth:
        back_up(truth, stored_gallery(truth, "demo"), file)


def run(program: str, store: Path, file: Path, kill_after_s: float | None) -> float:
    """Run a program until it ends, or for so many seconds after it has begun; return how many those were."""
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, str(store), str(file)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        began_s = time.monotonic()
        try:
            process.wait(kill_after_s)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.kill()
        return time.monotonic() - began_s


def images(store: Path) -> int | None:
    """Return how many images the gallery has; None without one."""
    with GalleryStore.open(store, read_only=True) as opened:
        return opened.gallery("demo").count if opened.list() else None


def test_a_killed_restore_leaves_nothing_that_looks_whole(
    place: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, rng = tmp_path / "backup", random.Random(4)
    backed_up(place, file, monkeypatch)
    whole_s = run(RESTORE, tmp_path / "whole", file, None)
    cut_off = 0
    for k in range(KILLS):
        target = tmp_path / f"target-{k}"
        run(RESTORE, target, file, rng.uniform(0, whole_s))
        if not (target / "truth.lmdb" / "data.mdb").exists():
            continue
        with opened_truth(StorePlace(folder=target), read_only=False) as truth:
            began = bool(truth.galleries())
        found = images(target)
        assert found in {None, 0, IMAGES - 100}
        if found != IMAGES - 100:
            cut_off += began
            with opened_truth(StorePlace(folder=target), read_only=False) as truth:
                restore(file, truth)
            assert images(target) == IMAGES - 100
    assert cut_off


def test_a_killed_backup_leaves_the_old_one(place: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, rng = tmp_path / "backup", random.Random(5)
    backed_up(place, file, monkeypatch)
    assert place.folder is not None
    whole_s = run(BACKUP, place.folder, file, None)
    for _ in range(KILLS):
        run(BACKUP, place.folder, file, rng.uniform(0, whole_s))
        assert sum(len(entries) for entries in BackupReader(file).entries()) == IMAGES - 100
    file.unlink()
    run(BACKUP, place.folder, file, None)
    assert sum(len(entries) for entries in BackupReader(file).entries()) == IMAGES - 100
    assert not (tmp_path / ".backup.new").exists()


def test_a_killed_compaction_leaves_the_store_as_it_was_or_compacted(place: StorePlace, tmp_path: Path) -> None:
    rng = random.Random(6)
    assert place.folder is not None
    for k in range(KILLS):
        run(COMPACT, place.folder, tmp_path / "none", rng.uniform(0, 0.6))
        assert images(place.folder) == IMAGES - 100
        with opened_truth(place, read_only=True) as truth:
            found = verify(truth, "demo", place).findings
        assert [each for each in found if each.part != "thumbnails"] == []
        with GalleryStore.open(place.folder) as store:
            # So that there is something to compact again.
            gallery = store.gallery("demo")
            gallery.put(new_images(50, seed=k, prefix="late"))
            gallery.delete([f"late-{k:03}" for k in range(50)])
    run(COMPACT, place.folder, tmp_path / "none", None)
    assert not (place.folder / "truth.lmdb" / "compacting").exists()
