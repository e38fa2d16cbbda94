"""`matchflow gallery backup`, `restore`, `verify`, `compact`, `stats` and `duplicates` on a store of real images."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from redis_server import running_redis
from service_harness import RunningServer, settings_for

import matchflow
from matchflow_cli.application import run
from matchflow_cli.operation_reports import size
from matchflow_index import GalleryStore
from matchflow_index.slab import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matchflow_bundle import Bundle

CLASSES = 8
DESIGNERS = ("noto", "twemoji")
PROGRAM = "import sys; from matchflow_cli.application import run; sys.exit(run(sys.argv[1:]))"
Run = Any


@pytest.fixture(scope="module")
def folder(sample_images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji by designer, one of them twice and once more in a smaller size."""
    root = tmp_path_factory.mktemp("emoji")
    for designer in DESIGNERS:
        (root / designer).mkdir()
        for path in sample_images[designer][:CLASSES]:
            shutil.copy(path, root / designer / path.name)
    first = sample_images["noto"][0]
    shutil.copy(first, root / "noto" / "again.png")
    with Image.open(first) as picture:
        picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(root / "noto" / "small.png")
    return root


@pytest.fixture(scope="module")
def filled(sample_bundle: Bundle, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a gallery `demo` that no server has open; copy it before anything is done to it."""
    store = tmp_path_factory.mktemp("filled") / "store"
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()
    status = run(
        [
            "ingest",
            str(folder),
            "-g",
            "demo",
            "--create",
            "--label-from-folders",
            "designer",
            "--server",
            running.target,
        ]
    )
    with matchflow.Client(running.target) as client:
        client.delete_images("demo", ["twemoji:" + max((folder / "twemoji").iterdir()).name])
        client.set_default_rerank("demo", depth=9)
    running.stop()
    assert status == 0
    return store


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `matchflow gallery`; gives its exit status and what it printed on either channel."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["gallery", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def everything(store: Path, gallery: str = "demo") -> list[tuple[object, ...]]:
    with GalleryStore.open(store, read_only=True) as opened:
        found = opened.gallery(gallery)
        return [
            (
                record.image_id,
                record.labels,
                record.update_time_s,
                found.thumbnail(record.image_id),
                found.features(record.image_id).cells.tobytes(),
                found.match_defaults.depth,
            )
            for record in found.page(None, 1000)
        ]


def test_a_gallery_comes_back_into_another_store_under_another_name(cli: Run, store: Path, tmp_path: Path) -> None:
    file, images = tmp_path / "demo.backup", 2 * CLASSES + 1
    status, out, err = cli("backup", "demo", "--store", store, "--output", file)
    assert status == 0, err
    assert f"backed up demo with {images} images as of change 19" in out
    status, _, err = cli("backup", "demo", "--store", store, "-o", file)
    assert status == 2
    assert "--overwrite" in err
    assert cli("backup", "demo", "--store", store, "-o", file, "--overwrite")[0] == 0
    status, out, err = cli("restore", file, "--store", tmp_path / "other", "--gallery", "copy")
    assert status == 0, err
    assert f"restored copy with {images} images: demo as of change 19" in out
    assert everything(tmp_path / "other", "copy") == everything(store)
    assert everything(store)[0][-1] == 9
    status, _, err = cli("restore", file, "--store", store)
    assert status == 1
    assert "there already is a gallery 'demo'" in err


def test_a_gallery_moves_to_redis(cli: Run, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "demo.backup"
    assert cli("backup", "demo", "--store", store, "-o", file)[0] == 0
    with running_redis(tmp_path / "redis") as server:
        status, out, err = cli("restore", file, "--store", server.url)
        assert status == 0, err
        assert "restored demo" in out
        status, out, _ = cli("verify", "demo", "--store", server.url)
        assert status == 0, out
        assert "nothing wrong in demo" in out
        assert "durability  process" in cli("stats", "--store", server.url)[1]
        status, out, _ = cli("compact", "--store", server.url, "--cache", tmp_path / "cache", "--keep-changes", 5)
        assert status == 0
        assert "12 log entries" in out
        assert cli("backup", "demo", "--store", server.url, "-o", tmp_path / "back")[0] == 0
    assert cli("restore", tmp_path / "back", "--store", tmp_path / "again")[0] == 0
    assert everything(tmp_path / "again") == everything(store)


def test_what_can_not_be_restored_says_why(cli: Run, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "demo.backup"
    assert cli("backup", "demo", "--store", store, "-o", file)[0] == 0
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    status, _, err = cli("restore", file, "--store", tmp_path / "other")
    assert status == 1
    assert "it is truncated: expected" in err
    assert "nothing was restored" in err
    status, _, err = cli("restore", file, "--store", tmp_path / "other", "--gallery", "Not An Id")
    assert status == 2
    assert "the id of a gallery has 1-63 characters" in err
    status, _, err = cli("backup", "nobody", "--store", store, "-o", tmp_path / "nobody")
    assert status == 1
    assert "there is no gallery 'nobody'" in err
    assert not (tmp_path / "nobody").exists()
    status, _, err = cli("verify", "demo", "--store", store, "--cache", tmp_path)
    assert status == 1
    assert "has its caches there" in err


def test_damage_is_listed_and_the_status_is_one(cli: Run, store: Path) -> None:
    status, out, _ = cli("verify", "demo", "--store", store)
    assert status == 0
    assert "nothing wrong in demo, generation 1: looked at 17 images" in out
    assert "19 log entries up to change 19 and 18 slots" in out
    slab = next(store.glob("caches/*/cells-*.slab"))
    with slab.open("r+b") as file:
        file.seek(HEADER_BYTES + 2592 + 1000)
        file.write(b"\xa5\x5a")
    status, out, _ = cli("verify", "demo", "--store", store)
    assert status == 1
    assert "slab" in out
    assert "bytes differ from the truth's" in out
    assert "1 finding in demo" in out
    status, out, _ = cli("verify", "demo", "--store", store, "--json")
    assert status == 1
    (report,) = json.loads(out)
    assert [(each["part"], each["slot"]) for each in report["findings"]] == [("slab", 1)]
    shutil.rmtree(store / "caches")
    status, out, _ = cli("verify", "demo", "--store", store)
    assert status == 0
    assert "note: there are no saved caches" in out


def test_a_store_is_compacted_and_says_what_that_gave(cli: Run, store: Path) -> None:
    before = everything(store)
    status, out, err = cli("compact", "--store", store, "--keep-changes", 4)
    assert status == 0, err
    assert "dropped 1 dead slot and 15 log entries" in out
    assert everything(store) == before
    assert cli("verify", "demo", "--store", store)[0] == 0
    done = json.loads(cli("compact", "--store", store, "--json")[1])
    assert done["dead_slots"] == done["changes"] == 0
    assert done["bytes_after"] <= done["bytes_before"]


def test_figures_are_shown(cli: Run, store: Path) -> None:
    status, out, _ = cli("stats", "--store", store)
    assert status == 0
    assert "durability  disk" in out
    assert "thumbnails" in out
    row = next(line for line in out.splitlines() if line.startswith("demo"))
    assert row.split()[1:5] == ["1", "17", "19", "19"]
    assert "exact" in row
    assert row.endswith("1.000")
    figures = json.loads(cli("stats", "demo", "--store", store, "--json")[1])
    assert figures["galleries"][0]["caches"]["dead_slots"] == 1
    shutil.rmtree(store / "caches")
    assert cli("stats", "--store", store)[1].splitlines()[-1].endswith("-")
    status, _, err = cli("stats", "nobody", "--store", store)
    assert status == 1
    assert "there is no gallery 'nobody'" in err


def test_duplicates_are_listed_in_three_forms(cli: Run, store: Path, folder: Path) -> None:
    first = "noto:" + min(path.name for path in (folder / "noto").iterdir() if path.stem not in {"again", "small"})
    status, out, _ = cli("duplicates", "demo", "--store", store)
    assert status == 0
    assert "among 17 images" in out
    report = json.loads(cli("duplicates", "demo", "--store", store, "--format", "json")[1])
    groups = [(each["kind"], {image["image_id"] for image in each["images"]}) for each in report["groups"]]
    assert groups[0] == ("content", {first, "noto:again.png"})
    looks = next(images for kind, images in groups if kind == "look" and first in images)
    assert {first, "noto:again.png", "noto:small.png"} <= looks
    rows = list(csv.reader(io.StringIO(cli("duplicates", "demo", "--store", store, "--format", "csv")[1])))
    assert rows[0] == ["group", "same", "image", "bits"]
    assert rows[1:3] == [["1", "content", first, "0"], ["1", "content", "noto:again.png", "0"]]


def test_reading_goes_on_beside_a_running_server(sample_bundle: Bundle, store: Path, tmp_path: Path) -> None:
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()

    def beside(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, "gallery", *map(str, arguments)]
        environment = {**os.environ, "MATCHFLOW_STORE": str(store)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    try:
        with matchflow.Client(running.target) as client:
            client.delete_images("demo", ["noto:small.png"])
        reading: tuple[tuple[object, ...], ...] = (
            ("backup", "demo", "-o", tmp_path / "file"),
            ("verify", "demo"),
            ("stats",),
            ("duplicates", "demo"),
        )
        for arguments in reading:
            done = beside(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr
        for writing in (("compact",), ("restore", tmp_path / "file", "-g", "copy")):
            done = beside(*writing)
            assert done.returncode == 1
            assert "is open for writing in process" in done.stderr
    finally:
        running.stop()
    assert run(["gallery", "restore", str(tmp_path / "file"), "--store", str(store), "-g", "copy"]) == 0
    assert everything(store, "copy") == everything(store)


def test_sizes_can_be_read() -> None:
    assert [size(each) for each in (1023, 1024, 1 << 20, 1 << 50)] == ["1023 bytes", "1.0 KiB", "1.0 MiB", "1024.0 TiB"]
