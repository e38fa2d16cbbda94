"""The images below a folder as items to ingest: which files, under which ids, with which labels."""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matchflow
from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE, check_label_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_ID_LENGTH = 256
SEPARATOR = ":"
PATH_COLUMN = "path"
ID_COLUMN = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRow:
    """What a table says of one file."""

    image_id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImages:
    """The images below `folder`, in the order of their paths.

    level_labels: names for the folders between `folder` and a file, outermost first: with ("designer", "class"),
    folder/noto/1f600/a.png gets designer=noto and class=1f600. Folders deeper than there are names give no label, and a
    file in fewer folders gets fewer labels. rows: by path relative to `folder`; their labels win over those of folders.
    With rows, only the files that they name are images, so one that is not there is found out.
    """

    folder: Path
    level_labels: Sequence[str] = ()
    rows: Mapping[str, CsvRow] | None = field(default=None, repr=False)

    def count(self) -> int:
        """Return how many images there are, without keeping them."""
        return sum(1 for _ in self._paths())

    def items(self) -> Iterator[matchflow.IngestItem]:
        """Give one item after the other; files are not opened here."""
        for relative in self._paths():
            row = (self.rows or {}).get(relative)
            yield matchflow.IngestItem(
                id=row.image_id if row else image_id_of(relative),
                image=self.folder / relative,
                labels=self._folder_labels(relative) | dict(row.labels if row else {}),
            )

    def _paths(self) -> Iterator[str]:
        if self.rows is not None:
            yield from self.rows
        else:
            yield from _walk(self.folder)

    def _folder_labels(self, relative: str) -> dict[str, str]:
        return dict(zip(self.level_labels, relative.split("/")[:-1], strict=False))


def image_id_of(relative: str) -> str:
    """Return the image id of a path below the folder, different for every path.

    Ids hold no '/': it becomes ':'. What could be taken for that or for an escape, or is no printable Unicode, becomes
    %XX. What is too long keeps its end, after a digest of the whole.

    >>> image_id_of("noto/1f600.png")
    'noto:1f600.png'
    """
    made = "".join(SEPARATOR if char == "/" else _escape(char) for char in relative)
    if len(made) > MAX_ID_LENGTH:
        digest = hashlib.sha256(made.encode()).hexdigest()[:32] + SEPARATOR
        made = digest + made[len(digest) - MAX_ID_LENGTH :]
    return made


def read_labels_csv(path: Path) -> dict[str, CsvRow]:
    """Read a table of images: column `path` (relative to the folder), perhaps `id`; every other column is a label.

    Empty cells give no label. Raises CommandError for a table without paths, with a path, an id or a column twice, with
    cells beyond its columns, or with column names that no label can have.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return _read_rows(csv.DictReader(file, strict=True), path)
        except (csv.Error, UnicodeDecodeError) as error:
            raise CommandError(f"{path} is no CSV in UTF-8: {error}", exit_code=MISUSE) from error


def _read_rows(reader: csv.DictReader[str], path: Path) -> dict[str, CsvRow]:
    columns = list(reader.fieldnames or [])
    if PATH_COLUMN not in columns:
        raise CommandError(
            f"{path} needs a column {PATH_COLUMN!r}; it has {', '.join(columns) or 'none'}", exit_code=MISUSE
        )
    if len(set(columns)) < len(columns):
        raise CommandError(f"{path} has a column twice; it has {', '.join(columns)}", exit_code=MISUSE)
    names = [column for column in columns if column not in {PATH_COLUMN, ID_COLUMN}]
    check_label_names(names, str(path))
    rows: dict[str, CsvRow] = {}
    ids: set[str] = set()
    for row in reader:
        if None in row:
            raise CommandError(
                f"{path} line {reader.line_num} has more cells than there are columns ({len(columns)})",
                exit_code=MISUSE,
            )
        relative = os.path.normpath(row[PATH_COLUMN] or "").replace(os.sep, "/")
        if relative in rows:
            raise CommandError(f"{path} line {reader.line_num} names {relative} again", exit_code=MISUSE)
        if relative == "." or relative.startswith(("/", "../")):
            raise CommandError(
                f"{path} line {reader.line_num}: expected a path inside the folder; got {row[PATH_COLUMN]!r}",
                exit_code=MISUSE,
            )
        image_id = row.get(ID_COLUMN) or image_id_of(relative)
        if image_id in ids:
            raise CommandError(f"{path} line {reader.line_num} gives the id {image_id} again", exit_code=MISUSE)
        ids.add(image_id)
        rows[relative] = CsvRow(image_id=image_id, labels={name: row[name] for name in names if row[name]})
    return rows


def _walk(folder: Path, below: str = "") -> Iterator[str]:
    """Give the relative paths of image files, hidden ones left out, folders that are links not followed."""
    with os.scandir(folder) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    for entry in ordered:
        relative = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{relative}/")
        elif Path(entry.name).suffix.lower() in SUFFIXES and not entry.is_dir():
            yield relative


def _escape(char: str) -> str:
    if char.isprintable() and char not in {"%", SEPARATOR}:
        return char
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
