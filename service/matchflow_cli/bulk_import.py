"""One import: from a source through the journal to the server, and what became of every sample.

The client's own thread reads the source, since the stream takes one item after the other; results come back on the
thread that runs the import. Nothing grows with the source: the journal, the ids seen and the list of rejections are
files, and the stream is begun anew every SEGMENT_ITEMS, as the client remembers each failure of a stream.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import matchflow
from matchflow_cli.bulk_journal import Entry, Journal, stamp_of
from matchflow_cli.bulk_labels import check_labels
from matchflow_cli.bulk_samples import Reason, RejectedError, Rejection, Sample, one_line_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_cli.bulk_samples import Source
    from matchflow_cli.bulk_tally import Tally

SEGMENT_ITEMS = 20_000
# Not the fault of the item: all others would fail likewise.
STOPPING = (matchflow.StoreUnavailableError, matchflow.ShuttingDownError)
# Listing gives some 60,000 images a second, asking for one after the other 2,000: for less of the gallery, ask.
LIST_AT_SHARE = 1 / 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleItem(matchflow.IngestItem):
    """An item on its way, with what is needed when it is acknowledged."""

    sample: Sample
    entry: Entry


class Import:
    """Puts the samples of `source` into a gallery; `tally` hears what becomes of each.

    generation: into this one, which is not active and lacks images that the gallery holds; 0: into the gallery itself.
    """

    def __init__(self, source: Source, gallery: str, journal: Journal, tally: Tally, generation: int = 0) -> None:
        self._source = source
        self._gallery = gallery
        self._journal = journal
        self._tally = tally
        self._generation = generation
        self._exhausted = False
        self._stopped = False

    def run(self, client: matchflow.Client) -> None:
        """Import everything; raises the client's errors with `.acknowledged` for the whole import, and CommandError."""
        items = self._items()
        try:
            self._confirm(client)
            while not self._exhausted:
                client.ingest(
                    self._gallery,
                    itertools.islice(items, SEGMENT_ITEMS),
                    on_result=self._answered,
                    generation=self._generation,
                )
        except matchflow.MatchflowError as error:
            error.acknowledged = self._tally.stored
            raise
        finally:
            self._stopped = True

    def _confirm(self, client: matchflow.Client) -> None:
        image_count = client.get_gallery(self._gallery).image_count
        entries = len(self._journal)
        if not entries:
            return
        images = self._look_up(client) if entries < image_count * LIST_AT_SHARE else client.list_images(self._gallery)
        self._journal.confirm(images, self._generation)
        if self._generation:
            self._journal.retract(client.missing_images(self._gallery, self._generation))

    def _look_up(self, client: matchflow.Client) -> Iterator[matchflow.Image]:
        for image_id in self._journal.ids():
            try:
                yield client.get_image(matchflow.ImageRef(self._gallery, image_id))
            except matchflow.ImageNotFoundError:
                continue

    def _items(self) -> Iterator[SampleItem]:
        for found in self._source.samples():
            if self._stopped:
                return
            if isinstance(found, Rejection):
                self._tally.reject(found)
                continue
            try:
                item = self._item(found)
            except RejectedError as error:
                self._tally.reject(found.rejected(error.reason, str(error)))
            except matchflow.MatchflowError as error:
                self._tally.reject(found.rejected(error.reason, one_line_of(error)))
            else:
                if item is None:
                    self._tally.skip(found)
                else:
                    yield item
        self._exhausted = True

    def _item(self, sample: Sample) -> SampleItem | None:
        """Return what is to be sent; None for what the gallery holds already."""
        check_labels(sample.labels)
        if taken := self._journal.claim(sample.image_id, sample.place):
            raise RejectedError(Reason.DUPLICATE_ID, f"{taken} has this id already")
        held, fingerprint = self._journal.held(sample.image_id), sample.content.fingerprint()
        untouched = held and fingerprint and fingerprint == held.fingerprint
        if held and untouched and self._stamp(held.content, sample) == held.stamp:
            return None
        data = sample.content.read()
        content = hashlib.sha256(data).digest()
        entry = Entry(fingerprint=fingerprint, content=content, stamp=self._stamp(content, sample))
        if held and held.stamp == entry.stamp:
            self._journal.record(sample.image_id, entry)
            return None
        labels = cast("Any", sample.labels)
        return SampleItem(id=sample.image_id, image=data, labels=labels, sample=sample, entry=entry)

    def _stamp(self, content: bytes, sample: Sample) -> bytes:
        return stamp_of(content, sample.labels, self._generation)

    def _answered(self, result: matchflow.IngestResult) -> None:
        item = cast("SampleItem", result.item)
        error = result.error
        if isinstance(error, STOPPING):
            raise error
        if error is None:
            self._journal.record(item.id, item.entry)
            self._tally.store(item.sample, result.outcome)
        else:
            self._tally.reject(item.sample.rejected(error.reason, one_line_of(error)))
