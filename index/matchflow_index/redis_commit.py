"""How a transaction gets into Redis.

1. WATCH the gallery's head. All that the transaction reads is from then on or from a moment that makes it fail.
2. Its new rows are registered as pending, then written: under ids that nothing refers to, in slots of their own.
3. One MULTI/EXEC stores records, ids, log and head, takes the rows off the pending and puts the old ones to the doomed.
4. Doomed rows are deleted.
A crash after 2 leaves rows that are pending, after 3 rows that are doomed: both get swept.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from matchflow_index.errors import GalleryNotFoundError, GenerationMovedError, StoreUnavailableError
from matchflow_index.redis_keys import (
    ROW,
    THUMBNAIL,
    bucketed,
    cut,
    decode_head,
    encode_head,
    is_standing,
    stands_active,
    tail_key,
)
from matchflow_index.redis_link import RefusedError
from matchflow_index.redis_sweeping import erase_doomed, erase_rows, pending_ranges
from matchflow_index.redis_transaction import RedisTransaction
from matchflow_index.redis_view import ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from matchflow_index.redis_keys import GalleryKeys
    from matchflow_index.redis_link import Command, RedisLink, RedisSession
    from matchflow_index.truth import StoredGallery

logger = logging.getLogger(__name__)

# How much is sent at once, and how much in one command.
PIPELINE_BYTES = 8 << 20
COMMAND_BYTES = 1 << 20
# Who was too slow asks the others to wait, for at most so long.
TURN_MS = 10_000

# Pending rows of a gallery that is gone would never be swept. The server's clock is the one that all share.
_REGISTER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local now = redis.call('TIME')[1]
for k = 2, #ARGV do redis.call('ZADD', KEYS[2], now, ARGV[k]) end
return 1
"""
_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


def begin(
    session: RedisSession,
    keys: GalleryKeys,
    gallery: StoredGallery,
    token: bytes,
    count_rows: Callable[[int], int],
    *,
    active: bool = True,
) -> RedisTransaction | None:
    """Begin a transaction; None when another writer than `token` has the right of way.

    Raises GalleryNotFoundError, and GenerationMovedError unless the generation is active as `active` says.
    """
    # Where a follower is counts for nobody but followers.
    session.watch([keys.head, keys.gallery, *([] if active else [keys.position])])
    (standing, head, writer), last = session.pipeline(
        [
            ("MGET", keys.gallery, keys.head, keys.writer),
            ("XREVRANGE", keys.log, "+", "-", "COUNT", 1),
        ]
    )
    if not is_standing(standing, gallery):
        session.unwatch()
        raise GalleryNotFoundError(gallery.spec.gallery_id)
    if stands_active(standing) is not active:
        session.unwatch()
        raise GenerationMovedError(gallery.spec.gallery_id, gallery.spec.generation)
    if writer is not None and writer != token:
        session.unwatch()
        return None
    sequence, digest = decode_head(head)
    base = gallery.spec.base_sequence
    logged = last[0][0] if last else b"%d-0" % base
    if logged != b"%d-0" % sequence:
        # Adding to it would fail in the middle of a transaction.
        raise StoreUnavailableError(
            f"gallery {gallery.spec.gallery_id!r} is damaged: expected its log to end at change {sequence}, "
            f"got {logged.decode()}"
        )
    return RedisTransaction(session, keys, sequence, digest, count_rows, base=base, standing=standing)


def commit(
    session: RedisSession,
    link: RedisLink,
    keys: GalleryKeys,
    transaction: RedisTransaction,
    *,
    ends_turn: bool,
) -> bool:
    """Store all that a transaction did; False when the gallery has changed since it began, and nothing was stored.

    `ends_turn`: the right of way is given back with it.
    """
    rows = list(transaction.new_rows)
    pending = pending_ranges(rows)
    if rows:
        standing = transaction.standing
        if not session.call("EVAL", _REGISTER, 2, keys.gallery, keys.pending, standing, *pending):
            # It is deleted, or has changed its role: whoever begins again will hear which.
            session.unwatch()
            return False
        try:
            _write_rows(link, keys, transaction.new_rows)
        except StoreUnavailableError as error:
            # They stay pending: some may still be on their way.
            with suppress(StoreUnavailableError):
                erase_rows(link, keys, rows)
            raise StoreUnavailableError(f"{error}; nothing was stored") from error
    try:
        done = session.execute(_changes(keys, transaction, pending, ends_turn=ends_turn)) is not None
    except RefusedError:
        _withdraw(link, keys, rows, pending)
        raise
    if not done:
        _withdraw(link, keys, rows, pending)
    return done


