"""What became of the samples of an import: counts, the list of rejections, and the bar that shows it meanwhile."""

from __future__ import annotations

import csv
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self, TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from matchflow import IngestOutcome
from matchflow_cli.output import counted, printable, progress_console, table, text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from matchflow_cli.bulk_samples import Rejection, Sample

REJECTIONS_SHOWN = 100
COLUMNS = ("place", "id", "reason", "message")


class Tally:
    """Counts samples, from any thread; writes every rejection to `rejected` at once, and keeps the first to show.

    generation: the one that the samples go into, where that is not the active one.
    """

    def __init__(self, extent: int, rejected: Path | None, *, generation: int = 0) -> None:
        self._lock = threading.Lock()
        self._start_s = time.perf_counter()
        self._outcomes: Counter[IngestOutcome] = Counter()
        self._skipped = 0
        self._generation = generation
        self._reasons: Counter[str] = Counter()
        self._first: list[Rejection] = []
        self._position = 0
        self._file: TextIO | None = rejected.open("w", newline="", encoding="utf-8") if rejected else None
        self._writer = csv.writer(self._file) if self._file else None
        self._write(*COLUMNS)
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=progress_console())
        self._task = self._progress.add_task("import", total=max(extent, 1), state="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        with self._lock:
            self._writer = None
            if self._file is not None:
                self._file.close()

    @property
    def stored(self) -> int:
        """How many samples the server acknowledged in this run."""
        return self._outcomes.total()

    @property
    def rejected(self) -> int:
        """How many samples were left out."""
        return self._reasons.total()

    @property
    def total(self) -> int:
        """How many samples there were so far."""
        return self.stored + self._skipped + self.rejected

    def store(self, sample: Sample, outcome: IngestOutcome) -> None:
        """Count a sample that was acknowledged."""
        with self._lock:
            self._outcomes[outcome] += 1
            self._show(sample.position)

    def skip(self, sample: Sample) -> None:
        """Count a sample that the gallery holds already."""
        with self._lock:
            self._skipped += 1
            self._show(sample.position)

    def reject(self, rejection: Rejection) -> None:
        """Count and list a sample that is left out."""
        with self._lock:
            self._reasons[rejection.reason] += 1
            if len(self._first) < REJECTIONS_SHOWN:
                self._first.append(rejection)
            self._write(rejection.place, rejection.image_id, rejection.reason, rejection.message)
            self._show(rejection.position)

    def report(self, out: Console) -> None:
        """Print what became of the samples, and why some were rejected."""
        seconds = time.perf_counter() - self._start_s
        counts = self._outcomes
        out.print(
            f"{counted(self.total, 'image')} in {seconds:.1f} s ({self.total / max(seconds, 1e-9):.0f}/s): "
            f"{counts[IngestOutcome.CREATED]:,} created, {counts[IngestOutcome.UPDATED]:,} updated, "
            f"{counts[IngestOutcome.UNCHANGED] + self._skipped:,} unchanged, {self.rejected:,} rejected"
        )
        if self._skipped:
            has = (
                f"generation {self._generation} has the same bytes"
                if self._generation
                else "the gallery holds the same bytes and labels"
            )
            out.print(f"{counted(self._skipped, 'image')} not sent again: {has}")
        if self._first:
            self._list(out)

    def _list(self, out: Console) -> None:
        listed = table("place", "image", "reason", "what is wrong", title=f"{self.rejected:,} rejected")
        left = self._reasons.copy()
        for each in self._first:
            listed.add_row(text(each.place), text(each.image_id), each.reason, text(each.message))
            left[each.reason] -= 1
        out.print(listed)
        if left.total():
            reasons = ", ".join(f"{count:,} {name}" for name, count in left.most_common() if count)
            out.print(f"and {left.total():,} more: {reasons}")

    def _write(self, *cells: str) -> None:
        if self._writer is not None and self._file is not None:
            self._writer.writerow([printable(cell) for cell in cells])
            self._file.flush()

    def _show(self, position: int) -> None:
        # Results come in any order; the bar stands where the furthest of them does.
        self._position = max(self._position, position)
        rate = self.total / max(time.perf_counter() - self._start_s, 1e-9)
        counts = {outcome.value: count for outcome, count in self._outcomes.items()}
        counts |= {"not sent again": self._skipped, "rejected": self.rejected}
        state = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()) if count)
        self._progress.update(self._task, completed=self._position, state=f"{rate:.0f}/s  {state}")
