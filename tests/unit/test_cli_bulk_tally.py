"""What an import says of itself: counts, reasons, and the file of rejections."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING

from import_samples import samples_of
from rich.console import Console

from matchflow import IngestOutcome
from matchflow_cli.bulk_samples import Rejection
from matchflow_cli.bulk_tally import Tally
from matchflow_cli.folder_images import FolderImages

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_cli.bulk_samples import Sample


def sample(folder: Path) -> Sample:
    (folder / "a.png").write_bytes(b"")
    return samples_of(FolderImages(folder=folder))[0]


def rejection(number: int) -> Rejection:
    return Rejection(place=f"row {number}", image_id=f"image-{number}", reason="ROW_INVALID", message="not [an] image")


def reported(tally: Tally) -> str:
    sink = StringIO()
    tally.report(Console(file=sink, width=160))
    return sink.getvalue()


def test_an_import_without_rejections_is_one_line(tmp_path: Path) -> None:
    one = sample(tmp_path)
    with Tally(10, None) as tally:
        for outcome in (IngestOutcome.CREATED, IngestOutcome.CREATED, IngestOutcome.UPDATED, IngestOutcome.UNCHANGED):
            tally.store(one, outcome)
    assert (tally.stored, tally.rejected, tally.total) == (4, 0, 4)
    text = reported(tally)
    assert text.startswith("4 images in ")
    assert text.endswith(": 2 created, 1 updated, 1 unchanged, 0 rejected\n")


def test_what_was_not_sent_is_unchanged_and_said(tmp_path: Path) -> None:
    with Tally(1, None) as tally:
        tally.skip(sample(tmp_path))
    text = reported(tally)
    assert "0 created, 0 updated, 1 unchanged, 0 rejected" in text
    assert "1 image not sent again" in text


def test_what_a_generation_has_is_said_of_the_generation(tmp_path: Path) -> None:
    with Tally(1, None, generation=2) as tally:
        tally.skip(sample(tmp_path))
    assert "1 image not sent again: generation 2 has the same bytes" in reported(tally)


def test_rejections_are_listed_with_their_reasons() -> None:
    with Tally(2, None) as tally:
        tally.reject(rejection(0))
        tally.reject(rejection(1))
    text = reported(tally)
    for expected in ("2 rejected", "image-1", "row 1", "ROW_INVALID", "not [an] image"):
        assert expected in text


def test_very_many_rejections_are_counted_by_reason_and_only_the_first_are_kept() -> None:
    with Tally(150, None) as tally:
        for number in range(150):
            tally.reject(rejection(number))
    text = reported(tally)
    assert "image-99 " in text
    assert "image-100" not in text
    assert "and 50 more: 50 ROW_INVALID" in text
    assert len(tally._first) == 100


def test_every_rejection_is_in_the_file_at_once_and_as_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rejected.csv"
    with Tally(3, path) as tally:
        tally.reject(rejection(0))
        assert len(path.read_text().splitlines()) == 2
        tally.reject(
            Rejection(place="x", reason="R", message='a "quoted", message\nin two lines \udcff', image_id="\x1b")
        )
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["place", "id", "reason", "message"]
    assert rows[1] == ["row 0", "image-0", "ROW_INVALID", "not [an] image"]
    assert rows[2][3] == 'a "quoted", message\\nin two lines \\udcff'
    assert rows[2][1] == "\\x1b"


def test_a_rejection_after_the_end_is_no_error(tmp_path: Path) -> None:
    with Tally(1, tmp_path / "rejected.csv") as tally:
        pass
    tally.reject(rejection(0))
    assert tally.rejected == 1
