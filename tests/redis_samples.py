"""Images in a truth on Redis, and a look at every key that it left there."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

from matchflow_index import ImageRecord
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_keys import GalleryKeys
from matchflow_index.redis_truth import RedisTruth

if TYPE_CHECKING:
    from redis_server import RedisServer

    from matchflow_index.truth import Change, StoredGallery, Transaction, Truth

ROW_BYTES = 2592


def open_truth(server: RedisServer, *, read_only: bool = False, **options: Any) -> closing[RedisTruth]:
    """Open the truth on a server; use it in a `with` statement."""
    return closing(RedisTruth(RedisAddress(**{"url": server.url, **options}), read_only=read_only))


def row_of(name: str, seed: int = 0, size: int = ROW_BYTES) -> bytes:
    """Return the row of an image, another one for every name and seed."""
    return hashlib.shake_128(f"{name} {seed}".encode()).digest(size)


def put_in(transaction: Transaction, name: str, seed: int = 0, size: int = ROW_BYTES) -> Change:
    """Put an image whose record tells which row it must have."""
    record = ImageRecord(
        image_id=name,
        row_id=transaction.next_row_id(),
        content_hash=f"{seed}",
        labels={"size": float(size)},
        width_px=1,
        height_px=1,
        update_time_s=1.5,
        sequence=transaction.sequence + 1,
    )
    return transaction.put(record, row_of(name, seed, size), f"thumbnail of {name} {seed}".encode())


def put(truth: Truth, gallery: StoredGallery, *names: str, seed: int = 0, size: int = ROW_BYTES) -> list[Change]:
    """Put images in one transaction."""
    return truth.write(gallery, lambda transaction: [put_in(transaction, name, seed, size) for name in names])


def contents(truth: Truth, gallery: StoredGallery) -> dict[str, int]:
    """Return the seeds of all images by id, having seen that each is whole and that the log tells the same."""
    with truth.read(gallery) as snapshot:
        records = {record.image_id: record for record in snapshot.records()}
        logged: dict[str, int] = {}
        for sequence, change in enumerate(snapshot.changes(0), 1):
            assert change.sequence == sequence
            logged[change.image_id] = change.row_id
            if change.kind == "remove":
                del logged[change.image_id]
        assert len(list(snapshot.changes(0))) == snapshot.sequence
        assert logged == {name: record.row_id for name, record in records.items()}
        rows = snapshot.rows_of([record.row_id for record in records.values()])
        seeds = {name: int(record.content_hash) for name, record in records.items()}
        for (name, record), row in zip(records.items(), rows, strict=True):
            size = record.labels["size"]
            assert isinstance(size, float)
            assert row == row_of(name, seeds[name], int(size)), f"{name} has another row than its own"
            assert snapshot.thumbnail(record.row_id) == f"thumbnail of {name} {seeds[name]}".encode()
    return seeds


def keys_of(gallery: StoredGallery, prefix: str = "matchflow") -> GalleryKeys:
    """Return the keys of a gallery."""
    return GalleryKeys(prefix, gallery.number)


def stray_keys(server: RedisServer, galleries: dict[StoredGallery, int], prefix: str = "matchflow") -> set[bytes]:
    """Return the keys that neither the store, nor these galleries with so many images, have any use for."""
    with server.client() as client:
        found = set(client.scan_iter(count=10_000))
        found -= {f"{{{prefix}}}:{name}".encode() for name in ("store", "galleries", "counters")}
        for gallery, images in galleries.items():
            keys = keys_of(gallery, prefix)
            found -= {keys.gallery, keys.head, keys.log, keys.records, keys.ids, keys.defaults}
            rows = {int(value.split(b",")[1]) for value in client.hvals(keys.records)}
            assert len(rows) == images
            found -= {key for row_id in rows for key in keys.of_row(row_id)}
    return found
