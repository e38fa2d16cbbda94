from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import emoji
import make_samples
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples" / "emoji"
PACKAGES = ROOT / "build" / "emoji"


@pytest.fixture(scope="module")
def index() -> list[dict[str, str]]:
    with (SAMPLES / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_at_least_150_classes_are_drawn_by_every_designer(index: list[dict[str, str]]) -> None:
    designers: dict[str, set[str]] = defaultdict(set)
    for row in index:
        designers[row["class"]].add(row["designer"])
    assert len(designers) >= 150
    assert {frozenset(names) for names in designers.values()} == {frozenset(make_samples.DESIGNERS)}
    assert len(make_samples.DESIGNERS) >= 4


def test_share_alike_drawings_stay_out() -> None:
    assert "openmoji" not in make_samples.DESIGNERS
    assert not (SAMPLES / "openmoji").exists()


def test_the_index_names_every_file_once_and_nothing_else(index: list[dict[str, str]]) -> None:
    listed = Counter(row["path"] for row in index)
    lying = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.png")}
    assert set(listed) == lying
    assert set(listed.values()) == {1}
    assert all(row["path"] == f"{row['designer']}/{row['class']}.png" and row["name"] for row in index)
    assert list(index[0]) == list(make_samples.INDEX_COLUMNS)


def test_every_sample_is_rgb_of_128_pixels_and_no_two_are_the_same(index: list[dict[str, str]]) -> None:
    pixels: set[str] = set()
    for row in index:
        with Image.open(SAMPLES / row["path"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (128, 128)), row["path"]
            assert picture.info == {}, row["path"]
            pixels.add(hashlib.sha256(picture.tobytes()).hexdigest())
    assert len(pixels) == len(index)


def test_the_committed_files_are_those_that_were_written() -> None:
    lines = (SAMPLES / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    files = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*") if path.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    for path, expected in sums.items():
        assert hashlib.sha256((SAMPLES / path).read_bytes()).hexdigest() == expected, path


def test_the_samples_take_less_than_8_megabytes() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 8_000_000


def test_the_notice_attributes_every_designer() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for designer in make_samples.DESIGNERS:
        assert f"samples/emoji/{designer}\n" in notice
    assert all(licence in notice for licence in ("CC-BY-4.0", "Apache-2.0", "MIT"))
    assert "rasterised" in notice


@pytest.mark.skipif(bool(emoji.missing_packages(PACKAGES, make_samples.DESIGNERS)), reason="the packages are not here")
def test_writing_the_samples_again_gives_the_same_bytes(tmp_path: Path) -> None:
    make_samples.main(["--archives", str(PACKAGES), "--destination", str(tmp_path / "again")])
    again = {path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.*")}
    committed = {path.relative_to(SAMPLES): path.read_bytes() for path in SAMPLES.rglob("*.*")}
    assert again == committed
