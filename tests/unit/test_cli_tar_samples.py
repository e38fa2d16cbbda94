"""WebDataset shards: what is a sample, and every way in which a tar file can be broken, malicious or merely odd."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_samples import age, rules, samples_of, shards, split, tar_bytes

from matchflow_cli import tar_members, tar_patterns
from matchflow_cli.bulk_samples import RejectedError, Rejection, Sample
from matchflow_cli.failures import CommandError
from matchflow_cli.tar_members import Shard
from matchflow_cli.tar_samples import TarShards, split_name

MODES = ("w", "w:gz")
INCOMPLETE, DAMAGED, LABEL = "SAMPLE_INCOMPLETE", "ARCHIVE_DAMAGED", "LABEL_INVALID"


def write(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.write_bytes(tar_bytes(members, mode))
    return path


def read(sources: TarShards) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return bytes and labels by id, each image read in its turn."""
    found = {}
    for sample in sources.samples():
        assert isinstance(sample, Sample), sample
        found[sample.image_id] = (sample.content.read(), dict(sample.labels))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_that_share_a_key_are_one_sample(tmp_path: Path, mode: str) -> None:
    labels = {"class": "cat", "size": 2.5, "count": 3, "wild": True, "none": None, "empty": ""}
    members = [
        ("train/000.jpg", b"first"),
        ("train/000.json", json.dumps(labels).encode()),
        ("train/001.cls", b"7\n"),
        ("train/001.txt", "a dog, größer".encode()),
        ("train/001.PNG", b"second"),
        ("train/001.seg.png", b"a mask"),
        ("train/001.npy", b"left alone"),
        ("./002.webp", b""),
    ]
    assert read(shards(write(tmp_path / "a.tar", members, mode))) == {
        "train:000": (b"first", {"class": "cat", "size": 2.5, "count": 3.0, "wild": "true"}),
        "train:001": (b"second", {"cls": "7", "txt": "a dog, größer"}),
        "002": (b"", {}),
    }


def test_labels_of_samples_can_be_chosen_and_typed(tmp_path: Path) -> None:
    members = [("a.cls", b"7"), ("a.jpg", b"x"), ("a.json", b'{"Odd Name": [1], "size": "3", "cls2": 1}')]
    path = write(tmp_path / "a.tar", members)
    found = read(shards(path, label_rules=rules("cls", "size", numbers=["cls", "size"])))
    assert found == {"a": (b"x", {"cls": 7.0, "size": 3.0})}


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("x/y.z/a.b.JPG", "x/y.z/a", "b.jpg"),
        ("././a.jpg", "a", "jpg"),
        ("../../etc/passwd.jpg", "../../etc/passwd", "jpg"),
        ("/etc/passwd.jpg", "/etc/passwd", "jpg"),
        ("noending", "", ""),
        (".hidden.jpg", "", ""),
        ("x/._a.jpg", "", ""),
        ("a.", "", ""),
        ("", "", ""),
    ],
)
def test_a_key_is_the_name_up_to_the_first_dot_of_its_last_part(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ([("b.json", b"{}")], INCOMPLETE),
        ([("b.cls", b"1")], INCOMPLETE),
        ([("b.jxl", b"no kind of image that is read")], INCOMPLETE),
        ([("b.jpg", b"x"), ("b.png", b"y")], INCOMPLETE),
        ([("b.jpg", b"x"), ("b.jpg", b"y")], INCOMPLETE),
        ([("b.jpg", b"x"), ("b.json", b"{")], LABEL),
        ([("b.jpg", b"x"), ("b.json", b"[]")], LABEL),
        ([("b.jpg", b"x"), ("b.json", b"\xff")], LABEL),
        ([("b.jpg", b"x"), ("b.json", b'{"a": [1]}')], LABEL),
        ([("b.jpg", b"x"), ("b.json", b'{"a": NaN}')], LABEL),
        ([("b.jpg", b"x"), ("b.json", b'{"a": 1' + b"0" * 5000 + b"}")], LABEL),
        ([("b.jpg", b"x"), ("b.json", b"[" * 100_000)], LABEL),
        ([("b.jpg", b"x"), ("b.json", b'{"cls": 1}'), ("b.cls", b"2")], LABEL),
        ([("b.json", b" " * (1024 * 1024 + 1)), ("b.jpg", b"x")], LABEL),
        ([("b.cls", b"\xff\xfe"), ("b.jpg", b"x")], LABEL),
        ([("noending", b"x")], None),
        ([("._a.jpg", b"x")], None),
    ],
)
def test_an_odd_sample_is_one_rejection_and_its_neighbours_go_in(
    tmp_path: Path, mode: str, odd: list[tuple[str, bytes]], reason: str | None
) -> None:
    path = write(tmp_path / "a.tar", [("a.jpg", b"x"), *odd, ("c.jpg", b"z")], mode)
    good, bad = split(shards(path))
    assert good == ["a", "c"]
    assert bad == ([] if reason is None else [("a.tar: b", reason)])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_followed(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        for name in ("b.jpg", "c.json"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("c.jpg"))
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("e.jpg"))
    assert split(shards(path)) == (["a", "e"], [("a.tar: b", INCOMPLETE), ("a.tar: c", INCOMPLETE)])


