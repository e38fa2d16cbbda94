"""The generations of a gallery inside an LMDB transaction; the layout of keys is in lmdb_truth.py."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from matchflow_index.errors import (
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationDroppedError,
    GenerationExistsError,
    GenerationNotFoundError,
)
from matchflow_index.lmdb_view import U32, U64, LmdbView, count_up, read_counter
from matchflow_index.records import GallerySpec
from matchflow_index.truth import Generations, Position, StoredGallery

if TYPE_CHECKING:
    from collections.abc import Mapping

    Databases = Mapping[str, Any]

_UUID_START, _SPEC_START = 4, 20


def encode_gallery(gallery: StoredGallery) -> bytes:
    """Return a generation as it is stored under its gallery's id."""
    return U32.pack(gallery.number) + bytes.fromhex(gallery.uuid) + gallery.spec.encode()


def decode_gallery(value: bytes) -> StoredGallery:
    """Return what `encode_gallery` wrote."""
    number, identity, spec = value[:_UUID_START], value[_UUID_START:_SPEC_START], value[_SPEC_START:]
    return StoredGallery(spec=GallerySpec.decode(spec), number=U32.unpack(number)[0], uuid=identity.hex())


def _get(txn: Any, databases: Databases, name: str, gallery_id: str) -> StoredGallery | None:
    database = databases.get(name)
    value = None if database is None else txn.get(gallery_id.encode(), db=database)
    return None if value is None else decode_gallery(value)


def stored_generations(txn: Any, databases: Databases, gallery_id: str) -> Generations:
    """Return what is stored under an id; GalleryNotFoundError."""
    active = _get(txn, databases, "galleries", gallery_id)
    if active is None:
        raise GalleryNotFoundError(gallery_id)
    # The first one is not counted.
    given = 1 + read_counter(txn, databases["counters"], _counter_key(gallery_id))
    return Generations(active=active, other=_get(txn, databases, "others", gallery_id), given=given)


def is_active(txn: Any, databases: Databases, gallery: StoredGallery) -> bool:
    """Tell whether a generation is the active one.

    GalleryNotFoundError when it is not there any more, GenerationDroppedError while another one of its gallery is.
    """
    gallery_id = gallery.spec.gallery_id
    active = _get(txn, databases, "galleries", gallery_id)
    if active is not None and active.uuid == gallery.uuid:
        return True
    other = _get(txn, databases, "others", gallery_id)
    if other is not None and other.uuid == gallery.uuid:
        return False
    if active is not None and active.lineage == gallery.lineage:
        raise GenerationDroppedError(gallery_id, gallery.spec.generation)
    raise GalleryNotFoundError(gallery_id)


def new_gallery(txn: Any, databases: Databases, spec: GallerySpec) -> StoredGallery:
    """Return an empty generation that nothing refers to yet."""
    number = count_up(txn, databases["counters"], b"gallery")
    if spec.base_sequence:
        txn.put(U32.pack(number), U64.pack(spec.base_sequence), db=databases["counters"])
    return StoredGallery(spec=spec, number=number, uuid=uuid.uuid4().hex)


def add_generation(txn: Any, databases: Databases, spec: GallerySpec) -> StoredGallery:
    """Store an empty generation under the next number; GalleryNotFoundError, GenerationExistsError."""
    there = stored_generations(txn, databases, spec.gallery_id)
    if there.other is not None:
        raise GenerationExistsError(spec.gallery_id, there.other.spec.generation)
    generation = 1 + count_up(txn, databases["counters"], _counter_key(spec.gallery_id))
    gallery = new_gallery(txn, databases, replace(spec, generation=generation, lineage=there.active.lineage))
    txn.put(spec.gallery_id.encode(), encode_gallery(gallery), db=databases["others"])
    return gallery


def drop_generation(txn: Any, databases: Databases, gallery: StoredGallery) -> None:
    """Doom a generation that is not active; GenerationActiveError, GenerationNotFoundError."""
    spec = gallery.spec
    there = stored_generations(txn, databases, spec.gallery_id)
    if there.active.uuid == gallery.uuid:
        raise GenerationActiveError(spec.gallery_id, spec.generation)
    if there.other is None or there.other.uuid != gallery.uuid:
        raise GenerationNotFoundError(spec.gallery_id, spec.generation, [each.spec.generation for each in there])
    txn.delete(spec.gallery_id.encode(), db=databases["others"])
    txn.put(U32.pack(gallery.number), b"", db=databases["doomed"])


def delete_generations(txn: Any, databases: Databases, gallery_id: str) -> StoredGallery:
    """Doom all generations of a gallery and return the active one; GalleryNotFoundError."""
    there = stored_generations(txn, databases, gallery_id)
    for name in ("galleries", "others"):
        txn.delete(gallery_id.encode(), db=databases[name])
    txn.delete(_counter_key(gallery_id), db=databases["counters"])
    for gallery in there:
        txn.put(U32.pack(gallery.number), b"", db=databases["doomed"])
    return there.active


def switch_generations(
    txn: Any, databases: Databases, gallery: StoredGallery, sequence: int, *, complete: bool, beyond: bool
) -> bool:
    """Let both generations change places if `gallery` is active and at that change; tell whether they did."""
    there = stored_generations(txn, databases, gallery.spec.gallery_id)
    view = LmdbView(txn, databases, gallery)
    if there.other is None or there.active.uuid != gallery.uuid or view.sequence != sequence:
        return False
    reached = LmdbView(txn, databases, there.other).sequence
    view.follow(Position(uuid=there.other.uuid, sequence=reached, complete=complete, beyond=beyond))
    key = gallery.spec.gallery_id.encode()
    txn.put(key, encode_gallery(there.other), db=databases["galleries"])
    txn.put(key, encode_gallery(there.active), db=databases["others"])
    return True


def _counter_key(gallery_id: str) -> bytes:
    return f"generation of {gallery_id}".encode()
