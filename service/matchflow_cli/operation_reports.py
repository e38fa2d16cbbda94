"""How the reports of work on a store look."""

import csv
import sys
from typing import TYPE_CHECKING

from matchflow_cli.output import console, counted, printable, table, text

if TYPE_CHECKING:
    from matchflow_index.duplicates import DuplicateReport
    from matchflow_index.findings import Verification
    from matchflow_index.gallery_stats import GalleryStats, StoreStats

KINDS = {"flat": "exact", "ivf8": "lists"}
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(size_bytes: int) -> str:
    """Return a number of bytes that can be read.

    >>> size(0), size(2_592), size(3 << 30)
    ('0 bytes', '2.5 KiB', '3.0 GiB')
    """
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(UNITS) - 1:  # noqa: PLR2004
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{size_bytes} bytes"


def print_verification(report: "Verification") -> None:
    """Print everything that is wrong, and what was looked at."""
    out = console()
    if report.findings:
        listed = table("where", "image", "slot", "what is wrong", right=("slot",))
        for each in report.findings:
            slot = "" if each.slot is None else f"{each.slot:,}"
            listed.add_row(each.part, text(each.image_id or ""), slot, text(each.problem))
        out.print(listed)
    for note in report.notes:
        out.print(f"note: {text(note)}")
    seen = (
        f"{counted(report.images, 'image')}, {counted(report.changes, 'log entry')} up to change {report.sequence:,} "
        f"and {counted(report.slots, 'slot')} of the caches"
    )
    wrong = counted(len(report.findings), "finding") if report.findings else "nothing wrong"
    which = f"{text(report.gallery_id)}, generation {report.generation}"
    out.print(f"{wrong} in {which}: looked at {seen}")


def print_stats(stats: "StoreStats") -> None:
    """Print the figures of a store."""
    out = console()
    out.print(f"{'store':<11} {text(stats.store)}")
    out.print(f"{'durability':<11} {stats.durability}")
    if stats.truth_bytes is not None:
        parts = ", ".join(f"{name} {size(taken)}" for name, taken in sorted(stats.truth_parts.items()) if taken)
        out.print(f"{'truth':<11} {size(stats.truth_bytes)}: {parts}")
    right = ("images", "change", "log", "features", "slots", "dead", "slab", "columns", "coarse", "recall")
    listed = table("gallery", "generation", *right[:8], "index", *right[8:], right=right)
    for each in stats.galleries:
        listed.add_row(*_gallery_row(each))
    out.print(listed if stats.galleries else "no galleries")


def _gallery_row(stats: "GalleryStats") -> list[str]:
    row = [
        text(stats.gallery_id),
        str(stats.generation) if stats.active else f"{stats.generation} (not active)",
        f"{stats.images:,}",
        f"{stats.sequence:,}",
        f"{stats.log_entries:,}",
        size(stats.row_bytes),
    ]
    caches = stats.caches
    if caches is None:
        return [*row, *["-"] * 7]
    taken = [size(each) for each in (caches.slab_bytes, caches.slots_bytes)]
    index = KINDS.get(caches.coarse_kind, caches.coarse_kind)
    return [
        *row,
        f"{caches.slots:,}",
        f"{caches.dead_slots:,}",
        *taken,
        index,
        size(caches.coarse_bytes),
        f"{caches.recall:.3f}",
    ]


def print_duplicates(report: "DuplicateReport") -> None:
    """Print groups of duplicates."""
    out = console()
    if report.groups:
        listed = table("group", "same", "image", "bits", right=("group", "bits"))
        for number, group in enumerate(report.groups, 1):
            head = [f"{number:,}", group.kind]
            for image in group.images:
                listed.add_row(*head, text(image.image_id), str(image.distance))
                head = ["", ""]
        out.print(listed)
    out.print(f"{counted(len(report.groups), 'group')} among {counted(report.images, 'image')}")
    if report.unseen:
        out.print(f"{counted(report.unseen, 'image')} without a thumbnail: compared by content alone")


def write_duplicates_csv(report: "DuplicateReport") -> None:
    """Print one line for each image of a group."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["group", "same", "image", "bits"])
    for number, group in enumerate(report.groups, 1):
        for image in group.images:
            writer.writerow([number, group.kind, printable(image.image_id), image.distance])