def test_names_that_lead_out_are_only_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("../../etc/passwd.jpg", b"x"), ("/etc/shadow.png", b"y")])
    assert read(shards(path)) == {"..:..:etc:passwd": (b"x", {}), ":etc:shadow": (b"y", {})}


def test_a_key_that_comes_again_later_is_a_sample_of_the_same_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")])
    assert split(shards(path)) == (["a", "b", "a"], [])


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_that_python_writes_is_read(tmp_path: Path, format_: int) -> None:
    path = tmp_path / "a.tar"
    names = [f"{'f' * 90}/{'g' * 40}-{i}.jpg" for i in range(3)]
    if format_ != tarfile.USTAR_FORMAT:
        names += [f"{'long/' * 100}{i}.png" for i in range(3)] + ["größe.jpg"]
    with tarfile.open(path, "w", format=format_, pax_headers={"comment": "x"}) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 500 + i
            info.mtime = 1.5 if format_ == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
    with Shard(path) as shard:
        assert [(m.name, shard.read(m)) for m in shard.members()] == [
            (name, bytes([i]) * (500 + i)) for i, name in enumerate(names)
        ]


def test_concatenated_archives_are_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([("a.jpg", b"x")]) + tar_bytes([("b.jpg", b"y")]))
    assert split(shards(path)) == (["a", "b"], [])
    path.write_bytes(tar_bytes([("a.jpg", b"x")], "w:gz") + tar_bytes([("b.jpg", b"y")], "w:gz"))
    assert split(shards(path)) == (["a", "b"], [])


TWO = [("a.jpg", b"x" * 700), ("b.json", b"{}"), ("b.jpg", b"y" * 700), ("c.jpg", b"z" * 700)]


@pytest.mark.parametrize("mode", MODES)
def test_an_archive_that_is_cut_off_anywhere_loses_nothing_without_a_word(tmp_path: Path, mode: str) -> None:
    whole = tar_bytes(TWO, mode)
    end = len(tar_bytes(TWO).rstrip(b"\0")) if mode == "w" else len(whole)
    other = write(tmp_path / "other.tar", [("d.jpg", b"x")])
    path = tmp_path / "a.tar"
    for length in range(0, end, 37 if mode == "w" else 3):
        path.write_bytes(whole[:length])
        good, bad = split(shards(path, other))
        assert good[-1] == "d"
        assert good[:-1] == ["a", "b", "c"][: len(good) - 1]
        assert (str(path), DAMAGED) in bad


def test_a_sample_that_may_be_cut_off_does_not_go_in_by_halves(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    # The labels of b would have come after its image.
    whole = tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("b.json", b'{"class": "cat"}')])
    path.write_bytes(whole[: 4 * 512])
    assert split(shards(path)) == (["a"], [("a.tar: b", DAMAGED), (str(path), DAMAGED)])


def test_a_header_that_is_damaged_in_the_middle_is_reported(tmp_path: Path) -> None:
    """Python's own reader ends there as if it were the end."""
    data = bytearray(tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("c.jpg", b"z")]))
    data[1024 + 10] ^= 0xFF
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a.jpg"]
    good, bad = split(shards(path))
    assert good == []
    assert [reason for _, reason in bad] == [DAMAGED, DAMAGED]


