"""The journal of an import: what the server has acknowledged, so that a restart neither reads nor sends it again.

A file of its own, in SQLite: killed at any moment it comes back with its last commit, and it stays on disk however many
images there are. The journal alone proves nothing, since a gallery can be deleted, restored from a backup, or be
another one at the same address. So what it says counts only for images that the gallery lists, at the beginning of the
run, with the same SHA-256 of their bytes and the same labels. That listing costs one small record per image and no
change of the contract; a request that asked the server for digests would cost a reading of every source file besides,
which is what a journal spares: a file whose size and modification time are those of its entry is not opened.

An entry is (id, fingerprint of the source, SHA-256 of the bytes, digest of bytes and labels). When only the fingerprint
differs, the image is read and compared, and still not sent if it is the same. Entries are written only for what was
acknowledged; one that is lost costs sending its image once more, which the server answers without embedding it.
Deleting a journal is always safe.

What is sent for a generation that is not the active one has entries of its own: digests that no entry of the gallery
has, and a file of its own unless one is named. Labels are left out of them, as such a generation has the gallery's.
They count for what the gallery holds with these bytes, less what the server says that the generation lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from matchflow_cli.bulk_labels import Labels, labels_digest
from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import matchflow

ValueT = TypeVar("ValueT")
# "mfij": tells a journal from any other SQLite file.
APPLICATION_ID = 0x6D66696A
VERSION = 1
COMMIT_AFTER_S = 0.5
PAGE = 1000
SCHEMA = (
    f"PRAGMA application_id={APPLICATION_ID}",
    f"PRAGMA user_version={VERSION}",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY)",
    # held: the run in which the gallery was seen to have the image.
    "CREATE TABLE images (id TEXT PRIMARY KEY, fingerprint BLOB, content BLOB, stamp BLOB, held INTEGER) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of an image that was acknowledged; `fingerprint` None never matches."""

    fingerprint: bytes | None
    content: bytes
    stamp: bytes


def stamp_of(content: bytes, labels: Labels, generation: int = 0) -> bytes:
    """Return a digest of an image's bytes, given by their SHA-256, and its labels; or of bytes and `generation`."""
    beside = f"generation {generation}".encode() if generation else labels_digest(labels)
    return hashlib.sha256(content + beside).digest()[:16]


def default_path(sources: Sequence[str], server: str, gallery: str, generation: int = 0) -> Path:
    """Return where the journal of these sources, server, gallery and generation is kept unless one is named.

    generation: one that is not active; 0: what goes into the gallery itself.
    """
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    # No id of a gallery has a '/'.
    whole = f"{gallery}/{generation}" if generation else gallery
    said = "\0".join([server, whole, *(str(Path(source).absolute()) for source in sources)])
    name = hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return home / "matchflow" / "imports" / f"{name}.journal"


def can_not_be_made(error: CommandError) -> bool:
    """Say whether there is no room or right for a journal, rather than something wrong with one that is there."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
    return isinstance(cause, OSError)


class Journal:
    """An open journal; safe to share between threads. `path` None keeps it only as long as it is open.

    Raises CommandError for a file that is no journal, is in use, or can't be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._committed_s = time.monotonic()
        with self._explained(), contextlib.ExitStack() as undo:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path or "", isolation_level=None, check_same_thread=False, timeout=0)
            undo.callback(self._connection.close)
            self._run = self._begin()
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock, self._explained():
            self._connection.execute("COMMIT")
            self._connection.close()

    def __len__(self) -> int:
        """Return the number of entries."""
        return int(self._all("SELECT count(*) FROM images")[0][0])

    def ids(self) -> Iterator[str]:
        """Give the ids of all entries, a page at a time."""
        after = ""
        while page := self._all("SELECT id FROM images WHERE id > ? ORDER BY id LIMIT ?", (after, PAGE)):
            yield from (row[0] for row in page)
            after = page[-1][0]

    def confirm(self, images: Iterable[matchflow.Image], generation: int = 0) -> None:
        """Let the entries count whose images the gallery holds with the same bytes and labels.

        generation: let entries of this one count, by bytes alone; `retract` then what it lacks. Otherwise an image that
        was computed from its thumbnail counts as not held: sending it computes it anew.
        """
        for page in _pages((image for image in images if generation or not image.from_thumbnail), PAGE):
            stamps = [stamp_of(bytes.fromhex(image.content_hash), image.labels, generation) for image in page]
            rows = [(self._run, image.id, stamp) for image, stamp in zip(page, stamps, strict=True)]
            with self._lock, self._explained():
                self._connection.executemany("UPDATE images SET held=? WHERE id=? AND stamp=?", rows)
                self._commit_sometimes()

    def retract(self, image_ids: Iterable[str]) -> None:
        """Let the entries of these images no longer count in this run."""
        for page in _pages(image_ids, PAGE):
            with self._lock, self._explained():
                self._connection.executemany("UPDATE images SET held=NULL WHERE id=?", [(each,) for each in page])
                self._commit_sometimes()

    def claim(self, image_id: str, place: str) -> str | None:
        """Take an id for this run; return the place that has it already, None if it was free."""
        with self._lock, self._explained():
            taken = self._connection.execute(
                "INSERT OR IGNORE INTO temp.claims VALUES (?, ?)", (image_id, place)
            ).rowcount
            if taken:
                return None
            found = self._connection.execute("SELECT place FROM temp.claims WHERE id=?", (image_id,)).fetchone()
        return str(found[0])

    def held(self, image_id: str) -> Entry | None:
        """Return the entry of an image that the gallery holds as it says; None otherwise."""
        found = self._all("SELECT fingerprint, content, stamp FROM images WHERE id=? AND held=?", (image_id, self._run))
        return Entry(fingerprint=found[0][0], content=found[0][1], stamp=found[0][2]) if found else None

    def record(self, image_id: str, entry: Entry) -> None:
        """Note an image that the gallery holds; it is on disk soon, and certainly when the journal is closed."""
        row = (image_id, entry.fingerprint, entry.content, entry.stamp, self._run)
        with self._lock, self._explained():
            self._connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", row)
            self._commit_sometimes()

    def _begin(self) -> int:
        run = self._connection.execute
        # Nobody else may use it meanwhile; and a power cut must not leave it torn.
        run("PRAGMA locking_mode=EXCLUSIVE")
        run("PRAGMA synchronous=FULL")
        run("BEGIN EXCLUSIVE")
        kind, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (kind, version) != (APPLICATION_ID, VERSION):
            if kind or version or tables:
                raise sqlite3.DatabaseError("it is another program's, or another version's")
            for statement in SCHEMA:
                run(statement)
        run("CREATE TEMP TABLE claims (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        return int(run("INSERT INTO runs DEFAULT VALUES").lastrowid or 0)

    def _commit_sometimes(self) -> None:
        now_s = time.monotonic()
        if now_s - self._committed_s >= COMMIT_AFTER_S:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._committed_s = now_s

    def _all(self, statement: str, parameters: tuple[object, ...] = ()) -> list[Any]:
        with self._lock, self._explained():
            return self._connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
            problem = "another import uses it" if busy else f"it can't be used: {error}"
            raise CommandError(f"journal {self.path}: {problem}; name another with --journal") from error
        except (sqlite3.DatabaseError, OSError) as error:
            raise CommandError(
                f"journal {self.path}: {error}; delete it, or name another with --journal", exit_code=MISUSE
            ) from error


def _pages(values: Iterable[ValueT], size: int) -> Iterator[list[ValueT]]:
    remaining = iter(values)
    while page := list(itertools.islice(remaining, size)):
        yield page
