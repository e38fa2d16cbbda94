from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import matchflow
from matchflow import sources
from matchflow.errors import FileUnreadableError, ImageTooLargeError

if TYPE_CHECKING:
    from pathlib import Path

FEATURES = matchflow.Features(bundle_digest="d", embedding=(0.5, -0.5), cells=b"\x01\xff", cell_scales=(0.25,))


def test_a_path_is_read_and_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"pixels")
    assert sources.read_image(path) == sources.read_image(str(path)) == sources.read_image(b"pixels") == b"pixels"


def test_a_query_has_the_source_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"pixels")
    assert sources.query_message(path).image_bytes == b"pixels"
    assert sources.query_message(b"pixels").image_bytes == b"pixels"
    assert sources.query_message(matchflow.ImageRef("demo", "cat")).image == "galleries/demo/images/cat"
    message = sources.query_message(FEATURES).features
    assert list(message.embedding) == [0.5, -0.5]
    assert message.cells == b"\x01\xff"
    assert list(message.cell_scales) == [0.25]
    assert message.bundle_digest == "d"


def test_a_missing_file_is_named_with_its_problem(tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    with pytest.raises(FileUnreadableError, match="No such file") as caught:
        sources.read_image(path)
    assert caught.value.path == path
    assert caught.value.reason == "FILE_UNREADABLE"
    assert caught.value.code is None


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadableError, match="no regular file"):
        sources.read_image(tmp_path)


def test_a_pipe_is_refused_before_it_could_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileUnreadableError, match="no regular file"):
        sources.read_image(tmp_path / "pipe")


def test_a_path_that_no_system_has_is_unreadable() -> None:
    with pytest.raises(FileUnreadableError, match="null"):
        sources.read_image("a\0b")


def test_a_file_beyond_the_message_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take a terabyte of memory
    with pytest.raises(ImageTooLargeError, match=r"huge\.tif has 1,099,511,627,776 bytes"):
        sources.read_image(path)


def test_bytes_beyond_the_message_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 3)
    assert sources.read_image(b"abc") == b"abc"
    with pytest.raises(ImageTooLargeError, match="4 bytes; a message carries at most 3"):
        sources.read_image(b"abcd")
