"""The generations of galleries in Redis: added, dropped, and switched without a write getting lost.

Which generation is active stands in two places, since they are of different slots: in the lists of the store, and in
each generation's own key, which every transaction watches. A switch is

1. the active generation's key says that it is not active any more, if nothing was written to it since: it is decided;
2. the other one's key says that it is active;
3. both change places in the lists.

In between nobody can write to either. Whoever finds it so, since the one who began has died, goes on with it.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from matchflow_index.errors import (
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationExistsError,
    GenerationNotFoundError,
    StoreUnavailableError,
)
from matchflow_index.redis_galleries import (
    ATTEMPTS,
    LONGEST_PAUSE_S,
    decode_gallery,
    generation_counter,
)
from matchflow_index.redis_keys import GalleryKeys, decode_head, is_standing, standing_of, stands_active
from matchflow_index.redis_server import settle
from matchflow_index.truth import Generations, Position, StoredGallery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index.records import GallerySpec
    from matchflow_index.redis_galleries import GalleryList
    from matchflow_index.redis_link import RedisLink
    from matchflow_index.truth import Durability

# Sets a key to a new value, or deletes it without one, if it still has the old value.
_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('DEL', KEYS[1]) end
return 1
"""
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""


class RedisGenerations:
    """The generations of the galleries on a list."""

    def __init__(self, link: RedisLink, galleries: GalleryList, durability: Durability, *, writable: bool) -> None:
        self._writable = writable
        self._link = link
        self._galleries = galleries
        self._durability = durability

    def of(self, gallery_id: str) -> Generations:
        """Return what is stored under an id, as of one moment; GalleryNotFoundError."""
        keys = self._galleries.keys
        with self._link.session() as session:
            found = session.execute(
                [
                    ("HGET", keys.galleries, gallery_id),
                    ("HGET", keys.others, gallery_id),
                    ("HGET", keys.counters, generation_counter(gallery_id)),
                ]
            )
        active, other, counted = found or (None, None, None)
        if active is None:
            self._galleries.check_store()
            raise GalleryNotFoundError(gallery_id)
        # The first one is not counted.
        there = Generations(active=decode_gallery(active), given=1 + int(counted or 0))
        return there if other is None else self._with(there, decode_gallery(other))

    def _with(self, there: Generations, other: StoredGallery) -> Generations:
        """Return both generations; without the other where whoever dropped it died before the end."""
        if self._link.call("EXISTS", self._keys(other).gallery):
            return replace(there, other=other)
        if self._writable:
            self._take_off(other)
        return there

    def add(self, spec: GallerySpec) -> StoredGallery:
        """Store an empty generation beside the active one; GalleryNotFoundError, GenerationExistsError."""
        lists = self._galleries
        for _ in self._attempts():
            there = self.of(spec.gallery_id)
            if there.other is not None:
                raise GenerationExistsError(spec.gallery_id, there.other.spec.generation)
            counted = self._link.call("HINCRBY", lists.keys.counters, generation_counter(spec.gallery_id), 1)
            spec = replace(spec, generation=1 + int(counted), lineage=there.active.lineage)
            gallery = lists.prepare(spec, _new_token())
            with self._link.session() as session:
                if lists.enter(session, gallery, lists.keys.others, beside=there.active):
                    settle(session, self._link, self._durability)
                    return gallery
        raise self._too_fast()

    def drop(self, gallery: StoredGallery) -> None:
        """Take a generation off the list and doom it; GenerationActiveError, GenerationNotFoundError."""
        spec, key = gallery.spec, self._keys(gallery).gallery
        for _ in self._attempts():
            self.finish_switch(spec.gallery_id)
            there = self.of(spec.gallery_id)
            standing = self._link.call("GET", key)
            if there.active.uuid == gallery.uuid:
                raise GenerationActiveError(spec.gallery_id, spec.generation)
            if there.other is None or there.other.uuid != gallery.uuid:
                raise GenerationNotFoundError(
                    spec.gallery_id, spec.generation, [each.spec.generation for each in there]
                )
            # Without its key nobody can write to it, or switch to it. It is gone already where another drop was killed.
            gone = standing is None or (not stands_active(standing) and self._replace(key, standing))
            if gone and self._take_off(gallery):
                return
        raise self._too_fast()

    def _take_off(self, gallery: StoredGallery) -> bool:
        keys, gallery_id = self._galleries.keys, gallery.spec.gallery_id
        with self._link.session() as session:
            session.watch([keys.others])
            found = session.call("HGET", keys.others, gallery_id)
            listed = found is not None and decode_gallery(found).uuid == gallery.uuid
            commands = [("HDEL", keys.others, gallery_id), ("ZADD", keys.doomed, 0, gallery.number)]
            done = not listed or session.execute(commands) is not None
            session.unwatch()
            settle(session, self._link, self._durability)
        return done

    def switch(self, gallery: StoredGallery, sequence: int, *, complete: bool, beyond: bool) -> bool:
        """Let both generations change places, if `gallery` is the active one and at that change."""
        self.finish_switch(gallery.spec.gallery_id)
        there = self.of(gallery.spec.gallery_id)
        if there.other is None or there.active.uuid != gallery.uuid:
            return False
        keys = self._keys(gallery)
        head = self._link.call("GET", self._keys(there.other).head)
        if head is None:
            return False
        # What is written to the other one after this look is looked at again by the follower.
        reached, _ = decode_head(head)
        position = Position(uuid=there.other.uuid, sequence=reached, complete=complete, beyond=beyond)
        with self._link.session() as session:
            session.watch([keys.gallery, keys.head])
            standing, head = session.call("MGET", keys.gallery, keys.head)
            if not is_standing(standing, gallery):
                session.unwatch()
                raise GalleryNotFoundError(gallery.spec.gallery_id)
            if not stands_active(standing) or decode_head(head)[0] != sequence:
                session.unwatch()
                return False
            commands = [
                ("SET", keys.gallery, standing_of(gallery, _new_token())),
                ("SET", keys.position, position.encode()),
            ]
            if session.execute(commands) is None:
                return False
            settle(session, self._link, self._durability)
        self.finish_switch(gallery.spec.gallery_id)
        return self.of(gallery.spec.gallery_id).active.uuid == there.other.uuid

    def finish_switch(self, gallery_id: str) -> None:
        """Go on with a switch that is decided but not done, if there is one; GalleryNotFoundError."""
        for _ in self._attempts():
            there = self.of(gallery_id)
            standing = self._link.call("GET", self._keys(there.active).gallery)
            if standing is None or stands_active(standing):
                return
            other = there.other
            found = None if other is None else self._link.call("GET", self._keys(other).gallery)
            if other is None or found is None:
                # What was switched to has been dropped.
                self._replace(self._keys(there.active).gallery, standing, standing_of(there.active))
            elif stands_active(found) or self._replace(self._keys(other).gallery, found, standing_of(other)):
                self._swap(there.active, other)
        raise self._too_fast()

    def _swap(self, active: StoredGallery, other: StoredGallery) -> None:
        """Let both change places in the lists, if they are there as expected."""
        keys, gallery_id = self._galleries.keys, active.spec.gallery_id
        with self._link.session() as session:
            session.watch([keys.galleries, keys.others])
            old, new = session.pipeline([("HGET", keys.galleries, gallery_id), ("HGET", keys.others, gallery_id)])
            found = [None if value is None else decode_gallery(value).uuid for value in (old, new)]
            if found == [active.uuid, other.uuid]:
                session.execute([("HSET", keys.galleries, gallery_id, new), ("HSET", keys.others, gallery_id, old)])
            session.unwatch()
            settle(session, self._link, self._durability)

    def claim(self, gallery: StoredGallery, token: bytes, seconds: float) -> bool:
        """Tell whether a process is the one that fills a generation."""
        return bool(self._link.call("EVAL", _CLAIM, 1, self._keys(gallery).filler, token, int(1000 * seconds)))

    def _replace(self, key: bytes, old: bytes, *new: bytes) -> bool:
        return bool(self._link.call("EVAL", _REPLACE, 1, key, old, *new))

    def _keys(self, gallery: StoredGallery) -> GalleryKeys:
        return GalleryKeys(self._galleries.keys.prefix, gallery.number)

    def _attempts(self) -> Iterator[int]:
        for attempt in range(ATTEMPTS):
            yield attempt
            time.sleep(LONGEST_PAUSE_S)

    def _too_fast(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self._link.address}: the list of galleries changes too fast to be changed")


def _new_token() -> bytes:
    return uuid.uuid4().hex.encode()
