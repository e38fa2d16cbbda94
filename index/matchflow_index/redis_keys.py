"""The keys of a truth in Redis, and how values are cut.

{PREFIX}:store         hash     format, uuid of the store
{PREFIX}:galleries     hash     gallery id -> its active generation: number u32, uuid 16 bytes, specification as JSON
{PREFIX}:others        hash     gallery id -> its other generation, if any: the same
{PREFIX}:counters      hash     gallery, row, generation of GALLERY -> the last number given
{PREFIX}:doomed        zset     gallery number, from which time on it may be swept: deleted, or never finished
{PREFIX:N}:gallery     string   uuid of gallery number N, and :TOKEN if it is not the active generation; not there: gone
{PREFIX:N}:head        string   last change u64, chained digest 8 bytes
{PREFIX:N}:writer      string   which writer has the right of way; expires
{PREFIX:N}:records     hash     image id -> record as JSON
{PREFIX:N}:ids         zset     image ids in order of their bytes
{PREFIX:N}:log         stream   entry SEQUENCE-0 -> chained digest 8 bytes, change as JSON
{PREFIX:N}:defaults    string   match defaults, as they were given
{PREFIX:N}:position    string   how far this generation has followed the other one, as JSON
{PREFIX:N}:filler      string   which process fills this generation; expires
{PREFIX:N}:pending     zset     FIRST-LAST, rows that may be there though nothing commits to them yet, since when
{PREFIX:N}:doomed      set      rows to delete
{PREFIX:N:B}:rR        string   features of row R; :tR its thumbnail; :rR+ and :tR+ their tails

What stands in braces decides the slot in Redis Cluster: the store has one, each gallery, and each of its buckets of
rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.history import BEGINNING, DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matchflow_index.truth import StoredGallery

BUCKETS = 8
# Below, a tail would take more than it saves.
SMALLEST_CUT = 1024
# What Redis keeps beside a value has to fit into the same block of memory.
_SPARE = 8

ROW, THUMBNAIL = b"r", b"t"

# The lengths of stored values that may have a tail.
CUT_SIZES = frozenset((1 << power) - _SPARE for power in range(SMALLEST_CUT.bit_length() - 1, 64))

_SEQUENCE_BYTES = 8


class StoreKeys:
    """The keys of a store that belong to no gallery."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        tag = f"{{{prefix}}}:"
        self.store = f"{tag}store".encode()
        self.galleries = f"{tag}galleries".encode()
        self.others = f"{tag}others".encode()
        self.counters = f"{tag}counters".encode()
        self.doomed = f"{tag}doomed".encode()


class GalleryKeys:
    """The keys of one gallery."""

    def __init__(self, prefix: str, number: int) -> None:
        tag = f"{{{prefix}:{number}}}:"
        self.gallery = f"{tag}gallery".encode()
        self.head = f"{tag}head".encode()
        self.writer = f"{tag}writer".encode()
        self.records = f"{tag}records".encode()
        self.ids = f"{tag}ids".encode()
        self.log = f"{tag}log".encode()
        self.defaults = f"{tag}defaults".encode()
        self.position = f"{tag}position".encode()
        self.filler = f"{tag}filler".encode()
        self.pending = f"{tag}pending".encode()
        self.doomed = f"{tag}doomed".encode()
        buckets = [f"{{{prefix}:{number}:{bucket}}}:".encode() for bucket in range(BUCKETS)]
        self.beginnings = {kind: [bucket + kind for bucket in buckets] for kind in (ROW, THUMBNAIL)}

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """All but the rows, the list of what is pending, and what says that the gallery exists."""
        names = (self.head, self.writer, self.records, self.ids, self.log, self.defaults, self.position, self.filler)
        return (*names, self.doomed)

    def value(self, kind: bytes, row_id: int) -> bytes:
        """Return the key of a row (ROW) or a thumbnail (THUMBNAIL)."""
        return b"%b%d" % (self.beginnings[kind][row_id % BUCKETS], row_id)

    def values(self, kind: bytes, row_ids: Iterable[int]) -> list[bytes]:
        """Return the keys of many rows or thumbnails."""
        beginnings = self.beginnings[kind]
        return [b"%b%d" % (beginnings[row_id % BUCKETS], row_id) for row_id in row_ids]

    def of_row(self, row_id: int) -> tuple[bytes, ...]:
        """Return all keys that a row can have; they share a slot."""
        row, thumbnail = self.value(ROW, row_id), self.value(THUMBNAIL, row_id)
        return (row, tail_key(row), thumbnail, tail_key(thumbnail))


def encode_head(sequence: int = 0, digest: bytes = BEGINNING) -> bytes:
    """Return what a gallery's head holds."""
    return sequence.to_bytes(_SEQUENCE_BYTES, "big") + digest


def decode_head(head: bytes | None) -> tuple[int, bytes]:
    """Return the sequence and the digest that `encode_head` wrote."""
    if head is None or len(head) != _SEQUENCE_BYTES + DIGEST_BYTES:
        raise StoreUnavailableError(f"a gallery is damaged: expected a head of 16 bytes, got {head!r}")
    return int.from_bytes(head[:_SEQUENCE_BYTES], "big"), head[_SEQUENCE_BYTES:]


def standing_of(gallery: StoredGallery, token: bytes = b"") -> bytes:
    """Return what a gallery's key says: with a token, that it is not the active generation.

    Each time that it stops being active it gets another token, so that nobody takes it for what it was before.
    """
    return gallery.uuid.encode() + (b":" + token if token else b"")


def is_standing(found: bytes | None, gallery: StoredGallery) -> bool:
    """Tell whether a gallery's key says that the gallery is there."""
    return found is not None and found.partition(b":")[0] == gallery.uuid.encode()


def stands_active(standing: bytes) -> bool:
    """Tell whether a gallery's key says that it is the active generation."""
    return b":" not in standing


def bucketed(row_ids: Iterable[int]) -> list[list[int]]:
    """Return row ids by the slot that they share, without empty ones."""
    buckets: dict[int, list[int]] = {}
    for row_id in row_ids:
        buckets.setdefault(row_id % BUCKETS, []).append(row_id)
    return list(buckets.values())


def tail_key(key: bytes) -> bytes:
    """Return the key of a value's tail."""
    return key + b"+"


def cut(value: bytes) -> tuple[bytes, bytes]:
    """Return what is stored under the key of a value and what under that of its tail (b"": nothing).

    Redis takes memory in blocks of 2^n bytes and three sizes between, and adds a few bytes to each value: one of 2^n
    bytes would take a quarter more. What is longer than 2^n - 8 and not longer than 2^n leaves its end to the tail.

    >>> [len(part) for part in cut(bytes(2592))], [len(part) for part in cut(bytes(4096))]
    ([2592, 0], [4088, 8])
    """
    fits = _fitting(len(value))
    return (value, b"") if len(value) <= fits or len(value) < SMALLEST_CUT - _SPARE else (value[:fits], value[fits:])


def _fitting(size: int) -> int:
    """Return how much of a value is to be stored in one piece."""
    power = 1 << max(size - 1, 1).bit_length()
    return min(size, power - _SPARE)
