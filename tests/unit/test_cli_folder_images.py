from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchflow_cli.failures import CommandError
from matchflow_cli.folder_images import MAX_ID_LENGTH, FolderImages, image_id_of, read_labels_csv

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
    assert [item.id for item in images.items()] == ["a:deep:er:y.webp", "a:z.jpeg", "b.PNG", "link.gif"]
    assert images.count() == 4


def test_items_name_their_files_and_open_none(tmp_path: Path) -> None:
    write(tmp_path, "a/cat.png")
    (tmp_path / "a" / "cat.png").chmod(0)
    (item,) = FolderImages(folder=tmp_path).items()
    assert item.image == tmp_path / "a" / "cat.png"
    assert item.labels == {}


def test_folder_names_become_labels_from_the_outermost_in(tmp_path: Path) -> None:
    write(tmp_path, "top.png", "noto/one.png", "noto/1f600/two.png", "noto/1f600/old/three.png")
    images = FolderImages(folder=tmp_path, level_labels=("designer", "class"))
    assert {item.id: item.labels for item in images.items()} == {
        "top.png": {},
        "noto:one.png": {"designer": "noto"},
        "noto:1f600:two.png": {"designer": "noto", "class": "1f600"},
        "noto:1f600:old:three.png": {"designer": "noto", "class": "1f600"},
    }


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_says_which_images_with_which_labels_and_ids(tmp_path: Path) -> None:
    write(tmp_path, "noto/a.png", "noto/b.png", "noto/not-listed.png")
    rows = read_labels_csv(
        table(
            tmp_path, "path,id,class,designer\nnoto/a.png,first,1f600,\n./noto/b.png,,1f601,google\nnoto/gone.png,,,\n"
        )
    )
    images = FolderImages(folder=tmp_path, level_labels=("designer",), rows=rows)
    assert images.count() == 3
    assert [(item.id, item.labels) for item in images.items()] == [
        ("first", {"designer": "noto", "class": "1f600"}),
        ("noto:b.png", {"designer": "google", "class": "1f601"}),
        ("noto:gone.png", {"designer": "noto"}),
    ]


def test_a_table_from_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert list(read_labels_csv(table(tmp_path, "\ufeffpath,class\na.png,x\n"))) == ["a.png"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "needs a column 'path'; it has none"),
        ("file,class\na.png,x\n", "needs a column 'path'; it has file, class"),
        ("path,Class Name\na.png,x\n", "a label name has 1-64 characters"),
        ("path\na.png\n./a.png\n", "line 3 names a.png again"),
        ("path,id\na.png,x\nb.png,x\n", "line 3 gives the id x again"),
        ("path,id\na.png,\nb.png,a.png\n", "line 3 gives the id a.png again"),
        ("path,name,name\na.png,x,y\n", "has a column twice"),
        ("path,name\na.png,x,y\n", r"line 2 has more cells than there are columns \(2\)"),
        ("path\n/etc/passwd\n", "line 2: expected a path inside the folder"),
        ("path\n../a.png\n", "inside the folder"),
        ("path,class\n,x\n", "inside the folder"),
        ('path,class\n"a.png,x\n', "is no CSV in UTF-8"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(CommandError, match=problem) as caught:
        read_labels_csv(table(tmp_path, text))
    assert caught.value.exit_code == 2


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("path,class\ngrüße.png,x\n".encode("latin-1"))
    with pytest.raises(CommandError, match="no CSV in UTF-8"):
        read_labels_csv(path)


def test_undecodable_file_names_are_images_too(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (item,) = FolderImages(folder=tmp_path).items()
    assert item.id == "%FF.png"
