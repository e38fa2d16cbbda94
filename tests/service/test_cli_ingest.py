"""`matchflow ingest` with a real server: every kind of source, restarts that send nothing again, rejections."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_samples import LONG_AGO_S, age, tar_bytes
from service_harness import GatedEncoder, RunningServer, gated, png

import matchflow
from matchflow_cli import bulk_import
from matchflow_cli.application import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


Run = Any
COUNT = 30


@pytest.fixture
def cli(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run `matchflow ingest ... --create` against the server; gives its exit status and what it printed."""
    monkeypatch.setenv("MATCHFLOW_SERVER", server.target)

    def ingest(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["ingest", "--create", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ingest


@pytest.fixture
def client(server: RunningServer) -> Iterator[matchflow.Client]:
    with matchflow.Client(server.target) as connected:
        yield connected


@pytest.fixture
def gallery(client: matchflow.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """The id of a gallery that is deleted in the end."""
    name = f"g{abs(hash(request.node.name))}"
    yield name
    client.delete_gallery(name)


@pytest.fixture
def encoder(server: RunningServer) -> Iterator[GatedEncoder]:
    """The server's encoder, which counts."""
    with gated(server) as counting:
        counting.gate.set()
        yield counting


@pytest.fixture
def photos(sample_images: dict[str, list[Path]], tmp_path: Path) -> Path:
    """A folder of real pictures that nobody has touched for long."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sample_images["noto"][:COUNT]:
        shutil.copy(path, folder / path.name)
    age(*folder.iterdir())
    return folder


def images(client: matchflow.Client, gallery: str) -> dict[str, dict[str, Any]]:
    return {image.id: dict(image.labels) for image in client.list_images(gallery)}


def sent_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the ids of what the client sends."""
    sent: list[str] = []
    ingest = matchflow.Client.ingest

    def listen(self: matchflow.Client, gallery: str, items: Any, **options: Any) -> matchflow.IngestSummary:
        def heard() -> Iterator[matchflow.IngestItem]:
            for item in items:
                sent.append(item.id)
                yield item

        return ingest(self, gallery, heard(), **options)

    monkeypatch.setattr(matchflow.Client, "ingest", listen)
    return sent


def csv_of(photos: Path) -> list[object]:
    table = photos.parent / "table.csv"
    rows = [f"photos/{path.name},cat-{i},even\n" for i, path in enumerate(sorted(photos.iterdir()))]
    table.write_text("path,id,class\n" + "".join(rows))
    return [table]


def parquet_of(photos: Path) -> list[object]:
    table = photos.parent / "table.parquet"
    names = [path.name for path in sorted(photos.iterdir())]
    columns = {"path": names, "id": [f"cat-{i}" for i in range(len(names))], "class": ["even"] * len(names)}
    pq.write_table(pa.table(columns), table, row_group_size=7)
    return [table, "--root", photos]


def tars_of(photos: Path, suffix: str, mode: str) -> list[object]:
    paths = sorted(photos.iterdir())
    for shard in range(3):
        members = []
        for i in range(shard, len(paths), 3):
            members += [(f"cat-{i}.png", paths[i].read_bytes()), (f"cat-{i}.json", b'{"class": "even"}')]
        path = photos.parent / f"shard-{shard:04}{suffix}"
        path.write_bytes(tar_bytes(members, mode))
        age(path)
    return [photos.parent / ("shard-{0000..0002}" + suffix)]


SOURCES: dict[str, Callable[[Path], list[object]]] = {
    "folder": lambda photos: [photos],
    "csv": csv_of,
    "parquet": parquet_of,
    "tar": lambda photos: tars_of(photos, ".tar", "w"),
    "tar.gz": lambda photos: tars_of(photos, ".tar.gz", "w:gz"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_goes_in_once_and_is_not_sent_again(
    *,
    cli: Run,
    client: matchflow.Client,
    gallery: str,
    photos: Path,
    encoder: GatedEncoder,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    arguments = (*SOURCES[kind](photos), "-g", gallery)
    status, out, err = cli(*arguments)
    assert status == 0, err
    assert f"{COUNT} created, 0 updated, 0 unchanged, 0 rejected" in out
    stored = images(client, gallery)
    if kind == "folder":
        assert set(stored) == {path.name for path in photos.iterdir()}
    else:
        assert stored == {f"cat-{i}": {"class": "even"} for i in range(COUNT)}
    assert sum(encoder.batch_sizes) == COUNT
    sent = sent_to(monkeypatch)
    status, out, _ = cli(*arguments)
    assert status == 0
    assert f"0 created, 0 updated, {COUNT} unchanged, 0 rejected" in out
    assert f"{COUNT} images not sent again" in out
    assert (sent, sum(encoder.batch_sizes)) == ([], COUNT)


def test_only_what_changed_in_the_source_or_is_missing_in_the_gallery_is_sent_again(
    cli: Run, client: matchflow.Client, gallery: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(photos, "-g", gallery)
    first, second, third, fourth, fifth = sorted(photos.iterdir())[:5]
    first.write_bytes(png(1))
    os.utime(second, (LONG_AGO_S + 1, LONG_AGO_S + 1))  # touched, but the same
    client.delete_images(gallery, [third.name])
    client.update_labels(matchflow.ImageRef(gallery, fourth.name), {"class": "changed"})
    fifth.unlink()
    (photos / "new.png").write_bytes(png(2))
    sent = sent_to(monkeypatch)
    status, out, err = cli(photos, "-g", gallery)
    assert status == 0, err
    assert sorted(sent) == sorted([first.name, third.name, fourth.name, "new.png"])
    assert f"2 created, 2 updated, {COUNT - 4} unchanged" in out
    assert images(client, gallery)[fourth.name] == {}


def test_other_labels_are_sent_and_nothing_is_embedded_for_them(
    cli: Run, client: matchflow.Client, gallery: str, photos: Path, encoder: GatedEncoder
) -> None:
    (table,) = csv_of(photos)
    cli(table, "-g", gallery)
    assert isinstance(table, os.PathLike)
    text = (photos.parent / "table.csv").read_text()
    (photos.parent / "table.csv").write_text(text.replace("cat-3,even", "cat-3,odd"))
    assert f"0 created, 1 updated, {COUNT - 1} unchanged" in cli(table, "-g", gallery)[1]
    assert images(client, gallery)["cat-3"] == {"class": "odd"}
    assert sum(encoder.batch_sizes) == COUNT


def test_a_gallery_that_was_made_anew_gets_everything_again_whatever_the_journal_says(
    cli: Run, client: matchflow.Client, gallery: str, photos: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "import.journal"
    cli(photos, "-g", gallery, "--journal", journal)
    client.delete_gallery(gallery)
    assert f"{COUNT} created" in cli(photos, "-g", gallery, "--journal", journal)[1]
    # Another gallery through the same journal: the wrong one, and still nothing goes wrong.
    assert f"{COUNT} created" in cli(photos, "-g", f"{gallery}-two", "--journal", journal)[1]
    client.delete_gallery(f"{gallery}-two")


def test_a_small_journal_in_a_large_gallery_is_confirmed_image_by_image(
    *,
    cli: Run,
    client: matchflow.Client,
    gallery: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli(photos, "-g", gallery)
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:2]:
        shutil.copy2(path, few / f"few-{path.name}")
    cli(few, "-g", gallery)
    client.delete_images(gallery, [min(few.iterdir()).name])
    monkeypatch.setattr(bulk_import, "LIST_AT_SHARE", 1.0)
    monkeypatch.delattr(matchflow.Client, "list_images")
    assert "1 created, 0 updated, 1 unchanged" in cli(few, "-g", gallery)[1]


def test_more_images_than_a_stream_takes_go_in(
    cli: Run, gallery: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_import, "SEGMENT_ITEMS", 10)
    (photos / "broken.png").write_bytes(b"no image")
    status, out, _ = cli(photos, "-g", gallery)
    assert status == 1
    assert f"{COUNT} created, 0 updated, 0 unchanged, 1 rejected" in out


def test_everything_that_is_rejected_is_listed_with_its_reason_and_stops_nothing(
    cli: Run, client: matchflow.Client, gallery: str, photos: Path, tmp_path: Path
) -> None:
    good, other = sorted(path.name for path in photos.iterdir())[:2]
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "folder.png").mkdir()
    (photos / "huge.png").touch()
    os.truncate(photos / "huge.png", 70 * 1024 * 1024)
    os.mkfifo(photos / "pipe.png")
    rows = [
        *("path,id,size", f"{good},first,", f"{other},first,", "broken.png,,", "huge.png,,", "folder.png,,"),
        *("gone.png,,", "../secret.png,,", "/etc/passwd,,", "too,few", f"{other},,many", f"{other},,", "pipe.png,,"),
        f"{other},a/b,",
    ]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows))
    rejected = tmp_path / "rejected.csv"
    status, out, err = cli(table, "--root", photos, "-g", gallery, "--number-column", "size", "--rejected", rejected)
    assert "Traceback" not in err
    assert status == 1
    with rejected.open(newline="") as file:
        listed = {row["place"]: (row["reason"], row["id"], row["message"]) for row in csv.DictReader(file)}
    expected = {
        3: "DUPLICATE_ID", 4: "IMAGE_UNREADABLE", 5: "IMAGE_TOO_LARGE", 6: "FILE_UNREADABLE", 7: "FILE_UNREADABLE",
        8: "PATH_OUTSIDE", 9: "PATH_OUTSIDE", 10: "ROW_INVALID", 11: "LABEL_INVALID", 13: "FILE_UNREADABLE",
        14: "INVALID_FIELD",
    }  # fmt: skip
    reasons = {int(place.split()[-1]): reason for place, (reason, _, _) in listed.items()}
    assert reasons == expected
    assert "t.csv line 2 has this id already" in listed["t.csv line 3"][2]
    assert f"{len(expected)} rejected" in out
    assert all(reason in out for reason in expected.values())
    assert set(images(client, gallery)) == {"first", other}


def test_what_was_rejected_is_tried_again_in_the_next_run(cli: Run, gallery: str, photos: Path) -> None:
    (photos / "late.png").write_bytes(b"no image")
    assert cli(photos, "-g", gallery)[0] == 1
    (photos / "late.png").write_bytes(png(1))
    status, out, _ = cli(photos, "-g", gallery)
    assert status == 0
    assert f"1 created, 0 updated, {COUNT} unchanged" in out


def test_a_journal_that_can_not_be_used_stops_before_anything_is_sent(
    cli: Run, client: matchflow.Client, gallery: str, photos: Path
) -> None:
    status, _, err = cli(photos, "-g", gallery, "--journal", min(photos.iterdir()))
    assert status == 2
    assert "name another with --journal" in err
    assert images(client, gallery) == {}


def test_without_a_place_for_the_journal_the_import_says_so_and_goes_on(
    cli: Run, gallery: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing-can-be-made-here")
    status, out, err = cli(photos, "-g", gallery)
    assert status == 0
    assert "no journal" in err
    assert f"{COUNT} created" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nothing.csv"], "is no folder and no file"),
        (["photos", "photos"], "several sources must be tar files"),
        (["photos/readme.txt"], "expected a folder or a file that ends in"),
        (["photos", "--number-column", "x"], "go with a table or tar files"),
        (["photos", "--root", "photos"], "go with a table or tar files"),
        (["a.tar", "--label-from-folders", "class"], "samples in tar files bring their labels"),
        (["t.csv", "--labels-csv", "t.csv"], "goes with one"),
        (["t.csv", "--root", "gone"], "--root gone is no folder"),
        (["t.csv", "--time-column", "seen"], "has no column seen"),
        (["t.csv"], "there are no images in t.csv"),
        (["*.tar.gz"], "matches no file"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_in_one_line(
    cli: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "readme.txt").write_text("hello")
    (photos.parent / "t.csv").write_text("path\n")
    status, _, err = cli(*arguments, "-g", "refused")
    assert status == 2
    assert problem in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_server_that_stops_in_the_middle_is_a_clear_error_and_the_next_run_goes_on(
    start_server: Any, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = start_server()
    monkeypatch.setenv("MATCHFLOW_SERVER", running.target)
    arguments = ["ingest", str(photos), "-g", "demo", "--create", "--journal", str(photos.parent / "journal")]
    record, stored = bulk_import.Import._answered, 0
    stopping = threading.Thread(target=running.stop)

    def stop_after_ten(self: Any, result: matchflow.IngestResult) -> None:
        nonlocal stored
        record(self, result)
        stored += 1
        if stored == 10:
            stopping.start()
            stopping.join()

    monkeypatch.setattr(bulk_import.Import, "_answered", stop_after_ten)
    monkeypatch.setattr(matchflow.Client.ingest, "__kwdefaults__", {"on_result": None, "max_in_flight": 4})
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert "acknowledged and are stored" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "run the same again to go on" in out
    monkeypatch.undo()

    again, api = start_server()
    monkeypatch.setenv("MATCHFLOW_SERVER", again.target)
    with matchflow.Client(again.target) as client:
        before = client.get_gallery("demo").image_count
    assert 10 <= before < COUNT
    sent = sent_to(monkeypatch)
    assert run([*arguments, "--server", again.target]) == 0
    assert len(sent) == COUNT - before
    assert api.health


PROGRAM = "from matchflow_cli.main import main; main()"


def test_progress_is_shown_beside_the_result(server: RunningServer, gallery: str, photos: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "ingest", photos, "-g", gallery, "--create", "--server", server.target],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{COUNT} created" in process.stdout
    assert "100%" in process.stderr