@pytest.mark.parametrize(
    "content", [b"", b"no tar", b"\x1f\x8b", b"\x1f\x8bgarbage" * 100, os.urandom(5000), b"PK\x03\x04"]
)
def test_what_is_no_tar_is_one_rejection(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert split(shards(path, write(tmp_path / "b.tar", [("b.jpg", b"x")]))) == (["b"], [(str(path), DAMAGED)])


def test_a_shard_that_is_not_there_is_one_rejection(tmp_path: Path) -> None:
    gone = tmp_path / "gone.tar"
    assert split(shards(gone, write(tmp_path / "b.tar", [("b.jpg", b"x")]), tmp_path)) == (
        ["b"],
        [(str(gone), "FILE_UNREADABLE"), (str(tmp_path), "FILE_UNREADABLE")],
    )


def pax(record: bytes) -> bytes:
    """Return a pax header with these bytes as its records, and the member that it describes."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    padded = record + bytes(-len(record) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + tar_bytes([("a.jpg", b"x" * 1000)])


@pytest.mark.parametrize(
    "record",
    [
        b"11 size=-1\n",
        b"12 size=abc\n",
        b"28 size=99999999999999999999\n",
        b"16 size=9999999\n",
        b"5 a=b\n",
        b"6 a=b\nx",
        b"999 a=b\n",
        b"0 a=b\n",
        b"-1 a=b\n",
        b"x a=b\n",
        b"6 abc\n",
        b" a=b\n",
        b"6",
    ],
)
def test_a_header_that_lies_is_damage(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pax(record))
    good, bad = split(shards(path))
    assert good == []
    assert (str(path), DAMAGED) in bad


def test_files_with_holes_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pax(b"22 GNU.sparse.major=1\n"))
    assert split(shards(path)) == ([], [("a.tar: a", INCOMPLETE)])


def bomb(path: Path, header: tarfile.TarInfo, size_mb: int) -> None:
    """Write a gzipped tar whose one member is so many megabytes of zeros."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size_mb):
            file.write(bytes(1024 * 1024))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("name", ["a.jpg", "a.json", "a.npy"])
def test_a_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes, name: str
) -> None:
    monkeypatch.setattr(tar_members, "RATIO_COUNTS_FROM_BYTES", 1024 * 1024)
    monkeypatch.setattr("matchflow_cli.tar_samples.MAX_IMAGE_BYTES", 2 * 1024 * 1024)
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, 100 * 1024 * 1024
    path = tmp_path / "a.tar.gz"
    bomb(path, header, 100)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        good, bad = split(shards(path))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert good == []
    assert DAMAGED in {reason for _, reason in bad}


def test_an_image_too_large_for_a_message_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchflow_cli.tar_samples.MAX_IMAGE_BYTES", 100)
    for mode in MODES:
        path = write(tmp_path / "a.tar", [("a.jpg", b"x" * 101), ("b.jpg", b"y" * 100)], mode)
        assert split(shards(path)) == (["b"], [("a.tar: a", "IMAGE_TOO_LARGE")])


