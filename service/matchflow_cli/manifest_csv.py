"""A manifest in CSV, read line by line: what is wrong with one row is that row's rejection."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, BinaryIO

from matchflow_cli.bulk_samples import Reason, Rejection, one_line_of
from matchflow_cli.failures import CommandError
from matchflow_cli.manifest import Row
from matchflow_cli.options import MISUSE
from matchflow_cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_cli.manifest import ManifestColumns

MAX_LINE_BYTES = 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CsvRows:
    """The rows of a CSV in UTF-8 with a heading. Raises CommandError for a heading that makes no sense."""

    def __init__(self, path: Path, columns: ManifestColumns) -> None:
        self._path = path
        self._columns = columns
        with path.open("rb") as file:
            self._heading = _heading(csv.reader(_Lines(file), strict=True), path)
        self._labels = columns.label_columns(self._heading, str(path))

    def extent(self) -> int:
        """Return the file's size in bytes."""
        return self._path.stat().st_size

    def rows(self) -> Iterator[Row | Rejection]:
        """Give the rows; blank lines are none."""
        with self._path.open("rb") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, strict=True)
            _heading(reader, self._path)
            while True:
                first = lines.count + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except (csv.Error, ValueError) as error:
                    yield self._rejection(lines, first, one_line_of(error))
                    continue
                if cells:
                    yield self._row(cells, lines, first)

    def _row(self, cells: list[str], lines: _Lines, first: int) -> Row | Rejection:
        if len(cells) != len(self._heading):
            return self._rejection(
                lines, first, f"expected {len(self._heading)} cells, one for each column; got {len(cells)}"
            )
        row = dict(zip(self._heading, cells, strict=True))
        return Row(
            place=self._place(lines, first),
            position=lines.position,
            path=row[self._columns.path],
            image_id=row.get(self._columns.image_id),
            labels={name: row[name] for name in self._labels},
        )

    def _rejection(self, lines: _Lines, first: int, message: str) -> Rejection:
        place = self._place(lines, first)
        return Rejection(place=place, reason=Reason.ROW_INVALID, message=message, position=lines.position)

    def _place(self, lines: _Lines, first: int) -> str:
        name = printable(self._path.name)
        return f"{name} line {first}" if lines.count <= first else f"{name} lines {first}-{lines.count}"


class _Lines:
    """The lines of a file, bounded in length. It goes on after a line that it refused, which no generator could."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.count += 1
        self.position += len(line)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            self._skip_the_rest()
            raise ValueError(f"expected a line of at most {MAX_LINE_BYTES:,} bytes; got a longer one")
        if self.count == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        return line.decode()

    def _skip_the_rest(self) -> None:
        while part := self._file.readline(MAX_LINE_BYTES):
            self.position += len(part)
            if part.endswith(b"\n"):
                return


def _heading(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        return next(reader, [])
    except (csv.Error, ValueError) as error:
        raise CommandError(f"{path} is no CSV in UTF-8: {one_line_of(error)}", exit_code=MISUSE) from error
