"""From what was named on the command line to the source that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from matchflow_cli.failures import CommandError
from matchflow_cli.folder_images import FolderImages
from matchflow_cli.manifest import Manifest, ManifestColumns, Rows
from matchflow_cli.options import MISUSE, check_label_names
from matchflow_cli.tar_patterns import expand
from matchflow_cli.tar_samples import TarShards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matchflow_cli.bulk_samples import Source

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CSV_SUFFIXES = (".csv",)
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How a source is read; what does not apply to its kind must be left at its default."""

    columns: ManifestColumns = field(default_factory=ManifestColumns)
    level_labels: Sequence[str] = ()
    labels_csv: Path | None = None
    root: Path | None = None
    allow_outside: bool = False


def open_source(named: Sequence[str], options: SourceOptions) -> Source:
    """Return the source that was named; raises CommandError for one that makes no sense."""
    check_label_names(options.level_labels, "--label-from-folders")
    if all(name.lower().endswith(TAR_SUFFIXES) for name in named):
        return _shards(named, options)
    if len(named) > 1:
        raise CommandError(f"several sources must be tar files; got {named[0]} and others", exit_code=MISUSE)
    path = Path(named[0])
    if path.is_dir():
        return _folder(path, options)
    if options.labels_csv is not None:
        raise CommandError(f"{path} is no folder; --labels-csv goes with one", exit_code=MISUSE)
    return _manifest(path, options.root or path.parent, options)


def _folder(path: Path, options: SourceOptions) -> Source:
    if options.labels_csv is not None:
        return _manifest(options.labels_csv, path, options)
    if options.root is not None or options.columns != ManifestColumns():
        raise CommandError(f"{path} is a folder; --root and --*-column go with a table or tar files", exit_code=MISUSE)
    return FolderImages(folder=path, level_labels=options.level_labels)


def _shards(named: Sequence[str], options: SourceOptions) -> Source:
    if options.level_labels or options.labels_csv or options.root:
        raise CommandError(
            "samples in tar files bring their labels; --label-from-folders, --labels-csv and --root are for others",
            exit_code=MISUSE,
        )
    return TarShards(paths=expand(named), rules=options.columns.rules)


def _manifest(path: Path, root: Path, options: SourceOptions) -> Source:
    if not path.is_file():
        raise CommandError(f"{path} is no folder and no file; name what holds images", exit_code=MISUSE)
    if not root.is_dir():
        raise CommandError(f"--root {root} is no folder", exit_code=MISUSE)
    return Manifest(
        table=_rows(path, options.columns),
        root=root,
        rules=options.columns.rules,
        level_labels=options.level_labels,
        allow_outside=options.allow_outside,
    )


def _rows(path: Path, columns: ManifestColumns) -> Rows:
    name = path.name.lower()
    if name.endswith(CSV_SUFFIXES):
        from matchflow_cli.manifest_csv import CsvRows  # noqa: PLC0415 - as for Parquet

        return CsvRows(path, columns)
    if name.endswith(PARQUET_SUFFIXES):
        from matchflow_cli.manifest_parquet import ParquetRows  # noqa: PLC0415 - not every installation has pyarrow

        return ParquetRows(path, columns)
    expected = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES, *TAR_SUFFIXES))
    raise CommandError(f"expected a folder or a file that ends in {expected}; got {path}", exit_code=MISUSE)
