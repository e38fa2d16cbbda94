"""A manifest in Parquet, read row group by row group in small batches. Labels have the types of their columns.

Texts stay as the dictionary that they are stored as, and pages are read through a buffer, so memory does not grow with
the table. pyarrow is imported when a table is opened: the extra `bulk` has it.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from matchflow_cli.bulk_samples import Reason, Rejection, one_line_of
from matchflow_cli.failures import CommandError
from matchflow_cli.manifest import Row
from matchflow_cli.options import MISUSE
from matchflow_cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_cli.manifest import ManifestColumns

BATCH_ROWS = 1024
PAGE_BUFFER_BYTES = 1024 * 1024
# Longer than any path or label that could be taken; a small file can name a huge text a thousand times.
MAX_TEXT_BYTES = 64 * 1024


class ParquetRows:
    """The rows of a Parquet file. Raises CommandError without pyarrow, and for a table that makes no sense."""

    def __init__(self, path: Path, columns: ManifestColumns) -> None:
        self._pyarrow, self._parquet, self._compute = _modules()
        self._path = path
        self._columns = columns
        with self._opened() as file:
            schema, self._row_count = file.schema_arrow, file.metadata.num_rows
        names = list(schema.names)
        self._labels = columns.label_columns(names, str(path))
        self._wanted = [name for name in (columns.path, columns.image_id) if name in names] + self._labels
        for name in self._wanted:
            self._check(name, schema.field(name).type)
        # Only texts can be read as dictionaries.
        self._texts = [name for name in self._wanted if self._is_text(schema.field(name).type)]

    def extent(self) -> int:
        """Return the number of rows."""
        return int(self._row_count)

    def rows(self) -> Iterator[Row | Rejection]:
        """Give the rows; of a row group that is damaged, those before the damage."""
        with self._opened(read_dictionary=self._texts, buffer_size=PAGE_BUFFER_BYTES) as file:
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                done = begin
                try:
                    for batch in file.iter_batches(
                        BATCH_ROWS, row_groups=[group], columns=self._wanted, use_threads=False
                    ):
                        yield from self._batch(batch, done)
                        done += len(batch)
                except (OSError, self._pyarrow.ArrowException) as error:
                    place = f"{printable(self._path.name)} rows {done + 1}-{end}"
                    message = one_line_of(error)
                    yield Rejection(place=place, reason=Reason.ROW_INVALID, message=message, position=end)
                begin = end

    def _batch(self, batch: Any, begin: int) -> Iterator[Row | Rejection]:
        columns = {name: self._cells(batch.column(name)) for name in self._wanted}
        for i in range(len(batch)):
            number = begin + i + 1
            row = {name: column[i] for name, column in columns.items()}
            yield Row(
                place=f"{printable(self._path.name)} row {number}",
                position=number,
                path=row[self._columns.path],
                image_id=row.get(self._columns.image_id),
                labels={name: row[name] for name in self._labels},
            )

    def _cells(self, column: Any) -> list[object]:
        if self._pyarrow.types.is_timestamp(column.type):
            column = column.cast(self._pyarrow.timestamp("us", tz="UTC"), safe=False)
        try:
            if self._longest(column) <= MAX_TEXT_BYTES:
                return list(column.to_pylist())
        except (ValueError, OverflowError):  # a time beyond the year 9999, or bytes that are no UTF-8
            pass
        return [_cell(each) for each in column]

    def _longest(self, column: Any) -> int:
        texts = column.dictionary if self._pyarrow.types.is_dictionary(column.type) else column
        if not self._is_text(texts.type):
            return 0
        return self._compute.max(self._compute.binary_length(texts)).as_py() or 0

    def _is_text(self, kind: Any) -> bool:
        types = self._pyarrow.types
        return bool(types.is_string(kind) or types.is_large_string(kind))

    def _check(self, name: str, kind: Any) -> None:
        types = self._pyarrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        scalar = self._is_text(kind) or any(
            is_kind(kind)
            for is_kind in (
                *(types.is_integer, types.is_floating, types.is_decimal, types.is_boolean),
                *(types.is_timestamp, types.is_date, types.is_null),
            )
        )
        if not scalar:
            raise CommandError(
                f"{self._path}: column {name!r} has the type {kind}, which no label can have; "
                "name those to take with --label-column",
                exit_code=MISUSE,
            )

    @contextlib.contextmanager
    def _opened(self, **settings: Any) -> Iterator[Any]:
        try:
            file = self._parquet.ParquetFile(self._path, **settings)
        except self._pyarrow.ArrowException as error:
            raise CommandError(f"{self._path} is no Parquet file: {one_line_of(error)}", exit_code=MISUSE) from error
        with file:
            yield file


class _Unreadable:
    """A cell that has no value in Python; it is no label, and says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __str__(self) -> str:
        return self._why


def _cell(scalar: Any) -> object:
    try:
        plain = scalar.value if hasattr(scalar, "dictionary") else scalar
        text = plain.as_buffer() if hasattr(plain, "as_buffer") else None
        if text is not None and len(text) > MAX_TEXT_BYTES:
            return _Unreadable(f"a text of {len(text):,} bytes")
        return plain.as_py()
    except (ValueError, OverflowError) as error:
        return _Unreadable(one_line_of(error))


def _modules() -> tuple[Any, Any, Any]:
    try:
        # They take a while, and not every installation has them.
        return import_module("pyarrow"), import_module("pyarrow.parquet"), import_module("pyarrow.compute")
    except ModuleNotFoundError as error:
        raise CommandError("reading Parquet needs pyarrow; run: pip install 'matchflow[bulk]'") from error
