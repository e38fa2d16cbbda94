"""Where searches look up the records of their hits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from matchflow_index.sight import Records, Sight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matchflow_index.live_shelf import LiveShelf
    from matchflow_index.reachability import Reachability
    from matchflow_index.records import ImageRecord
    from matchflow_index.truth import StoredGallery, Truth


class Lookup:
    """The records of a generation, as searches see them. Any thread may use it.

    They are those of the truth: as it is at the moment of the search where it has one, else as it is at the end. A
    truth that others write to may be out of reach: then they are what the shelf knows, for as long as `reachability`
    allows. With `kept`, they are these for good.
    """

    def __init__(
        self,
        stored: StoredGallery,
        truth: Truth,
        live: LiveShelf,
        *,
        kept: Mapping[str, ImageRecord] | None,
        reachability: Reachability,
    ) -> None:
        self._stored = stored
        self._truth = truth
        self._live = live
        self._kept = kept
        self._reachability = reachability

    @property
    def is_live(self) -> bool:
        """Whether others change the truth while it is looked at."""
        return self._truth.shared and self._kept is None

    def sight(self, *, without_store: bool = False) -> Sight:
        """Return what a search sees; `without_store`: it goes on while the truth can't be reached, and says so."""
        records_of = self.records_of if without_store else self._stored_records
        if self._truth.shared:
            return Sight(lambda: self._live.shelf, records_of)
        snapshots = partial(self._truth.read, self._stored)
        return Sight(lambda: self._live.shelf, records_of, snapshots=snapshots, settled=self._live.settled)

    def records_of(self, image_ids: Sequence[str]) -> Records:
        """Return the records of some images, if need be without the truth; StoreUnavailableError."""
        if not self.is_live:
            return self._stored_records(image_ids)
        return self._reachability.ask(partial(self._stored_records, image_ids), partial(self._known_records, image_ids))

    def look_again(self) -> None:
        """Ask a truth that was lost what a search would, so that none has to; StoreUnavailableError."""
        if self._reachability.is_lost:
            with self._reachability.looking():
                self._stored_records(())

    def _stored_records(self, image_ids: Sequence[str]) -> Records:
        if self._kept is not None:
            return Records(found=[self._kept.get(image_id) for image_id in image_ids])
        with self._truth.read(self._stored) as snapshot:
            return Records(found=snapshot.records_of(image_ids))

    def _known_records(self, image_ids: Sequence[str]) -> Records:
        with self._live.reading() as shelf:
            return Records(found=shelf.records_of(image_ids), store_unreachable=True)
