from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_samples import LONG_AGO_S, age, samples_of, split

import matchflow
from matchflow_cli.bulk_samples import MAX_ID_LENGTH, FileContent, image_id_of
from matchflow_cli.folder_images import FolderImages

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("cat.png", "cat.png"),
        ("noto/1f600.png", "noto:1f600.png"),
        ("a:b/c.png", "a%3Ab:c.png"),
        ("100%.png", "100%25.png"),
        ("Grüße 😀.png", "Grüße 😀.png"),
        ("new\nline.png", "new%0Aline.png"),
        ("undecodable\udcff.png", "undecodable%FF.png"),
        ("zero\u200bwidth.png", "zero%E2%80%8Bwidth.png"),
    ],
)
def test_an_id_is_the_path_made_safe(path: str, image_id: str) -> None:
    assert image_id_of(path) == image_id


PATHS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=400)


@given(PATHS)
def test_an_id_is_one_that_the_contract_takes(path: str) -> None:
    image_id = image_id_of(path)
    assert 1 <= len(image_id) <= MAX_ID_LENGTH
    assert "/" not in image_id
    assert image_id.isprintable()
    assert image_id.encode()


@given(PATHS, PATHS)
def test_different_paths_have_different_ids(one: str, other: str) -> None:
    assert (image_id_of(one) == image_id_of(other)) == (one == other)


def test_long_paths_that_end_alike_have_different_ids() -> None:
    end = "x" * 300 + "/cat.png"
    one, other = image_id_of(f"a/{end}"), image_id_of(f"b/{end}")
    assert one != other
    assert one.endswith(":cat.png")
    assert len(one) == MAX_ID_LENGTH


def test_images_are_found_in_order_and_everything_else_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "b.PNG", "a/z.jpeg", "a/deep/er/y.webp", "notes.txt", ".hidden.png", ".git/x.png", "noending")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.gif").symlink_to(tmp_path / "b.PNG")
    images = FolderImages(folder=tmp_path)
    assert split(images) == (["a:deep:er:y.webp", "a:z.jpeg", "b.PNG", "link.gif"], [])
    assert images.extent() == 4


def test_samples_name_their_files_and_open_none(tmp_path: Path) -> None:
    write(tmp_path, "a/cat.png")
    (tmp_path / "a" / "cat.png").chmod(0)
    (sample,) = samples_of(FolderImages(folder=tmp_path))
    assert sample.content == FileContent(tmp_path / "a" / "cat.png")
    assert sample.labels == {}
    assert sample.place == "a/cat.png"


def test_folder_names_become_labels_from_the_outermost_in(tmp_path: Path) -> None:
    write(tmp_path, "top.png", "noto/one.png", "noto/1f600/two.png", "noto/1f600/old/three.png")
    images = FolderImages(folder=tmp_path, level_labels=("designer", "class"))
    assert {sample.image_id: sample.labels for sample in samples_of(images)} == {
        "top.png": {},
        "noto:one.png": {"designer": "noto"},
        "noto:1f600:two.png": {"designer": "noto", "class": "1f600"},
        "noto:1f600:old:three.png": {"designer": "noto", "class": "1f600"},
    }


def test_undecodable_file_names_are_images_too(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (sample,) = samples_of(FolderImages(folder=tmp_path))
    assert sample.image_id == "%FF.png"
    assert sample.place.isprintable()


def test_a_folder_that_vanishes_or_can_not_be_read_is_a_rejection_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a/one.png", "b/two.png", "c/three.png")
    scan = os.scandir

    def refuse(path: Path) -> Any:
        # Root may read everything, so nothing real refuses it.
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert split(FolderImages(folder=tmp_path)) == (["a:one.png", "c:three.png"], [("b/", "FILE_UNREADABLE")])


def test_a_fingerprint_changes_with_the_file_and_is_none_while_it_may_still_change(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    content = FileContent(path)
    assert content.fingerprint() is None
    age(path)
    first = content.fingerprint()
    assert first == content.fingerprint()
    assert first is not None
    path.write_bytes(b"longer")
    age(path)
    assert content.fingerprint() not in {first, None}
    os.utime(path, (LONG_AGO_S + 1, LONG_AGO_S + 1))
    other = tmp_path / "b.png"
    other.write_bytes(b"one")
    age(other)
    assert len({first, content.fingerprint(), FileContent(other).fingerprint()}) == 3


@pytest.mark.parametrize("name", ["gone.png", "nul\0.png"])
def test_a_file_that_is_not_there_has_no_fingerprint(tmp_path: Path, name: str) -> None:
    with pytest.raises(matchflow.FileUnreadableError):
        FileContent(tmp_path / name).fingerprint()
