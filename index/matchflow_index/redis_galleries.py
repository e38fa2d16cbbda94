"""The list of galleries in Redis, the store's counters, and what tells one store from another."""

from __future__ import annotations

import random
import time
import uuid
from typing import TYPE_CHECKING

from matchflow_index.errors import GalleryExistsError, GalleryNotFoundError, StoreUnavailableError
from matchflow_index.records import GallerySpec
from matchflow_index.redis_keys import GalleryKeys, StoreKeys, encode_head, standing_of
from matchflow_index.redis_server import server_time_s, settle
from matchflow_index.redis_sweeping import PENDING_AGE_S
from matchflow_index.truth import StoredGallery

if TYPE_CHECKING:
    from matchflow_index.redis_link import RedisLink, RedisSession
    from matchflow_index.truth import Durability

FORMAT = 1
ATTEMPTS = 100
LONGEST_PAUSE_S = 0.01

_UUID_START, _SPEC_START = 4, 20


class GalleryList:
    """The galleries of the store that an address names."""

    def __init__(self, link: RedisLink, durability: Durability, *, create: bool) -> None:
        """Find the store, or create it; StoreUnavailableError when it is none of ours."""
        self.keys = StoreKeys(link.address.prefix)
        self._link = link
        self._durability = durability
        if create:
            with link.session() as session:
                session.execute(
                    [
                        ("HSETNX", self.keys.store, "format", FORMAT),
                        ("HSETNX", self.keys.store, "uuid", uuid.uuid4().hex),
                    ]
                )
        version, self._store = link.call("HMGET", self.keys.store, "format", "uuid")
        if version != b"%d" % FORMAT or self._store is None:
            found = None if version is None else version.decode()
            raise StoreUnavailableError(
                f"{link.address} has format {found} under prefix {link.address.prefix!r}; "
                f"this program reads and writes format {FORMAT}"
            )

    def check_store(self) -> None:
        """Raise StoreUnavailableError unless the server still has the store that was opened."""
        found = self._link.call("HGET", self.keys.store, "uuid")
        if found != self._store:
            raise StoreUnavailableError(
                f"{self._link.address} has lost the store that was opened: expected {self._store.decode()}, "
                f"got {'none' if found is None else found.decode()}"
            )

    def count_rows(self, count: int) -> int:
        """Return the last of `count` new row ids."""
        return int(self._link.call("HINCRBY", self.keys.counters, "row", count))

    def all(self) -> list[StoredGallery]:
        """Return the active generation of every gallery, in order of id."""
        found = self._link.call("HGETALL", self.keys.galleries)
        if not found:
            self.check_store()
        pairs = zip(found[::2], found[1::2], strict=True)
        return [decode_gallery(value) for _, value in sorted(pairs)]

    def others(self) -> list[StoredGallery]:
        """Return the other generation of every gallery that has one, in order of id."""
        found = self._link.call("HGETALL", self.keys.others)
        return [decode_gallery(value) for _, value in sorted(zip(found[::2], found[1::2], strict=True))]

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""
        self.check_store()
        for _ in range(ATTEMPTS):
            if self._link.call("HEXISTS", self.keys.galleries, spec.gallery_id):
                raise GalleryExistsError(spec.gallery_id)
            gallery = self.prepare(spec)
            with self._link.session() as session:
                if self.enter(session, gallery, self.keys.galleries):
                    settle(session, self._link, self._durability)
                    return gallery
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))  # noqa: S311 - no secret
        raise StoreUnavailableError(f"{self._link.address}: the list of galleries changes too fast to be added to")

    def prepare(self, spec: GallerySpec, token: bytes = b"") -> StoredGallery:
        """Make a generation that is not on a list yet: one that is to be swept unless it gets there.

        With a token it is not the active one.
        """
        number = int(self._link.call("HINCRBY", self.keys.counters, "gallery", 1))
        gallery = StoredGallery(spec=spec, number=number, uuid=uuid.uuid4().hex)
        keys = GalleryKeys(self.keys.prefix, number)
        self._link.call("ZADD", self.keys.doomed, server_time_s(self._link) + PENDING_AGE_S, number)
        with self._link.session() as session:
            session.execute(
                [
                    ("SET", keys.gallery, standing_of(gallery, token)),
                    ("SET", keys.head, encode_head(spec.base_sequence)),
                ]
            )
        return gallery

    def enter(
        self, session: RedisSession, gallery: StoredGallery, where: bytes, *, beside: StoredGallery | None = None
    ) -> bool:
        """Put a prepared generation on a list; False when the lists changed meanwhile, and it has to be made anew.

        `beside`: only while that one is the active generation.
        """
        number, gallery_id = gallery.number, gallery.spec.gallery_id
        session.watch([self.keys.galleries, self.keys.others, self.keys.doomed])
        doomed_from, taken, active = session.pipeline(
            [
                ("ZSCORE", self.keys.doomed, number),
                ("HEXISTS", where, gallery_id),
                ("HGET", self.keys.galleries, gallery_id),
            ]
        )
        swept = doomed_from is None or not float(doomed_from)
        alone = beside is not None and (active is None or decode_gallery(active).uuid != beside.uuid)
        commands = [("HSET", where, gallery_id, encode_gallery(gallery)), ("ZREM", self.keys.doomed, number)]
        done = not taken and not swept and not alone and session.execute(commands) is not None
        session.unwatch()
        if not done:
            # Whoever sweeps next need not wait.
            self._link.call("ZADD", self.keys.doomed, "XX", 0, number)
        return done

    def delete(self, gallery_id: str) -> StoredGallery:
        """Take a gallery off the lists, for good, and doom what its generations hold; return the active one."""
        self.check_store()
        for _ in range(ATTEMPTS):
            with self._link.session() as session:
                session.watch([self.keys.galleries, self.keys.others])
                found = session.pipeline(
                    [("HGET", where, gallery_id) for where in (self.keys.galleries, self.keys.others)]
                )
                if found[0] is None:
                    session.unwatch()
                    raise GalleryNotFoundError(gallery_id)
                generations = [decode_gallery(value) for value in found if value is not None]
                commands = [
                    ("HDEL", self.keys.galleries, gallery_id),
                    ("HDEL", self.keys.others, gallery_id),
                    ("HDEL", self.keys.counters, generation_counter(gallery_id)),
                    *[("ZADD", self.keys.doomed, 0, gallery.number) for gallery in generations],
                ]
                if session.execute(commands) is not None:
                    settle(session, self._link, self._durability)
                    for gallery in generations:
                        # From here on its writers can't commit.
                        self._link.call("UNLINK", GalleryKeys(self.keys.prefix, gallery.number).gallery)
                    return generations[0]
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))  # noqa: S311 - no secret
        raise StoreUnavailableError(f"{self._link.address}: the list of galleries changes too fast to be taken from")


def generation_counter(gallery_id: str) -> str:
    """Return the name of the counter of a gallery's generations; the first is not counted."""
    return f"generation of {gallery_id}"


def encode_gallery(gallery: StoredGallery) -> bytes:
    """Return a generation as it stands on a list."""
    return gallery.number.to_bytes(_UUID_START, "big") + bytes.fromhex(gallery.uuid) + gallery.spec.encode()


def decode_gallery(value: bytes) -> StoredGallery:
    """Return what `encode_gallery` wrote."""
    number, identity, spec = value[:_UUID_START], value[_UUID_START:_SPEC_START], value[_SPEC_START:]
    return StoredGallery(spec=GallerySpec.decode(spec), number=int.from_bytes(number, "big"), uuid=identity.hex())
