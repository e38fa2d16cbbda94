"""The journal of an import: what it remembers, what it takes on trust (nothing), and what it refuses to open."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import matchflow
from matchflow_cli.bulk_journal import Entry, Journal, default_path, stamp_of
from matchflow_cli.failures import CommandError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = hashlib.sha256(b"pixels").digest()


def entry(labels: dict[str, str | float] | None = None, content: bytes = CONTENT) -> Entry:
    return Entry(fingerprint=b"f" * 16, content=content, stamp=stamp_of(content, labels or {}))


def stored(
    image_id: str, labels: dict[str, str] | None = None, content: bytes = CONTENT, *, from_thumbnail: bool = False
) -> matchflow.Image:
    """Return an image as the gallery lists it; an empty `Image` would need a server."""
    image = object.__new__(matchflow.Image)
    for name, value in {
        "ref": matchflow.ImageRef("demo", image_id),
        "labels": labels or {},
        "content_hash": content.hex(),
        "update_time": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "from_thumbnail": from_thumbnail,
    }.items():
        object.__setattr__(image, name, value)
    return image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "that is new" / "import.journal"


def test_what_was_recorded_counts_in_the_same_run_and_in_the_next_once_the_gallery_confirms_it(path: Path) -> None:
    with Journal(path) as journal:
        assert len(journal) == 0
        journal.record("cat", entry())
        assert journal.held("cat") == entry()
        assert journal.held("dog") is None
    with Journal(path) as journal:
        assert len(journal) == 1
        assert journal.held("cat") is None
        journal.confirm([stored("cat"), stored("dog")])
        assert journal.held("cat") == entry()
        assert journal.held("dog") is None
    with Journal(path) as journal:
        assert journal.held("cat") is None


@pytest.mark.parametrize(
    "image",
    [stored("dog"), stored("cat", {"a": "b"}), stored("cat", content=hashlib.sha256(b"other").digest())],
    ids=["another image", "other labels", "other bytes"],
)
def test_what_the_gallery_holds_otherwise_does_not_count(path: Path, image: matchflow.Image) -> None:
    with Journal(path) as journal:
        journal.record("cat", entry())
    with Journal(path) as journal:
        journal.confirm([image])
        assert journal.held("cat") is None


def test_more_images_than_fit_a_page_are_confirmed_and_named(path: Path) -> None:
    ids = [f"image-{i:05}" for i in range(2_500)]
    with Journal(path) as journal:
        for image_id in ids:
            journal.record(image_id, entry())
    with Journal(path) as journal:
        assert list(journal.ids()) == ids
        journal.confirm(map(stored, ids))
        assert all(journal.held(image_id) for image_id in ids)


def test_entries_of_the_gallery_and_of_a_generation_never_stand_for_each_other(path: Path) -> None:
    of_generation = Entry(fingerprint=b"f" * 16, content=CONTENT, stamp=stamp_of(CONTENT, {}, 2))
    with Journal(path) as journal:
        journal.record("cat", entry())
        journal.record("dog", of_generation)
    for generation, held in ((0, "cat"), (2, "dog"), (3, None)):
        with Journal(path) as journal:
            journal.confirm([stored("cat"), stored("dog")], generation)
            assert [each for each in ("cat", "dog") if journal.held(each)] == ([held] if held else [])


def test_labels_do_not_count_for_a_generation_and_bytes_do(path: Path) -> None:
    of_generation = Entry(fingerprint=None, content=CONTENT, stamp=stamp_of(CONTENT, {"a": "b"}, 2))
    with Journal(path) as journal:
        journal.record("cat", of_generation)
        journal.record("dog", of_generation)
    with Journal(path) as journal:
        other = stored("dog", content=hashlib.sha256(b"other").digest())
        journal.confirm([stored("cat", {"c": "d"}), other], 2)
        assert journal.held("cat") == of_generation
        assert journal.held("dog") is None


def test_what_is_retracted_does_not_count_until_it_is_recorded_again(path: Path) -> None:
    ids = [f"image-{i:05}" for i in range(1_500)]
    with Journal(path) as journal:
        for image_id in ids:
            journal.record(image_id, entry())
        journal.retract(["nobody", *ids[1:]])
        assert [image_id for image_id in ids if journal.held(image_id)] == ids[:1]
        assert len(journal) == 1_500
        journal.record(ids[7], entry())
        assert journal.held(ids[7]) == entry()


def test_an_id_is_claimed_once_per_run(path: Path) -> None:
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.claim("cat", "row 1") is None
            assert journal.claim("dog", "row 2") is None
            assert journal.claim("cat", "row 3") == "row 1"


def test_without_a_file_it_remembers_while_it_is_open() -> None:
    with Journal(None) as journal:
        journal.record("cat", entry())
        assert journal.held("cat") == entry()
        assert journal.claim("cat", "row 1") is None


def test_a_journal_in_use_is_refused(path: Path) -> None:
    with Journal(path), pytest.raises(CommandError, match="another import uses it; name another with --journal"):
        Journal(path)
    with Journal(path):
        pass


def test_what_is_no_journal_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    text, other = tmp_path / "photo.journal", tmp_path / "other.journal"
    text.write_bytes(b"no database" * 1000)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    before = {path: path.read_bytes() for path in (text, other)}
    for path, content in before.items():
        with pytest.raises(CommandError, match="delete it, or name another with --journal") as caught:
            Journal(path)
        assert caught.value.exit_code == 2
        assert path.read_bytes() == content


def test_a_journal_of_a_later_version_is_refused(path: Path) -> None:
    with Journal(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CommandError, match="another version's"):
        Journal(path)


def test_a_folder_or_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path, tmp_path / "file" / "journal"):
        with pytest.raises(CommandError, match="--journal"):
            Journal(bad)


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    """That is what a kill in its first moment leaves."""
    path = tmp_path / "journal"
    path.write_bytes(b"")
    with Journal(path) as journal:
        journal.record("cat", entry())
    with Journal(path) as journal:
        assert len(journal) == 1


def test_it_can_be_shared_between_threads(path: Path) -> None:
    with Journal(path) as journal:

        def work(number: int) -> None:
            for i in range(200):
                journal.record(f"{number}-{i}", entry())
                assert journal.held(f"{number}-{i}") is not None
                assert journal.claim(f"{number}-{i}", "here") is None

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(journal) == 800


WRITER = """
import sys
from pathlib import Path
from matchflow_cli import bulk_journal
from matchflow_cli.bulk_journal import Entry, Journal
bulk_journal.COMMIT_AFTER_S = 0.01
with Journal(Path(sys.argv[1])) as journal:
    for i in range(10**9):
        journal.record(f"image-{i}", Entry(fingerprint=b"f" * 16, content=b"c" * 32, stamp=b"s" * 16))
        if i % 500 == 0:
            print(i, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 8, 20, 40])
