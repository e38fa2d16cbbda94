"""Erasing what nothing refers to any more: rows of removed images, of writers that died, and deleted galleries."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from matchflow_index.records import ImageRecord
from matchflow_index.redis_keys import GalleryKeys, bucketed
from matchflow_index.redis_server import server_time_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from matchflow_index.redis_keys import StoreKeys
    from matchflow_index.redis_link import RedisLink

logger = logging.getLogger(__name__)

# Nobody takes so long between registering rows and committing to them; who does has to begin again.
PENDING_AGE_S = 600
ROWS_PER_STEP = 500

# Writing the head makes every transaction fail that began before: none can commit to rows that are doomed here.
_DOOM_PENDING = """
local old = redis.call('ZRANGE', KEYS[2], '-inf', tonumber(redis.call('TIME')[1]) - ARGV[1], 'BYSCORE', 'LIMIT', 0, 100)
if #old == 0 then return 0 end
local head = redis.call('GET', KEYS[1])
if head then redis.call('SET', KEYS[1], head) end
for _, range in ipairs(old) do
  local first, last = string.match(range, '(%d+)-(%d+)')
  for row = tonumber(first), tonumber(last) do redis.call('SADD', KEYS[3], string.format('%.0f', row)) end
  redis.call('ZREM', KEYS[2], range)
end
return #old
"""


def pending_ranges(row_ids: Iterable[int]) -> list[bytes]:
    """Return row ids as ranges FIRST-LAST.

    >>> pending_ranges([7, 3, 4, 5])
    [b'3-5', b'7-7']
    """
    ranges: list[list[int]] = []
    for row_id in sorted(row_ids):
        if ranges and ranges[-1][1] == row_id - 1:
            ranges[-1][1] = row_id
        else:
            ranges.append([row_id, row_id])
    return [b"%d-%d" % (first, last) for first, last in ranges]


def erase_rows(link: RedisLink, keys: GalleryKeys, row_ids: Iterable[int]) -> None:
    """Delete rows with all that they have; those that are not there are no trouble."""
    link.pipeline(
        [("UNLINK", *[key for row_id in bucket for key in keys.of_row(row_id)]) for bucket in bucketed(row_ids)]
    )


def erase_doomed(link: RedisLink, keys: GalleryKeys, row_ids: Iterable[int]) -> None:
    """Delete rows that are on a gallery's list of the doomed, and then take them off it."""
    doomed = list(row_ids)
    if doomed:
        erase_rows(link, keys, doomed)
        link.call("SREM", keys.doomed, *doomed)


def sweep_rows(link: RedisLink, keys: GalleryKeys, *, age_s: float = PENDING_AGE_S) -> None:
    """Delete a gallery's doomed rows, and those that have been pending for so long that their writer is dead."""
    more = True
    while more:
        while doomed := link.call("SRANDMEMBER", keys.doomed, ROWS_PER_STEP):
            erase_doomed(link, keys, map(int, doomed))
        # Last, as a server without memory refuses it.
        more = bool(link.call("EVAL", _DOOM_PENDING, 3, keys.head, keys.pending, keys.doomed, age_s))


def sweep_galleries(link: RedisLink, store: StoreKeys) -> None:
    """Erase what deleted galleries held, and those whose creation was cut off."""
    now_s = server_time_s(link)
    for name in link.call("ZRANGE", store.doomed, "-inf", now_s, "BYSCORE"):
        # From here on nobody can finish its creation.
        link.call("ZADD", store.doomed, "XX", 0, name)
        if link.call("ZSCORE", store.doomed, name) is not None:
            _sweep_gallery(link, store, int(name), now_s)


def _sweep_gallery(link: RedisLink, store: StoreKeys, number: int, now_s: int) -> None:
    keys = GalleryKeys(store.prefix, number)
    # Whoever is inside a transaction can't commit after this.
    link.call("UNLINK", keys.gallery)
    for row_ids in _stored_rows(link, keys):
        erase_rows(link, keys, row_ids)
    sweep_rows(link, keys)
    for pending in link.call("ZRANGE", keys.pending, 0, -1):
        first, last = map(int, pending.split(b"-"))
        erase_rows(link, keys, range(first, last + 1))
    link.call("UNLINK", *keys.contents)
    if link.call("EXISTS", keys.pending):
        # Their writers may still be writing these rows; they erase them themselves, unless they die.
        link.call("ZADD", store.doomed, "XX", now_s + PENDING_AGE_S, number)
        logger.info("gallery number %d had writers when it was deleted; it is looked at again later", number)
    else:
        link.call("ZREM", store.doomed, number)


def _stored_rows(link: RedisLink, keys: GalleryKeys) -> Iterator[list[int]]:
    cursor = b"0"
    while True:
        cursor, fields = link.call("HSCAN", keys.records, cursor, "COUNT", ROWS_PER_STEP)
        yield [ImageRecord.decode(value).row_id for value in fields[1::2]]
        if cursor == b"0":
            return
