"""Truth on a Redis server that several processes share: keys in redis_keys.py, transactions in redis_commit.py."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from matchflow_index.errors import (
    GalleryNotFoundError,
    GenerationDroppedError,
    GenerationMovedError,
    StoreUnavailableError,
)
from matchflow_index.redis_commit import begin, commit, erase_replaced, give_turn_back, take_turn
from matchflow_index.redis_galleries import GalleryList
from matchflow_index.redis_generations import RedisGenerations
from matchflow_index.redis_keys import GalleryKeys, decode_head, is_standing, stands_active
from matchflow_index.redis_link import RedisLink
from matchflow_index.redis_server import check_server, settle
from matchflow_index.redis_sweeping import PENDING_AGE_S, sweep_galleries, sweep_rows
from matchflow_index.redis_view import RedisView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matchflow_index.records import GallerySpec
    from matchflow_index.redis_address import RedisAddress
    from matchflow_index.redis_link import Command
    from matchflow_index.truth import Durability, Generations, Result, Snapshot, StoredGallery, Transaction

logger = logging.getLogger(__name__)

# How long a transaction is tried again while others are faster.
PATIENCE_S = 30.0
# Who was too slow so often asks the others to wait.
POLITE_ATTEMPTS = 2
LONGEST_PAUSE_S = 0.02
LONGEST_BLOCK_S = 1.0
TRIM_STEP = 10_000


class RedisTruth:
    """A truth on a server; any number of processes may open it, and any of their threads write."""

    shared = True

    def __init__(self, address: RedisAddress, *, read_only: bool = False) -> None:
        """Open it; a writer creates what is missing and erases what crashes left behind.

        StoreUnavailableError: there is no server, it is not safe (see RedisAddress.allow_unsafe), or of another format.
        """
        self._link = RedisLink(address)
        self._read_only = read_only
        self._token = uuid.uuid4().hex.encode()
        self._turns: dict[int, threading.Lock] = {}
        self._swept_s: dict[int, float] = {}
        try:
            self.durability: Durability = check_server(self._link)
            self._galleries = GalleryList(self._link, self.durability, create=not read_only)
            self._generations = RedisGenerations(self._link, self._galleries, self.durability, writable=not read_only)
        except StoreUnavailableError:
            self._link.close()
            raise
        if not read_only:
            self._sweep()

    def galleries(self) -> list[StoredGallery]:
        """Return the active generation of every gallery, in order of id."""
        return self._galleries.all()

    def generations(self, gallery_id: str) -> Generations:
        """Return what is stored under an id; GalleryNotFoundError."""
        return self._generations.of(gallery_id)

    def others(self) -> list[StoredGallery]:
        """Return the other generation of every gallery that has one, in order of id."""
        return self._galleries.others()

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""
        self._check_writable()
        return self._galleries.create(spec)

    def delete(self, gallery_id: str) -> StoredGallery:
        """Delete a gallery, all generations of it, with all that is in it; return the active one.

        It is gone, durably, with the first small transaction; what it held is swept after that.
        """
        self._check_writable()
        gallery = self._galleries.delete(gallery_id)
        self._sweep_galleries()
        return gallery

    def _sweep_galleries(self) -> None:
        try:
            sweep_galleries(self._link, self._galleries.keys)
        except StoreUnavailableError as error:
            logger.warning("deleted galleries could not be swept, their space is not free yet: %s", error)

    def add_generation(self, spec: GallerySpec) -> StoredGallery:
        """Store an empty generation beside the active one of that id; GenerationExistsError, GalleryNotFoundError."""
        self._check_writable()
        return self._generations.add(spec)

    def drop_generation(self, gallery: StoredGallery) -> None:
        """Delete a generation and all that is in it; GenerationActiveError, GenerationNotFoundError."""
        self._check_writable()
        self._generations.drop(gallery)
        self._sweep_galleries()

    def switch(self, gallery: StoredGallery, sequence: int, *, complete: bool = True, beyond: bool = False) -> bool:
        """Let both generations change places, if `gallery` is the active one and at that change."""
        self._check_writable()
        return self._generations.switch(gallery, sequence, complete=complete, beyond=beyond)

    def claim(self, gallery: StoredGallery, seconds: float) -> bool:
        """Tell whether this process is the one that fills a generation."""
        return self._generations.claim(gallery, self._token, seconds)

    def _sweep(self) -> None:
        try:
            sweep_galleries(self._link, self._galleries.keys)
            for gallery in self.galleries() + self._galleries.others():
                self._sweep_rows(gallery.number)
        except StoreUnavailableError as error:
            logger.warning("what nothing refers to could not be swept, its space is not free yet: %s", error)

    def _sweep_rows(self, number: int) -> None:
        sweep_rows(self._link, self._keys(number))
        self._swept_s[number] = time.monotonic()

    @contextmanager
    def read(self, gallery: StoredGallery) -> Iterator[Snapshot]:
        """Look at a gallery."""
        yield self._view(gallery)

    def _view(self, gallery: StoredGallery) -> RedisView:
        keys = self._keys(gallery.number)
        existing, head = self._link.call("MGET", keys.gallery, keys.head)
        self._check_exists(gallery, existing)
        base = gallery.spec.base_sequence
        return RedisView(self._link, keys, *decode_head(head), base=base, standing=existing)

    @contextmanager
    def hold(self, gallery: StoredGallery) -> Iterator[None]:
        """Let no other process begin to write to a gallery inside the block, for as long as a turn takes."""
        keys = self._keys(gallery.number)
        has_turn = take_turn(self._link, keys, self._token)
        try:
            yield
        finally:
            if has_turn:
                give_turn_back(self._link, keys, self._token)

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, active: bool = True) -> Result:
        """Run `work` in one transaction, and return its result once that is as safe as `durability` says.

        Other processes may write too: `work` is run again when one was faster. GenerationMovedError: see Truth.
        """
        self._check_writable()
        # Threads of one process would only be in each other's way.
        with self._turns.setdefault(gallery.number, threading.Lock()):
            self._sweep_when_due(gallery.number)
            try:
                return self._write(gallery, work, active=active)
            except GalleryNotFoundError:
                raise self._gone(gallery) from None
            except GenerationMovedError:
                # Whoever switched may have died before the end.
                self._generations.finish_switch(gallery.spec.gallery_id)
                raise

    def _sweep_when_due(self, number: int) -> None:
        if time.monotonic() - self._swept_s.get(number, -PENDING_AGE_S) >= PENDING_AGE_S:
            try:
                self._sweep_rows(number)
            except StoreUnavailableError as error:
                logger.warning("rows that nothing refers to could not be swept: %s", error)

    def _write(self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, active: bool) -> Result:
        keys = self._keys(gallery.number)
        deadline_s = time.monotonic() + PATIENCE_S
        attempts, has_turn = 0, False
        try:
            while True:
                done = self._attempt(gallery, work, has_turn=has_turn, active=active)
                if done:
                    # The commit gave it back.
                    has_turn = False
                    return done[0]
                attempts += 1
                if time.monotonic() > deadline_s:
                    raise StoreUnavailableError(
                        f"{self._link.address}: other writers of gallery {gallery.spec.gallery_id!r} were faster, "
                        f"{attempts} times within {PATIENCE_S:.0f} s; nothing was stored"
                    )
                if attempts >= POLITE_ATTEMPTS:
                    has_turn = take_turn(self._link, keys, self._token) or has_turn
                time.sleep(random.uniform(0, min(0.001 * attempts, LONGEST_PAUSE_S)))  # noqa: S311 - no secret
        finally:
            if has_turn:
                give_turn_back(self._link, keys, self._token)

    def _attempt(
        self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, has_turn: bool, active: bool
    ) -> tuple[Result] | None:
        """Return the result of a transaction that got through; None when another writer was faster."""
        keys = self._keys(gallery.number)
        with self._link.session() as session:
            transaction = begin(session, keys, gallery, self._token, self._galleries.count_rows, active=active)
            if transaction is None:
                return None
            try:
                result = work(transaction)
            except Exception:
                # It may have seen half of what another writer did.
                if session.execute([]) is None:
                    return None
                raise
            try:
                if not commit(session, self._link, keys, transaction, ends_turn=has_turn):
                    return None
            except StoreUnavailableError:
                # It may have left something behind.
                self._swept_s.pop(gallery.number, None)
                raise
            if transaction.entries:
                settle(session, self._link, self.durability)
        if not erase_replaced(self._link, keys, transaction):
            self._swept_s.pop(gallery.number, None)
        return (result,)

    def wait(self, gallery: StoredGallery, after: int, timeout_s: float) -> int:
        """Return the gallery's last change as soon as it is greater than `after`, or when the time is up."""
        deadline_s = time.monotonic() + timeout_s
        log = self._keys(gallery.number).log
        while True:
            sequence, _ = self._head(gallery)
            left_s = deadline_s - time.monotonic()
            if sequence > after or left_s <= 0:
                return sequence
            # Not for long: nobody is woken when the gallery is deleted.
            block_s = min(left_s, LONGEST_BLOCK_S, self._link.address.timeout_s / 2)
            self._link.call("XREAD", "BLOCK", max(1, int(1000 * block_s)), "COUNT", 1, "STREAMS", log, f"{after}-0")

    def trim_log(self, gallery: StoredGallery, keep: int) -> int:
        """Forget the log but for the last `keep` entries, at least one; return how many were forgotten."""
        self._check_writable()
        keys = self._keys(gallery.number)
        view = self._view(gallery)
        first, end, forgotten = view.log_start, view.sequence - max(keep, 1) + 1, 0
        while first < end:
            # In steps: nobody else is answered during one.
            first = min(first + TRIM_STEP, end)
            forgotten += self._link.call("XTRIM", keys.log, "MINID", f"{first}-0")
        return forgotten

    def match_defaults(self, gallery: StoredGallery) -> bytes | None:
        """Return what `set_match_defaults` stored."""
        keys = self._keys(gallery.number)
        existing, defaults = self._link.call("MGET", keys.gallery, keys.defaults)
        self._check_exists(gallery, existing)
        found: bytes | None = defaults
        return found

    def set_match_defaults(self, gallery: StoredGallery, defaults: bytes | None, *, active: bool | None = None) -> None:
        """Store a gallery's match defaults; None: forget them. GenerationMovedError."""
        self._check_writable()
        keys = self._keys(gallery.number)
        command: Command = ("DEL", keys.defaults) if defaults is None else ("SET", keys.defaults, defaults)
        done = False
        while not done:
            with self._link.session() as session:
                session.watch([keys.gallery])
                existing = session.call("GET", keys.gallery)
                self._check_exists(gallery, existing)
                if active is not None and stands_active(existing) is not active:
                    self._generations.finish_switch(gallery.spec.gallery_id)
                    raise GenerationMovedError(gallery.spec.gallery_id, gallery.spec.generation)
                # Only a switch, or its end, may come in between.
                done = session.execute([command]) is not None
                settle(session, self._link, self.durability)

    def close(self) -> None:
        """Let go of the connections."""
        self._link.close()

    def _keys(self, number: int) -> GalleryKeys:
        return GalleryKeys(self._link.address.prefix, number)

    def _head(self, gallery: StoredGallery) -> tuple[int, bytes]:
        keys = self._keys(gallery.number)
        existing, head = self._link.call("MGET", keys.gallery, keys.head)
        self._check_exists(gallery, existing)
        return decode_head(head)

    def _check_exists(self, gallery: StoredGallery, existing: bytes | None) -> None:
        if not is_standing(existing, gallery):
            raise self._gone(gallery)

    def _gone(self, gallery: StoredGallery) -> GalleryNotFoundError:
        """Return what to raise for a generation that is not there; StoreUnavailableError: all of the store is gone."""
        # A server that came back empty has lost the gallery: nobody deleted it.
        self._galleries.check_store()
        gallery_id = gallery.spec.gallery_id
        try:
            there = self._generations.of(gallery_id)
        except GalleryNotFoundError as error:
            return error
        if there.active.lineage == gallery.lineage:
            return GenerationDroppedError(gallery_id, gallery.spec.generation)
        return GalleryNotFoundError(gallery_id)

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreUnavailableError(f"{self._link.address} is open read-only")