@pytest.mark.parametrize("mode", MODES)
def test_a_long_shard_is_read_in_bounded_memory(tmp_path: Path, mode: str) -> None:
    noise = random.Random(1)
    members = [(f"folder/{i:06}.jpg", noise.randbytes(2000)) for i in range(5000)]
    path = write(tmp_path / "a.tar", members, mode)
    del members
    tracemalloc.start()
    try:
        assert (
            sum(len(each.content.read()) for each in shards(path).samples() if isinstance(each, Sample)) == 10_000_000
        )
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_plain_shard_is_not_read_where_nobody_asks(tmp_path: Path) -> None:
    """Samples that the gallery holds are passed over: only headers are read."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar, (tmp_path / "hole").open("w+b") as hole:
        hole.truncate(50 * 1024 * 1024)
        for i in range(4):
            tar.addfile(tar.gettarinfo(fileobj=hole, arcname=f"{i}.jpg"), hole)
            hole.seek(0)
    before = int(_io("rchar"))
    assert split(shards(path))[0] == ["0", "1", "2", "3"]
    assert int(_io("rchar")) - before < 3_000_000


def _io(name: str) -> str:
    lines = Path("/proc/self/io").read_text().splitlines()
    return dict(line.split(": ") for line in lines)[name]


def test_a_fingerprint_is_that_of_the_shard_and_the_place_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
    assert [sample.content.fingerprint() for sample in samples_of(shards(path))] == [None, None]
    age(path)
    first, second = (sample.content.fingerprint() for sample in samples_of(shards(path)))
    again, _ = (sample.content.fingerprint() for sample in samples_of(shards(path)))
    assert first == again
    assert first is not None
    assert first != second


def test_a_shard_that_shrinks_while_it_is_read_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.jpg", b"x" * 5000), ("b.jpg", b"x")])
    samples = shards(path).samples()
    first = next(samples)
    assert isinstance(first, Sample)
    os.truncate(path, 1000)
    with pytest.raises(RejectedError, match="ends in the middle"):
        first.content.read()
    assert {each.reason for each in samples if isinstance(each, Rejection)} == {DAMAGED}


MEMBERS = st.lists(
    st.tuples(st.from_regex(r"[ab/.]{0,4}[ab]\.(jpg|json|cls|x)", fullmatch=True), st.binary(max_size=30)), max_size=6
)


@settings(max_examples=200, deadline=None)
@given(MEMBERS, st.sampled_from(MODES), st.integers(0, 2**16), st.integers(0, 255))
def test_a_flipped_byte_anywhere_never_stops_the_next_shard(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], mode: str, where: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("hypothesis")
    data = bytearray(tar_bytes(members, mode))
    data[where % len(data)] ^= flip
    (folder / "a.tar").write_bytes(data)
    good, _ = split(shards(folder / "a.tar", write(folder / "b.tar", [("last.jpg", b"x")])))
    assert good[-1] == "last"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_samples_or_rejections(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("hypothesis")
    (folder / "a.tar").write_bytes(data)
    (folder / "b.tar").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zlib.compress(data, wbits=-15))
    split(shards(folder / "a.tar", folder / "b.tar"))


def test_patterns_mean_what_a_shell_makes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a-2.tar", "a-1.tar", "b.tar", "odd{1..2}.tar", "[x].tar"):
        (tmp_path / name).write_bytes(b"")
    cases = {
        "a-*.tar": ["a-1.tar", "a-2.tar"],
        "a-[12].tar": ["a-1.tar", "a-2.tar"],
        "a-{1..3}.tar": ["a-1.tar", "a-2.tar", "a-3.tar"],
        "{b,a-2}.tar": ["b.tar", "a-2.tar"],
        "odd{1..2}.tar": ["odd{1..2}.tar"],
        "[x].tar": ["[x].tar"],
        "{b,a-?}.tar": ["b.tar", "a-1.tar", "a-2.tar"],
        str(tmp_path / "a-*.tar"): [str(tmp_path / "a-1.tar"), str(tmp_path / "a-2.tar")],
    }
    for pattern, names in cases.items():
        assert tar_patterns.expand([pattern]) == [Path(name) for name in names]
    assert tar_patterns.expand(["b.tar", "*.tar"])[0] == Path("b.tar")
    assert len(tar_patterns.expand(["b.tar", "*.tar"])) == 5


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{0008..0011}", ["0008", "0009", "0010", "0011"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a,}x", ["ax", "x"]),
        ("{}", ["{}"]),
        ("{a}x{1..2}", ["{a}x1", "{a}x2"]),
        ("{a..c}", ["{a..c}"]),
        ("{", ["{"]),
        ("", [""]),
    ],
)
def test_braces_are_ranges_and_choices(pattern: str, names: list[str]) -> None:
    assert list(tar_patterns.braces(pattern)) == names


@pytest.mark.parametrize("pattern", ["{0..999999999}.tar", "{0..99999}{0..99999}.tar"])
def test_a_pattern_for_more_files_than_there_can_be_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(CommandError, match="more than 100,000 files"):
        tar_patterns.expand([pattern])


def test_wildcards_that_match_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="matches no file") as caught:
        tar_patterns.expand([str(tmp_path / "*.tar")])
    assert caught.value.exit_code == 2