def take_turn(link: RedisLink, keys: GalleryKeys, token: bytes) -> bool:
    """Ask all other writers to let this one be first, for a while; tell whether nobody else had done so before."""
    return link.call("SET", keys.writer, token, "NX", "PX", TURN_MS) is not None


def give_turn_back(link: RedisLink, keys: GalleryKeys, token: bytes) -> None:
    """Let the others go on; should it fail, the turn is over by itself."""
    with suppress(StoreUnavailableError):
        link.call("EVAL", _GIVE_BACK, 1, keys.writer, token)


def erase_replaced(link: RedisLink, keys: GalleryKeys, transaction: RedisTransaction) -> bool:
    """Delete the rows that a committed transaction put an end to; tell whether that went well."""
    try:
        erase_doomed(link, keys, transaction.dead_rows)
    except StoreUnavailableError as error:
        logger.warning("rows of replaced images could not be deleted yet: %s", error)
        return False
    return True


def _write_rows(link: RedisLink, keys: GalleryKeys, rows: dict[int, tuple[bytes, bytes | None]]) -> None:
    commands: list[Command] = []
    size = 0
    for bucket in bucketed(rows):
        for command, command_bytes in _settings(keys, bucket, rows):
            commands.append(command)
            size += command_bytes
            if size >= PIPELINE_BYTES:
                link.pipeline(commands)
                commands, size = [], 0
    link.pipeline(commands)


def _settings(
    keys: GalleryKeys, bucket: list[int], rows: dict[int, tuple[bytes, bytes | None]]
) -> Iterator[tuple[Command, int]]:
    """Yield MSET commands for the rows of one slot, each with its size."""
    words: list[Any] = ["MSET"]
    size = 0
    for row_id in bucket:
        for kind, value in zip((ROW, THUMBNAIL), rows[row_id], strict=True):
            if value is None:
                continue
            key, (head, tail) = keys.value(kind, row_id), cut(value)
            words += [key, head]
            if tail:
                words += [tail_key(key), tail]
            size += len(value)
        if size >= COMMAND_BYTES:
            yield tuple(words), size
            words, size = ["MSET"], 0
    if len(words) > 1:
        yield tuple(words), size


def _changes(
    keys: GalleryKeys, transaction: RedisTransaction, pending: list[bytes], *, ends_turn: bool
) -> list[Command]:
    """Return the commands that make a transaction; none when it changed nothing."""
    position = transaction.new_position
    following: list[Command] = [("SET", keys.position, position.encode())] if position is not None else []
    if not transaction.entries:
        return following
    stored = [(name.encode(), record.encode()) for name, record in transaction.written.items() if record is not None]
    gone = [name.encode() for name, record in transaction.written.items() if record is None]
    commands: list[Command] = []
    if stored:
        commands.append(("HSET", keys.records, *[word for pair in stored for word in pair]))
        commands.append(("ZADD", keys.ids, *[word for name, _ in stored for word in (0, name)]))
    if gone:
        commands += [("HDEL", keys.records, *gone), ("ZREM", keys.ids, *gone)]
    if pending:
        commands.append(("ZREM", keys.pending, *pending))
    if transaction.dead_rows:
        commands.append(("SADD", keys.doomed, *transaction.dead_rows))
    first = transaction.sequence - len(transaction.entries) + 1
    commands += [
        ("XADD", keys.log, b"%d-0" % (first + k), ENTRY, digest + entry)
        for k, (digest, entry) in enumerate(transaction.entries)
    ]
    commands.append(("SET", keys.head, encode_head(transaction.sequence, transaction.digest)))
    if ends_turn:
        commands.append(("DEL", keys.writer))
    return commands + following


def _withdraw(link: RedisLink, keys: GalleryKeys, row_ids: list[int], pending: list[bytes]) -> None:
    """Erase rows that are written but were certainly not committed to; what fails here is swept later."""
    if row_ids:
        with suppress(StoreUnavailableError):
            erase_rows(link, keys, row_ids)
            link.call("ZREM", keys.pending, *pending)
