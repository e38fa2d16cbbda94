"""The list of galleries in Redis, the store's counters, and what tells one store from another."""

from __future__ import annotations

import random
import time
import uuid
from typing import TYPE_CHECKING

from matchflow_index.errors import GalleryExistsError, GalleryNotFoundError, StoreUnavailableError
from matchflow_index.records import GallerySpec
from matchflow_index.redis_keys import GalleryKeys, StoreKeys, encode_head
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
        """Return all galleries, in order of id."""
        found = self._link.call("HGETALL", self.keys.galleries)
        if not found:
            self.check_store()
        pairs = zip(found[::2], found[1::2], strict=True)
        return [_decode(value) for _, value in sorted(pairs)]

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""
        self.check_store()
        for _ in range(ATTEMPTS):
            if self._link.call("HEXISTS", self.keys.galleries, spec.gallery_id):
                raise GalleryExistsError(spec.gallery_id)
            gallery = self._prepare(spec)
            with self._link.session() as session:
                if self._list(session, gallery):
                    settle(session, self._link, self._durability)
                    return gallery
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))  # noqa: S311 - no secret
        raise StoreUnavailableError(f"{self._link.address}: the list of galleries changes too fast to be added to")

    def _prepare(self, spec: GallerySpec) -> StoredGallery:
        """Make a gallery that is not on the list yet: one that is to be swept unless it gets there."""
        number = int(self._link.call("HINCRBY", self.keys.counters, "gallery", 1))
        gallery = StoredGallery(spec=spec, number=number, uuid=uuid.uuid4().hex)
        keys = GalleryKeys(self.keys.prefix, number)
        self._link.call("ZADD", self.keys.doomed, server_time_s(self._link) + PENDING_AGE_S, number)
        with self._link.session() as session:
            session.execute([("SET", keys.gallery, gallery.uuid), ("SET", keys.head, encode_head())])
        return gallery

    def _list(self, session: RedisSession, gallery: StoredGallery) -> bool:
        """Put a prepared gallery on the list; False when the list changed meanwhile, and it has to be made anew."""
        number, gallery_id = gallery.number, gallery.spec.gallery_id
        session.watch([self.keys.galleries, self.keys.doomed])
        doomed_from, taken = session.pipeline(
            [("ZSCORE", self.keys.doomed, number), ("HEXISTS", self.keys.galleries, gallery_id)]
        )
        swept = doomed_from is None or not float(doomed_from)
        commands = [("HSET", self.keys.galleries, gallery_id, _encode(gallery)), ("ZREM", self.keys.doomed, number)]
        done = not taken and not swept and session.execute(commands) is not None
        session.unwatch()
        if not done:
            # Whoever sweeps next need not wait.
            self._link.call("ZADD", self.keys.doomed, "XX", 0, number)
        return done

    def delete(self, gallery_id: str) -> StoredGallery:
        """Take a gallery off the list, for good, and doom what it holds; return what it was."""
        self.check_store()
        for _ in range(ATTEMPTS):
            with self._link.session() as session:
                session.watch([self.keys.galleries])
                value = session.call("HGET", self.keys.galleries, gallery_id)
                if value is None:
                    session.unwatch()
                    raise GalleryNotFoundError(gallery_id)
                gallery = _decode(value)
                commands = [("HDEL", self.keys.galleries, gallery_id), ("ZADD", self.keys.doomed, 0, gallery.number)]
                if session.execute(commands) is not None:
                    settle(session, self._link, self._durability)
                    # From here on its writers can't commit.
                    self._link.call("UNLINK", GalleryKeys(self.keys.prefix, gallery.number).gallery)
                    return gallery
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))  # noqa: S311 - no secret
        raise StoreUnavailableError(f"{self._link.address}: the list of galleries changes too fast to be taken from")


def _encode(gallery: StoredGallery) -> bytes:
    return gallery.number.to_bytes(_UUID_START, "big") + bytes.fromhex(gallery.uuid) + gallery.spec.encode()


def _decode(value: bytes) -> StoredGallery:
    number, identity, spec = value[:_UUID_START], value[_UUID_START:_SPEC_START], value[_SPEC_START:]
    return StoredGallery(spec=GallerySpec.decode(spec), number=int.from_bytes(number, "big"), uuid=identity.hex())
