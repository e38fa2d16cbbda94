"""Which images of a folder a head is fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from matchflow_bundle import Preprocessing
from matchflow_exporter import HeadImagesError
from matchflow_exporter.folder import choose_files, read_head_images

if TYPE_CHECKING:
    from pathlib import Path

INPUT = Preprocessing(height_px=8, width_px=6)


def silent(stage: str, done: int, total: int) -> None:
    assert stage == "read"
    assert 0 <= done <= total


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(10):
        path = tmp_path / f"class-{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), (index * 20, 0, 0)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_all_images_below_a_folder_are_taken_in_the_order_of_their_names(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in choose_files(folder, 100)]
    assert names == [f"class-{index % 2}/{index}.png" for index in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_fewer_images_are_spread_evenly_over_the_folder(folder: Path, count: int) -> None:
    everything = choose_files(folder, 100)
    taken = [everything.index(path) for path in choose_files(folder, count)]
    assert len(taken) == count
    assert taken == sorted(set(taken))
    steps = np.diff([*taken, 10 + taken[0]])
    assert steps.max() - steps.min() <= 1


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "PHOTO.JPG", format="JPEG")
    assert [path.name for path in choose_files(tmp_path, 5)] == ["PHOTO.JPG"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(HeadImagesError, match="found none"):
            choose_files(path, 5)


def test_images_are_read_as_the_model_takes_them(folder: Path) -> None:
    images = read_head_images(choose_files(folder, 10), INPUT, silent)
    assert images.pixels.shape == (10, 8, 6, 3)
    assert images.pixels[1, 0, 0, 0] == 40
    assert images.skipped == 0


def test_unreadable_images_are_left_out_and_counted(folder: Path) -> None:
    (folder / "class-0" / "0.png").write_bytes(b"broken")
    (folder / "class-0" / "2.png").write_bytes(b"")
    images = read_head_images(choose_files(folder, 10), INPUT, silent)
    assert len(images.pixels) == 8
    assert images.skipped == 2


def test_the_digest_depends_on_what_was_read_and_not_on_its_place(folder: Path) -> None:
    before = read_head_images(choose_files(folder, 10), INPUT, silent).sha256
    moved = folder.rename(folder.parent / f"{folder.name}-moved")
    assert read_head_images(choose_files(moved, 10), INPUT, silent).sha256 == before
    Image.new("RGB", (20, 10), (1, 2, 3)).save(moved / "class-0" / "0.png")
    assert read_head_images(choose_files(moved, 10), INPUT, silent).sha256 != before


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"broken")
    with pytest.raises(HeadImagesError, match="at least one readable image among 1 files"):
        read_head_images(choose_files(tmp_path, 5), INPUT, silent)
