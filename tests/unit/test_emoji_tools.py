from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tarfile
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import emoji
import make_samples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

SQUARE = '<path fill="#f00" d="M0 0h16v16H0z"/>'


def archive(
    path: Path,
    *,
    icons: dict[str, Any] | None = None,
    chars: dict[str, str] | None = None,
    categories: dict[str, list[str]] | None = None,
    leave_out: str = "",
    **defaults: object,
) -> Path:
    """Write a package in the form of the real ones."""
    members = {
        "icons": {"icons": icons or {"square": {"body": SQUARE}}, **defaults},
        "chars": chars or {},
        "metadata": {"categories": categories or {}},
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if name != leave_out:
                data = json.dumps(content).encode()
                entry = tarfile.TarInfo(f"package/{name}.json")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def icon_set(designer: str, names: dict[str, str], icons: list[str], kind: str = "Symbols") -> emoji.IconSet:
    return emoji.IconSet(
        designer=designer,
        drawings={icon: document(f"{designer}{icon}") for icon in icons},
        names=names,
        kinds=dict.fromkeys(icons, kind),
    )


def document(seed: str) -> str:
    circle = f'<circle cx="8" cy="8" r="6" fill="#{zlib.crc32(seed.encode()) % 0xFFFFFF:06x}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{circle}</svg>'


def classes(count: int, kinds: int = 3) -> list[emoji.EmojiClass]:
    return [
        emoji.EmojiClass(codepoint=f"1f{number:03x}", name=f"n{number}", kind=f"kind {number % kinds}", icons={})
        for number in range(count)
    ]


# Packages


def test_the_six_designers_are_pinned_by_version_and_digest() -> None:
    assert emoji.DESIGNERS == ("twemoji", "noto", "openmoji", "fluent", "noto-v1", "emojione")
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in emoji.PACKAGES)


def test_missing_packages_are_those_whose_archive_is_not_there(tmp_path: Path) -> None:
    assert emoji.missing_packages(tmp_path) == list(emoji.PACKAGES)
    (tmp_path / emoji.PACKAGES[0].archive_name).touch()
    assert emoji.missing_packages(tmp_path) == list(emoji.PACKAGES[1:])
    assert emoji.missing_packages(tmp_path, ["twemoji"]) == []


def test_an_archive_with_another_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / emoji.PACKAGES[0].archive_name).write_bytes(b"something else")
    with pytest.raises(emoji.EmojiError, match=rf"with sha256 {emoji.PACKAGES[0].sha256}; got [0-9a-f]{{64}}"):
        emoji.fetch(tmp_path, ["twemoji"])


def test_without_npm_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(emoji.EmojiError, match="expected the command npm"):
        emoji.fetch(tmp_path, ["twemoji"])


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "bin" / "npm"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_failed_download_says_what_npm_said_and_leaves_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path, "echo no such version >&2; exit 7", monkeypatch)
    with pytest.raises(emoji.EmojiError, match="ended with 7: no such version"):
        emoji.fetch(tmp_path / "archives", ["twemoji"])
    assert not list((tmp_path / "archives").rglob("*.tgz"))


def test_what_npm_packs_is_kept_under_its_final_name_and_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(tmp_path / "made.tgz")
    package = replace(emoji.PACKAGES[0], sha256=hashlib.sha256(made.read_bytes()).hexdigest())
    monkeypatch.setattr(emoji, "PACKAGES", (package,))
    # npm pack --silent --pack-destination FOLDER SPEC
    fake_npm(tmp_path, f'echo "$5" >> {tmp_path}/calls; cp {made} "$4/{package.archive_name}"', monkeypatch)
    for _ in range(2):
        found = emoji.fetch(tmp_path / "archives", ["twemoji"])
        assert found == {"twemoji": tmp_path / "archives" / package.archive_name}
    assert (tmp_path / "calls").read_text() == f"@iconify-json/twemoji@{package.version}\n"
    assert [path.name for path in (tmp_path / "archives").iterdir()] == [package.archive_name]


# Parsing


def test_a_set_holds_whole_documents_names_and_kinds(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tgz",
        icons={"square": {"body": SQUARE}, "tall": {"body": SQUARE, "height": 20}},
        chars={"1f600": "square"},
        categories={"Symbols": ["square"]},
        width=8,
        height=8,
    )
    parsed = emoji.load_icon_set("noto", path)
    assert 'viewBox="0 0 8 8"' in parsed.drawings["square"]
    assert 'viewBox="0 0 8 20"' in parsed.drawings["tall"]
    assert parsed.names == {"1f600": "square"}
    assert parsed.kinds == {"square": "Symbols"}


