"""What a store may hold after a crash, by what was asked of it and what it acknowledged.

Every write of an image sets its whole state, or ends it. Writes that overlap may count in any order: a write is out of
the question once one that was sent after its acknowledgement is acknowledged too, or, where both have a sequence, one
with a higher sequence. One that was never acknowledged may have happened or not.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("lost", "half", "resurrected", "sequence_back", "refused", "different_answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an image is: which features of the pool, and its labels; `write` is among these and names the write."""

    content: int
    write: str
    camera: str
    age: float


@dataclass(slots=True, kw_only=True, eq=False)
class Write:
    """One write of one image; no `state`: a deletion. `sent` and `done` are moments; no `done`: not acknowledged."""

    state: State | None
    sent: int
    done: int | None = None
    sequence: int | None = None
    row_id: int | None = None

    def is_before(self, other: Write) -> bool:
        """Tell whether the other write certainly came later, and happened."""
        if self.done is None or other.done is None:
            return False
        if self.sequence is not None and other.sequence is not None:
            return self.sequence < other.sequence
        return self.done < other.sent


@dataclass(slots=True)
class Findings:
    """What went wrong, by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        """Note something."""
        assert kind in KINDS
        self.counts[kind] += 1
        self.texts.append(f"{kind}: {text}")


class Model:
    """All writes of all images since each was last seen. All methods may be called from any thread."""

    def __init__(self, images: int) -> None:
        self.names = [f"image-{k:03}" for k in range(images)]
        self.acknowledged = 0
        self.sequence = 0
        self._lock = threading.Lock()
        self._moments = itertools.count(1)
        self._writes = {name: [Write(state=None, sent=0, done=0)] for name in self.names}

    def send(self, name: str, state: State | None) -> Write:
        """Note that a write is about to be sent."""
        with self._lock:
            write = Write(state=state, sent=next(self._moments))
            self._writes[name].append(write)
            return write

    def acknowledge(self, write: Write, *, sequence: int | None = None, row_id: int | None = None) -> None:
        """Note that a write was acknowledged."""
        with self._lock:
            write.sequence, write.row_id = sequence, row_id
            write.done = next(self._moments)
            self.acknowledged += 1
            self.sequence = max(self.sequence, sequence or 0)

    def state(self, name: str) -> State | None:
        """Return what the last write of an image made of it; for those to which nobody else writes."""
        with self._lock:
            return self._writes[name][-1].state

    def touched(self) -> list[str]:
        """Return the images that were written since they were last seen."""
        with self._lock:
            return [name for name in self.names if len(self._writes[name]) > 1]

    def possible(self, name: str) -> list[Write]:
        """Return the writes that may have been the last one."""
        with self._lock:
            writes = self._writes[name]
            return [write for write in writes if not any(write.is_before(other) for other in writes)]

    def written(self, name: str, label: str) -> Write | None:
        """Return the write of an image that its labels name, also when it can't have been the last one."""
        with self._lock:
            found = (each for each in self._writes[name] if each.state is not None and each.state.write == label)
            return next(found, None)

    def see(self, name: str, seen: State | None, *, sequence: int | None = None, row_id: int | None = None) -> None:
        """Take what an image is now, while nobody writes, as what it was before all that follows."""
        with self._lock:
            now = next(self._moments)
            self._writes[name] = [Write(state=seen, sent=now, done=now, sequence=sequence, row_id=row_id)]

    def present(self) -> Iterator[tuple[str, State]]:
        """Yield all images that are there; while nobody writes, after all were seen."""
        for name in self.names:
            state = self.state(name)
            if state is not None:
                yield name, state

    def judge(self, name: str, label: str | None, findings: Findings, where: str) -> Write | None:
        """Return the write that an image shows by its label, None for no image or none known; note what is wrong."""
        possible = self.possible(name)
        if label is None:
            if all(write.state is not None for write in possible):
                findings.add("lost", f"{where}: {name} is gone; it may be any of {possible}")
            return None
        write = self.written(name, label)
        if write is None:
            findings.add("half", f"{where}: {name} is of write {label!r}, which nobody made")
        elif write not in possible:
            gone = all(each.state is None for each in possible)
            kind = "resurrected" if gone else "lost"
            findings.add(kind, f"{where}: {name} is as {write} left it; it may be any of {possible}")
        return write