def test_killed_at_any_moment_it_opens_with_whole_entries_in_their_order(path: Path, lines: int) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    with Journal(path) as journal:
        kept = set(journal.ids())
        # No holes: what came later is there only if all before it is.
        assert kept == {f"image-{i}" for i in range(len(kept))}
        assert len(kept) >= (lines - 8) * 500
        journal.record("after", entry())
        assert journal.held("after")


def test_the_default_path_tells_sources_servers_and_galleries_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    first = default_path(["photos"], "host:1", "demo")
    assert first.parent == tmp_path / "state" / "matchflow" / "imports"
    assert first == default_path([str(tmp_path / "photos")], "host:1", "demo")
    others = [
        default_path(["other"], "host:1", "demo"),
        default_path(["photos"], "host:2", "demo"),
        default_path(["photos"], "host:1", "second"),
        default_path(["photos", "other"], "host:1", "demo"),
        default_path(["photos"], "host:1", "demo", 1),
        default_path(["photos"], "host:1", "demo", 2),
    ]
    assert len({first, *others}) == 7
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_path(["photos"], "host:1", "demo").is_relative_to(tmp_path / "home" / ".local" / "state")


def test_an_image_that_was_computed_from_its_thumbnail_is_sent_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.record("cat", entry())
        journal.record("dog", entry())
    with Journal(path) as journal:
        journal.confirm([stored("cat", from_thumbnail=True), stored("dog")])
        assert journal.held("cat") is None
        assert journal.held("dog") == entry()
