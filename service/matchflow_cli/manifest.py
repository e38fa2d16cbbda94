"""A table of images as samples to import: a path per row, perhaps an id, and labels.

Paths are relative to the root. One that is absolute or leads out of the root, by '..' or by a link, is rejected unless
that was allowed. Without an id column, or where its cell is empty, the id is the path made safe by `image_id_of`.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from matchflow_cli.bulk_labels import LabelRules, unknown_columns
from matchflow_cli.bulk_samples import FileContent, Reason, RejectedError, Rejection, Sample, image_id_of
from matchflow_cli.failures import CommandError
from matchflow_cli.folder_images import folder_labels
from matchflow_cli.options import MISUSE, check_label_names
from matchflow_cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PATH_COLUMN = "path"
ID_COLUMN = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestColumns:
    """Which columns hold what; every other one is a label if the rules want it."""

    path: str = PATH_COLUMN
    image_id: str = ID_COLUMN
    rules: LabelRules = field(default_factory=LabelRules)

    def label_columns(self, columns: Sequence[str], origin: str) -> list[str]:
        """Return the columns that are labels; raises CommandError for a table that makes no sense."""
        if self.path not in columns:
            shown = printable(", ".join(columns)) or "none"
            raise CommandError(f"{origin} needs a column {self.path!r}; it has {shown:.300}", exit_code=MISUSE)
        if len(set(columns)) < len(columns):
            raise CommandError(f"{origin} has a column twice; it has {', '.join(columns)}", exit_code=MISUSE)
        if missing := unknown_columns(self.rules, columns):
            raise CommandError(f"{origin} has no column {', '.join(missing)}", exit_code=MISUSE)
        names = [name for name in columns if name not in {self.path, self.image_id} and self.rules.wants(name)]
        check_label_names(names, origin)
        return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it stands in the table; None or "" where a cell is empty."""

    place: str
    position: int
    path: object
    image_id: object
    labels: Mapping[str, object]


class Rows(Protocol):
    """A table that is read forward."""

    def extent(self) -> int:
        """Return the position of the end."""
        ...

    def rows(self) -> Iterator[Row | Rejection]:
        """Give the rows in their order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The images that a table names, below `root`; labels of the table win over those of folders."""

    table: Rows
    root: Path
    rules: LabelRules = field(default_factory=LabelRules)
    level_labels: Sequence[str] = ()
    allow_outside: bool = False

    def extent(self) -> int:
        """Return the position of the end of the table."""
        return self.table.extent()

    def samples(self) -> Iterator[Sample | Rejection]:
        """Give one row after the other; files are not opened here."""
        root = os.path.realpath(self.root)
        for row in self.table.rows():
            if isinstance(row, Rejection):
                yield row
                continue
            try:
                yield self._sample(row, root)
            except RejectedError as error:
                yield Rejection(
                    place=row.place,
                    reason=error.reason,
                    message=str(error),
                    image_id=printable("" if row.image_id is None else row.image_id),
                    position=row.position,
                )

    def _sample(self, row: Row, root: str) -> Sample:
        relative = self._path(row.path, root)
        return Sample(
            image_id=_id(row.image_id) or image_id_of(relative),
            place=row.place,
            labels=folder_labels(relative, self.level_labels) | self.rules.labels(row.labels),
            content=FileContent(self.root / relative),
            position=row.position,
        )

    def _path(self, cell: object, root: str) -> str:
        if not isinstance(cell, str) or not cell:
            raise RejectedError(Reason.ROW_INVALID, "expected a path; there is none")
        if "\0" in cell:
            raise RejectedError(Reason.ROW_INVALID, "expected a path; got one with a null character")
        relative = posixpath.normpath(cell)
        if self.allow_outside:
            return relative
        inside = not relative.startswith(("/", "../")) and relative not in {".", ".."}
        if not inside or not _is_below(os.path.realpath(self.root / relative), root):
            raise RejectedError(
                Reason.PATH_OUTSIDE,
                f"expected a path inside {printable(self.root)}; got {printable(cell)!r:.200} (see --allow-outside)",
            )
        return relative


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _id(cell: object) -> str:
    match cell:
        case None | "":
            return ""
        case str():
            return cell
        case int() if not isinstance(cell, bool):
            return str(cell)
        case _:
            raise RejectedError(Reason.ROW_INVALID, f"expected an id that is a text; got {type(cell).__name__}")
