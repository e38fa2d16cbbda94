"""What tests of imports are made with: tables, tar files, and a look at what a source gives."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, Any

from matchflow_cli.bulk_labels import LabelRules
from matchflow_cli.bulk_samples import Rejection, Sample
from matchflow_cli.manifest import Manifest, ManifestColumns
from matchflow_cli.manifest_csv import CsvRows
from matchflow_cli.tar_samples import TarShards

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from matchflow_cli.bulk_samples import Source

LONG_AGO_S = 1_000_000_000


def rules(*names: str, numbers: Sequence[str] = (), times: Sequence[str] = ()) -> LabelRules:
    """Return rules that take `names`, or all."""
    return LabelRules(names=frozenset(names) or None, numbers=frozenset(numbers), times=frozenset(times))


def csv_manifest(path: Path, text: str | bytes, label_rules: LabelRules | None = None, **options: Any) -> Manifest:
    """Write a table and return the source that reads it, with its own folder as root unless told otherwise."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    columns = ManifestColumns(rules=label_rules or LabelRules())
    return Manifest(table=CsvRows(path, columns), root=options.pop("root", path.parent), rules=columns.rules, **options)


def samples_of(source: Source) -> list[Sample]:
    """Return the samples of a source that must reject none."""
    found = list(source.samples())
    assert not [each for each in found if isinstance(each, Rejection)], found
    return [each for each in found if isinstance(each, Sample)]


def split(source: Source) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the ids of the samples, and (place, reason) of the rejections; positions must never go back."""
    good, bad, position = [], [], 0
    for each in source.samples():
        assert position <= each.position <= source.extent()
        position = each.position
        if isinstance(each, Rejection):
            bad.append((each.place, str(each.reason)))
            assert each.message
            assert each.message.isprintable()
            assert each.place.isprintable()
        else:
            good.append(each.image_id)
    return good, bad


def tar_bytes(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """Return a tar file of these members; mode "w:gz" for a gzipped one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shards(*paths: Path, label_rules: LabelRules | None = None) -> TarShards:
    """Return the source of tar files."""
    return TarShards(paths=paths, rules=label_rules or LabelRules())


def age(*paths: Path) -> None:
    """Make files look as old as those of real collections: what was written just now counts as unsettled."""
    for path in paths:
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
