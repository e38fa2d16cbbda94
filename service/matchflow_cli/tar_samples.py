"""WebDataset shards as samples to import: neighbouring members of a tar file that share a key are one sample.

The key of a member is its name up to the first dot of the last part; the rest says what it is: an image (jpg, png, webp
and so on), `json` with labels, `cls` or `txt` with one label of that name. Other members of a sample are left alone.
The id is the key made safe by `image_id_of`, the same for every run. Of a plain tar file only the images that are sent
are read; a gzipped one has to be unpacked from the beginning each time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matchflow.sources import MAX_IMAGE_BYTES
from matchflow_cli.bulk_labels import LabelRules
from matchflow_cli.bulk_samples import (
    IMAGE_SUFFIXES,
    Reason,
    RejectedError,
    Rejection,
    Sample,
    image_id_of,
    stat_fingerprint,
)
from matchflow_cli.output import printable
from matchflow_cli.tar_members import DamagedError, Member, Shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
JSON = "json"
TEXTS = ("cls", "txt")
MAX_LABELS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TarShards:
    """The samples of tar files, one file after the other. A file that is missing or damaged does not stop the rest."""

    paths: Sequence[Path]
    rules: LabelRules = field(default_factory=LabelRules)

    def extent(self) -> int:
        """Return the bytes of all files."""
        return sum(_size(path) for path in self.paths)

    def samples(self) -> Iterator[Sample | Rejection]:
        """Give one sample after the other; each must be read before the next one is asked for."""
        begin = 0
        for path in self.paths:
            end = begin + _size(path)
            place = printable(path)
            try:
                with Shard(path) as shard:
                    yield from _ShardSamples(path, shard, self.rules, begin).samples()
            except OSError as error:
                problem = error.strerror or str(error)
                yield Rejection(place=place, reason=Reason.FILE_UNREADABLE, message=problem, position=end)
            except DamagedError as error:
                yield Rejection(place=place, reason=Reason.ARCHIVE_DAMAGED, message=str(error), position=end)
            begin = end


@dataclass(frozen=True, slots=True, kw_only=True)
class TarContent:
    """An image inside a tar file; `data` where it had to be unpacked already."""

    path: Path
    shard: Shard = field(repr=False)
    member: Member
    data: bytes | None = field(default=None, repr=False)

    def fingerprint(self) -> bytes | None:
        """Return a digest of what the file system says of the tar file, and of the member's place in it."""
        detail = f"{self.member.offset}\0{self.member.size_bytes}\0{self.member.name}"
        return stat_fingerprint(self.path, self.shard.status, detail)

    def read(self) -> bytes:
        """Return the image's bytes."""
        if self.data is not None:
            return self.data
        try:
            return self.shard.read(self.member)
        except DamagedError as error:
            raise RejectedError(Reason.ARCHIVE_DAMAGED, str(error)) from error


@dataclass(slots=True)
class _Group:
    """The members of one sample, as far as they have come."""

    key: str
    image: TarContent | None = None
    labels: dict[str, object] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    problem: RejectedError | None = None


class _ShardSamples:
    def __init__(self, path: Path, shard: Shard, rules: LabelRules, begin: int) -> None:
        self._path = path
        self._shard = shard
        self._rules = rules
        self._begin = begin

    def samples(self) -> Iterator[Sample | Rejection]:
        group: _Group | None = None
        try:
            for member, key, extension in self._members():
                if group is not None and key != group.key:
                    yield self._sample(group)
                    group = None
                group = group or _Group(key)
                try:
                    self._add(group, member, extension)
                except RejectedError as error:
                    group.problem = group.problem or error
        except DamagedError as error:
            # What belongs to this sample may be lost, so it does not go in by halves.
            if group is not None:
                group.problem = RejectedError(Reason.ARCHIVE_DAMAGED, f"this sample may be incomplete: {error}")
                yield self._sample(group)
            raise
        if group is not None:
            yield self._sample(group)

    def _members(self) -> Iterator[tuple[Member, str, str]]:
        for member in self._shard.members():
            key, extension = split_name(member.name)
            if extension and not member.is_folder:
                yield member, key, extension

    def _add(self, group: _Group, member: Member, extension: str) -> None:
        if extension not in IMAGES and extension != JSON and extension not in TEXTS:
            group.others.append(extension)
            return
        if not member.is_file:
            raise RejectedError(Reason.SAMPLE_INCOMPLETE, f".{printable(extension)} is a link or no regular file")
        if extension in IMAGES:
            self._add_image(group, member)
        elif member.size_bytes > MAX_LABELS_BYTES:
            raise RejectedError(
                Reason.LABEL_INVALID,
                f".{extension} has {member.size_bytes:,} bytes; labels take at most {MAX_LABELS_BYTES:,}",
            )
        else:
            _add_labels(group.labels, self._shard.read(member), extension, self._rules)

    def _add_image(self, group: _Group, member: Member) -> None:
        if group.image is not None:
            raise RejectedError(Reason.SAMPLE_INCOMPLETE, "expected one image; the sample has several")
        if member.size_bytes > MAX_IMAGE_BYTES:
            raise RejectedError(
                Reason.IMAGE_TOO_LARGE,
                f"the image has {member.size_bytes:,} bytes; a message carries at most {MAX_IMAGE_BYTES:,}",
            )
        data = self._shard.read(member) if self._shard.is_gzipped else None
        group.image = TarContent(path=self._path, shard=self._shard, member=member, data=data)

    def _sample(self, group: _Group) -> Sample | Rejection:
        place, image_id = f"{printable(self._path.name)}: {printable(group.key)}", image_id_of(group.key)
        position = self._begin + self._shard.position
        try:
            return Sample(
                content=_image(group),
                image_id=image_id,
                place=place,
                labels=self._rules.labels(group.labels),
                position=position,
            )
        except RejectedError as error:
            return Rejection(place=place, reason=error.reason, message=str(error), image_id=image_id, position=position)


def _image(group: _Group) -> TarContent:
    if group.problem is not None:
        raise group.problem
    if group.image is None:
        has = printable(", ".join(sorted({*group.others, *group.labels})))
        raise RejectedError(Reason.SAMPLE_INCOMPLETE, f"expected an image; the sample has {has:.100}")
    return group.image


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member's name; both are empty for one that belongs to no sample.

    >>> split_name("./train/000012.seg.png")
    ('train/000012', 'seg.png')
    """
    while name.startswith("./"):
        name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if not (stem and extension):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _add_labels(labels: dict[str, object], data: bytes, extension: str, rules: LabelRules) -> None:
    try:
        found = json.loads(data) if extension == JSON else {extension: data.decode().strip()}
    except (ValueError, RecursionError) as error:
        raise RejectedError(Reason.LABEL_INVALID, f".{extension} can't be read: {printable(error)}") from error
    if not isinstance(found, dict):
        raise RejectedError(Reason.LABEL_INVALID, f".json: expected an object; got {_kind(found)}")
    found = {name: value for name, value in found.items() if rules.wants(name)}
    if again := sorted(labels.keys() & found.keys()):
        raise RejectedError(Reason.LABEL_INVALID, f"label {again[0]} is given twice")
    labels.update(found)


def _kind(value: Any) -> str:
    return type(value).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
