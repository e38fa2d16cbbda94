"""What one search sees: a shelf, and the truth as it was at the very change that the shelf had come to.

Hits are found in the shelf and their records in the truth. Were these of two moments, an image that is replaced while
it is matched would be missing from the answer, or would carry the labels of its successor.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from matchflow_index.records import ImageRecord
    from matchflow_index.shelf import Shelf
    from matchflow_index.truth import Snapshot

    RecordsOf = Callable[[Sequence[str]], "Records"]
    Snapshots = Callable[[], AbstractContextManager[Snapshot]]

# How often shelf and truth are looked at again when somebody wrote between the two looks.
MOST_LOOKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Records of images, in the order in which these were asked for, None for those that are not there.

    `store_unreachable`: the truth could not be asked, and this is what the shelf knows of them; see Slots.records.
    """

    found: list[ImageRecord | None]
    store_unreachable: bool = False


class Sight:
    """A search's view of a gallery, to be used in a `with` statement by one thread."""

    def __init__(
        self,
        current: Callable[[], Shelf],
        records_of: RecordsOf,
        *,
        snapshots: Snapshots | None = None,
        settled: Callable[[int], bool] | None = None,
    ) -> None:
        """Look at the shelf that `current` returns.

        With `snapshots`, records are those of the shelf's moment, without they are what `records_of` has at the end.
        `settled` waits until searches see a change, and tells whether they do.
        """
        self.shelf = current()
        self._current = current
        self._records_of = records_of
        self._snapshots = snapshots
        self._settled = settled
        self._snapshot: Snapshot | None = None
        self._sequence = -1
        self._looking, self._pins = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._looking.close()
        self._pins.close()

    def records_of(self, image_ids: Sequence[str]) -> Records:
        """Return the records of some images."""
        if self._snapshot is None:
            return self._records_of(image_ids)
        return Records(found=self._snapshot.records_of(image_ids))

    @contextmanager
    def still(self, *, pinned: bool = False) -> Iterator[Shelf]:
        """Hold the shelf as it is now; `pinned`: and what its slots hold until the search is over."""
        for _ in range(MOST_LOOKS if self._snapshots else 0):
            with self.shelf.lock.reading():
                if self._sequence == self.shelf.sequence:
                    yield self._pinned() if pinned else self.shelf
                    return
            if not self._move():
                break
        # Not settled: the truth may hold hits back, which the answer then says.
        with self.shelf.lock.reading():
            yield self._pinned() if pinned else self.shelf

    def _pinned(self) -> Shelf:
        self.shelf.pin()
        self._pins.callback(self.shelf.unpin)
        return self.shelf

    def _move(self) -> bool:
        """Look at the truth and the shelf of now; tell whether they may agree."""
        ahead = self._snapshot is not None and self._sequence > self.shelf.sequence
        # Nobody should wait for others with a transaction open: they may wait for its end.
        self._looking.close()
        self._snapshot = None
        agreed = not ahead or self._settled is None or self._settled(self._sequence)
        self.shelf = self._current()
        if self._snapshots is not None:
            self._snapshot = self._looking.enter_context(self._snapshots())
            self._sequence = self._snapshot.sequence
        return agreed