@pytest.mark.parametrize("tone", ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"])
def test_skin_tone_variants_are_dropped(tmp_path: Path, tone: str) -> None:
    chars = {"1f44d": "square", f"1f44d-{tone}": "square", tone: "square", "1f3fa": "square"}
    assert set(emoji.load_icon_set("noto", archive(tmp_path / "a.tgz", chars=chars)).names) == {"1f44d", "1f3fa"}


@pytest.mark.parametrize("member", ["icons", "chars", "metadata"])
def test_a_package_without_a_member_is_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(emoji.EmojiError, match=r"expected an Iconify JSON package in a\.tgz"):
        emoji.load_icon_set("noto", archive(tmp_path / "a.tgz", leave_out=member))


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b\x08\x00cut off"])
def test_a_damaged_package_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tgz").write_bytes(data)
    with pytest.raises(emoji.EmojiError, match="expected an Iconify JSON package"):
        emoji.load_icon_set("noto", tmp_path / "a.tgz")


def test_a_truncated_package_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", icons={f"i{n}": {"body": os.urandom(40).hex()} for n in range(200)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(emoji.EmojiError, match="expected an Iconify JSON package"):
        emoji.load_icon_set("noto", path)


def test_a_package_with_a_folder_for_a_member_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    with pytest.raises(emoji.EmojiError, match="KeyError"):
        emoji.load_icon_set("noto", tmp_path / "a.tgz")


# Classes


def test_shared_classes_are_drawn_by_every_designer() -> None:
    sets = {
        "noto": icon_set("noto", {"1f1": "a", "1f2": "b", "1f3": "c"}, ["a", "b", "c"], kind="Food"),
        "twemoji": icon_set("twemoji", {"1f1": "x", "1f2": "y"}, ["x"]),
    }
    (only,) = emoji.shared_classes(sets, ["noto", "twemoji"])
    assert (only.codepoint, only.name, only.kind) == ("1f1", "a", "Food")
    assert only.icons == {"noto": "a", "twemoji": "x"}


def test_a_set_without_code_points_is_matched_by_notos_names() -> None:
    sets = {
        "noto": icon_set("noto", {"1f1": "a", "1f2": "b"}, ["a", "b"]),
        "emojione": icon_set("emojione", {}, ["b", "z"]),
    }
    (only,) = emoji.shared_classes(sets, ["noto", "emojione"])
    assert only.icons == {"noto": "b", "emojione": "b"}


def test_shared_classes_come_in_code_point_order_and_keep_a_class_without_kind() -> None:
    noto = icon_set("noto", {"1f2": "b", "1f1": "a"}, ["a", "b"])
    found = emoji.shared_classes({"noto": replace(noto, kinds={})}, ["noto"])
    assert [(each.codepoint, each.kind) for each in found] == [("1f1", "Symbols"), ("1f2", "Symbols")]


def test_without_noto_no_class_has_a_name() -> None:
    with pytest.raises(emoji.EmojiError, match=r"expected the set of noto, .* got \['twemoji'\]"):
        emoji.shared_classes({"twemoji": icon_set("twemoji", {}, [])}, ["twemoji"])


# Pictures


@pytest.mark.parametrize("size_px", [16, 64, 128])
def test_a_drawing_becomes_a_white_square_with_the_drawing_on_it(size_px: int) -> None:
    picture = np.asarray(emoji.rasterise(document("a"), size_px))
    assert picture.shape == (size_px, size_px, 3)
    assert (picture[0, 0] == 255).all()
    assert not (picture[size_px // 2, size_px // 2] == 255).all()


def test_a_drawing_that_is_not_square_is_centred() -> None:
    wide = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><path d="M0 0h20v10H0z"/></svg>'
    picture = np.asarray(emoji.rasterise(wide, 40))
    dark = np.flatnonzero((picture < 128).all(axis=(1, 2)))
    assert picture.shape == (40, 40, 3)
    assert (dark.min(), dark.max()) == (10, 29)


def test_a_drawing_is_the_same_every_time() -> None:
    first, second = (emoji.rasterise(document("a"), 64).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("text", ["", "no drawing", "<svg"])
def test_what_is_no_drawing_is_refused(text: str) -> None:
    with pytest.raises(emoji.EmojiError, match="expected an SVG document"):
        emoji.rasterise(text, 16)


# Samples


@given(count=st.integers(0, 30), total=st.integers(0, 40))
def test_chosen_classes_are_as_many_as_wanted_and_spread_over_kinds(count: int, total: int) -> None:
    chosen = make_samples.choose_classes(classes(total), count)
    assert len(chosen) == len({each.codepoint for each in chosen}) == min(count, total)
    assert [each.codepoint for each in chosen] == sorted(each.codepoint for each in chosen)
    kinds = [sum(each.kind == f"kind {kind}" for each in chosen) for kind in range(3)]
    if count <= total - 2:
        assert max(kinds) - min(kinds) <= 1


@given(st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_classes(random: Any) -> None:
    shuffled = classes(20)
    random.shuffle(shuffled)
    assert make_samples.choose_classes(shuffled, 7) == make_samples.choose_classes(classes(20), 7)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"1f{number}": f"n{number}" for number in range(4)}
    sets = {designer: icon_set(designer, names, list(names.values())) for designer in make_samples.DESIGNERS}
    monkeypatch.setattr(emoji, "load_icon_sets", lambda _folder, _designers: sets)


@pytest.mark.usefixtures("small_sets")
def test_samples_replace_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "emoji"
    (destination / "old").mkdir(parents=True)
    make_samples.main(["--archives", str(tmp_path), "--destination", str(destination), "--classes", "3"])
    assert not (destination / "old").exists()
    with (destination / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(make_samples.DESIGNERS)
    for row in rows:
        with Image.open(destination / row["path"]) as picture:
            assert picture.size == (make_samples.SIZE_PX, make_samples.SIZE_PX)
    assert "3 classes x 5 designers" in capsys.readouterr().out


@pytest.mark.usefixtures("small_sets")
def test_samples_over_the_size_limit_are_refused_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_samples, "SIZE_LIMIT_BYTES", 100)
    (tmp_path / "kept").touch()
    with pytest.raises(emoji.EmojiError, match="expected samples of at most 100 bytes; got"):
        make_samples.write_samples(tmp_path, tmp_path, class_count=2)
    assert (tmp_path / "kept").exists()
