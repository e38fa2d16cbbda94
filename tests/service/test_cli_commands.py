"""The commands with the real server, the real model and real images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from service_harness import RunningServer, settings_for

import matchflow
from matchflow_bundle import load_bundle
from matchflow_cli import evaluate_command, explain_command, search_command, serve_command
from matchflow_cli.application import run
from matchflow_index import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

CLASSES = 6
DESIGNERS = ("noto", "twemoji")
Run = Any


@pytest.fixture(scope="module")
def folder(sample_images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji by designer and class: FOLDER/noto/1f600/1f600.png."""
    root = tmp_path_factory.mktemp("emoji")
    for designer in DESIGNERS:
        for path in sample_images[designer][:CLASSES]:
            target = root / designer / path.stem / path.name
            target.parent.mkdir(parents=True)
            shutil.copy(path, target)
    return root


@pytest.fixture
def cli(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command against the server; gives its exit status and what it printed on either channel."""
    monkeypatch.setenv("MATCHFLOW_SERVER", server.target)

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.fixture
def client(server: RunningServer) -> Iterator[matchflow.Client]:
    with matchflow.Client(server.target) as connected:
        yield connected


@pytest.fixture
def demo(client: matchflow.Client, folder: Path) -> Iterator[str]:
    """A gallery of the folder's emoji."""
    client.create_gallery("demo")
    items = [
        matchflow.IngestItem(
            id=f"{path.parts[-3]}-{path.stem}",
            image=path,
            labels={"designer": path.parts[-3], "class": path.stem},
        )
        for path in sorted(folder.rglob("*.png"))
    ]
    assert client.ingest("demo", items).created == CLASSES * len(DESIGNERS)
    yield "demo"
    client.delete_gallery("demo")


@pytest.fixture(scope="module")
def closed_store(sample_bundle: Bundle, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a gallery `demo` that no server has open: a process can't open one twice."""
    store = tmp_path_factory.mktemp("closed") / "store"
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()
    status = run(
        [
            *("ingest", str(folder), "-g", "demo", "--create", "--label-from-folders", "designer,class"),
            *("--server", running.target),
        ]
    )
    running.stop()
    assert status == 0
    return store


def test_a_folder_goes_in_with_labels_from_its_folders_and_again_is_unchanged(
    cli: Run, client: matchflow.Client, folder: Path
) -> None:
    arguments = ("ingest", folder, "-g", "folder", "--create", "--label-from-folders", "designer,class")
    status, out, _ = cli(*arguments)
    assert status == 0
    assert "12 created, 0 updated, 0 unchanged, 0 rejected" in out
    first = next(client.list_images("folder"))
    name = first.labels["class"]
    assert first.id == f"noto:{name}:{name}.png"
    assert first.labels == {"designer": "noto", "class": name}
    status, out, _ = cli(*arguments)
    assert status == 0
    assert "0 created, 0 updated, 12 unchanged" in out
    client.delete_gallery("folder")


def test_a_table_names_images_labels_and_ids_and_what_is_not_there_fails(
    cli: Run, client: matchflow.Client, folder: Path, tmp_path: Path
) -> None:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = tmp_path / "labels.csv"
    table.write_text(f"path,id,mood\n{paths[0]},first,happy\n{paths[1]},,\nnoto/gone.png,,\n")
    status, out, _ = cli("ingest", folder, "-g", "table", "--create", "--labels-csv", table, "--no-thumbnails")
    assert status == 1
    assert "2 created" in out
    assert "FILE_UNREADABLE" in out
    assert "noto:gone.png" in out
    assert client.get_image(matchflow.ImageRef("table", "first")).labels == {"mood": "happy"}
    assert not client.get_gallery("table").keeps_thumbnails
    client.delete_gallery("table")


def test_broken_images_are_listed_at_the_end_and_the_status_is_one(
    cli: Run, client: matchflow.Client, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(next(folder.rglob("*.png")), tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    status, out, err = cli("ingest", tmp_path, "-g", "broken", "--create")
    assert status == 1
    assert "1 created" in out
    assert "1 rejected" in out
    assert "IMAGE_UNREADABLE" in out
    assert "Traceback" not in err
    client.delete_gallery("broken")


def test_an_ingest_that_can_not_begin_says_what_to_do(cli: Run, folder: Path, tmp_path: Path) -> None:
    status, _, err = cli("ingest", folder, "-g", "nobody")
    assert status == 1
    assert "matchflow gallery create" in err
    status, _, err = cli("ingest", tmp_path, "-g", "demo")
    assert status == 2
    assert "there are no images in" in err
    status, _, err = cli("ingest", tmp_path / "gone", "-g", "demo")
    assert status == 2
    assert "is no folder and no file" in err
    status, _, err = cli("ingest", folder, "-g", "demo", "--label-from-folders", "Designer Name")
    assert status == 2
    assert "a label name has" in err


def test_a_search_shows_hits_parts_timings_and_the_check(cli: Run, demo: str, folder: Path, tmp_path: Path) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, _ = cli("search", photo, "-g", demo, "-k", 3, "--overlays", tmp_path / "overlays")
    assert status == 0
    assert f"noto-{photo.stem}" in out
    assert "designer=noto" in out
    assert "%" in out
    assert "re-ranking complete" in out
    assert "add up to its structural score" in out
    pictures = sorted((tmp_path / "overlays").iterdir())
    assert [picture.name[:2] for picture in pictures] == ["01", "02", "03"]
    with Image.open(pictures[0]) as overlay:
        assert overlay.format == "PNG"


def test_a_search_by_stored_image_as_json_obeys_its_options(cli: Run, demo: str, folder: Path) -> None:
    name = min(folder.rglob("*.png")).stem
    status, out, _ = cli(
        *("search", "--image-id", f"noto-{name}", "-g", demo, "--json", "--mode", "max_sim", "--depth", 5),
        *("--where", "designer=noto", "--where", "designer=twemoji", "--where-not", "class=nothing"),
        *("--exclude", f"twemoji-{name}", "--max-flows", 2, "--global-weight", 0.5, "--min-score", -5),
    )
    assert status == 0
    answer = json.loads(out)
    ids = {hit["image"]["ref"]["image_id"] for hit in answer["hits"]}
    assert not ids & {f"noto-{name}", f"twemoji-{name}"}
    assert len(ids) == 10
    assert answer["rerank"] == "complete"
    assert len(answer["hits"][0]["flows"]) == 2
    best = answer["hits"][0]
    assert best["score"] == pytest.approx(best["structural_score"] + 0.5 * best["coarse_score"], abs=1e-6)


def test_a_search_without_hits_or_without_re_ranking_says_so(cli: Run, demo: str, folder: Path) -> None:
    photo = next(folder.rglob("*.png"))
    status, out, _ = cli("search", photo, "-g", demo, "--where", "designer=nobody")
    assert status == 0
    assert "no hits" in out
    assert "add up" not in out
    status, out, _ = cli("search", photo, "-g", demo, "--mode", "none")
    assert status == 0
    assert "re-ranking not requested" in out
    assert "add up" not in out


def test_a_search_compares_numbers_and_groups_its_hits(
    cli: Run, client: matchflow.Client, demo: str, folder: Path
) -> None:
    photo = min(folder.rglob("*.png"))
    images = [f"{designer}-{photo.stem}" for designer in ("noto", "twemoji")]
    for age, image_id in enumerate(images, 17):
        image = client.get_image(matchflow.ImageRef(demo, image_id))
        client.update_labels(image.ref, {**image.labels, "age": age}, etag=image.etag)

    def found(*options: str) -> list[str]:
        status, out, _ = cli("search", photo, "-g", demo, "-k", 50, "--json", *options)
        assert status == 0
        return [hit["image"]["ref"]["image_id"] for hit in json.loads(out)["hits"]]

    assert found("--where", "age>=18") == [images[1]]
    assert found("--where", "age<18", "--where", "designer!=twemoji") == [images[0]]
    assert sorted(found("--only", images[0], "--only", images[1])) == images
    assert len(found("--group-by", "designer", "--group-limit", "2")) == 4
    status, _, err = cli("search", photo, "-g", demo, "--where", "age>old")
    assert status == 2
    assert "needs a number, or a time" in err


def test_json_and_overlays_go_together(cli: Run, demo: str, folder: Path, tmp_path: Path) -> None:
    photo = next(folder.rglob("*.png"))
    status, out, _ = cli("search", photo, "-g", demo, "-k", 1, "--json", "--overlays", tmp_path)
    assert status == 0
    assert len(json.loads(out)["hits"]) == 1
    assert len(list(tmp_path.glob("01-*.png"))) == 1


def test_an_explanation_shows_flows_certificate_sums_and_a_picture(
    cli: Run, demo: str, folder: Path, tmp_path: Path
) -> None:
    name = min(folder.rglob("*.png")).stem
    picture = tmp_path / "why.png"
    status, out, _ = cli(
        "explain", "--image-id", f"noto-{name}", "--hit", f"twemoji-{name}", "-g", demo, "--overlay", picture
    )
    assert status == 0
    assert "the 12 best supported of 256 flows, 4 x 4 cells" in out
    assert "converged after" in out
    assert "adds up" in out
    with Image.open(picture) as overlay:
        assert overlay.format == "PNG"


def test_an_explanation_without_transport_has_no_certificate(cli: Run, demo: str, folder: Path) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, _ = cli(
        "explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo, "--mode", "same_cell", "--flows", 0
    )
    assert status == 0
    assert "none: this mode solves nothing" in out


def test_an_explanation_without_re_ranking_has_no_sums(cli: Run, demo: str, folder: Path) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, _ = cli("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo, "--mode", "none")
    assert status == 0
    assert "structural -" in out
    assert "sums" not in out


def test_an_explanation_fits_eighty_columns(cli: Run, demo: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = min(folder.rglob("*.png"))
    monkeypatch.setattr("matchflow_cli.output.WIDTH_WITHOUT_TERMINAL", 80)
    status, out, _ = cli("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo)
    assert status == 0
    (heading,) = (line for line in out.splitlines() if line.endswith("contribution"))
    assert heading.lstrip().startswith("#")
    assert all(len(line) <= 80 for line in out.splitlines())


def test_an_explanation_as_json_is_complete(cli: Run, demo: str, folder: Path, tmp_path: Path) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, _ = cli(
        *("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo, "--json", "--overlay", tmp_path / "o.png")
    )
    assert status == 0
    assert len(json.loads(out)["flows"]) == 256
    assert (tmp_path / "o.png").exists()


def test_what_does_not_add_up_is_shown_in_red_and_fails(
    cli: Run, demo: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server of ours says such a thing, so the check itself is made to fail."""
    photo = min(folder.rglob("*.png"))
    monkeypatch.setattr(matchflow.MatchScore, "verify", lambda _: False)
    status, out, err = cli("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo)
    assert status == 1
    assert "DOES NOT ADD UP" in out
    assert "can't be trusted" in err
    status, out, _ = cli("search", photo, "-g", demo)
    assert "do not add up for" in out


def test_galleries_are_created_listed_shown_and_deleted(cli: Run, demo: str) -> None:
    assert cli("gallery", "create", "second", "--model", "lite0")[0] == 0
    status, out, _ = cli("gallery", "list")
    assert status == 0
    assert "demo" in out
    assert "second" in out
    status, out, _ = cli("gallery", "show", demo, "--images", 3)
    assert status == 0
    assert "images      12" in out
    assert out.count("designer=noto") == 3
    assert "128 x 128" in out
    assert len(json.loads(cli("gallery", "show", demo, "--images", 2, "--json")[1])["images"]) == 2
    assert [each["id"] for each in json.loads(cli("gallery", "list", "--json")[1])] == ["demo", "second"]
    status, out, _ = cli("gallery", "delete", "second", "--yes")
    assert status == 0
    assert "deleted second and its 0 images" in out


def test_a_gallerys_default_is_shown_set_and_used(cli: Run, demo: str, folder: Path) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, _ = cli("gallery", "show", demo)
    assert status == 0
    assert "scored by   structural, cross-correlation weights" in out
    status, out, _ = cli(
        *("gallery", "set-default", demo, "--mode", "partial", "--spatial-weight", 2, "--matched-mass", 0.5),
        *("--marginals", "uniform", "--global-weight", 0.25, "--depth", 7),
    )
    words = "partial, uniform weights, spatial weight 2, matched mass 0.5, global weight 0.25"
    assert status == 0
    assert f"demo is scored by {words}, depth 7" in out
    assert f"scored by   {words}, depth 7" in cli("gallery", "show", demo)[1]
    shown = json.loads(cli("gallery", "show", demo, "--json")[1])["gallery"]["default_rerank"]
    assert (shown["mode"], shown["depth"], shown["tuning"]["matched_mass"]) == ("partial", 7, 0.5)
    assert f"scored by {words}, depth 7" in cli("search", photo, "-g", demo)[1]
    status, out, _ = cli("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo)
    assert status == 0
    assert f"scored by    {words}" in out
    assert "duality gap" in out
    assert "adds up" in out
    other = cli("search", photo, "-g", demo, "--mode", "stripes", "--depth", 3)[1]
    assert "scored by stripes, global weight 1, depth 3" in other
    assert "scored by structural" in cli("gallery", "set-default", demo)[1]


def test_a_default_that_makes_no_sense_is_refused_in_one_line(cli: Run, demo: str) -> None:
    status, _, err = cli("gallery", "set-default", demo, "--mode", "same_cell", "--spatial-weight", 1)
    assert status == 1
    assert "spatial_weight: expected 0 with same_cell; got 1" in err
    status, _, err = cli("gallery", "set-default", "nobody", "--mode", "stripes")
    assert status == 1
    assert "there is no gallery 'nobody'" in err
    assert cli("gallery", "set-default", demo, "--mode", "telepathy")[0] == 2


@pytest.mark.parametrize("mode", list(matchflow.RerankMode))
def test_every_mode_searches_explains_and_draws(
    cli: Run, demo: str, folder: Path, mode: matchflow.RerankMode, tmp_path: Path
) -> None:
    photo = min(folder.rglob("*.png"))
    status, out, err = cli("search", photo, "-g", demo, "-k", 2, "--mode", mode, "--overlays", tmp_path / "overlays")
    assert status == 0, err
    assert f"scored by {mode}" in out
    assert len(list((tmp_path / "overlays").iterdir())) == 2
    status, out, err = cli("explain", photo, "--hit", f"noto-{photo.stem}", "-g", demo, "--mode", mode)
    assert status == 0, err
    assert ("adds up" in out) == (mode != "none")


def test_an_exhaustive_search_is_proved_exact(cli: Run, demo: str, folder: Path) -> None:
    photo = min(folder.rglob("*.png"))
    arguments = ("search", photo, "-g", demo, "-k", 2, "--mode", "position_aware", "--depth", 2)
    whole = json.loads(cli(*arguments[:-1], 12, "--json")[1])
    status, out, _ = cli(*arguments, "--exhaustive", "--json")
    assert status == 0
    proved = json.loads(out)
    assert proved["exact"]
    assert proved["depth_done"] + proved["proved_below"] == 12
    assert proved["hits"] == whole["hits"]
    assert proved["rerank_settings"]["depth"] == 2
    assert "exact: proved to be what matching every image gives" in cli(*arguments, "--exhaustive")[1]


def test_a_server_without_galleries_says_how_to_make_one(cli: Run, client: matchflow.Client) -> None:
    for gallery in list(client.list_galleries()):
        client.delete_gallery(gallery.id)
    status, out, _ = cli("gallery", "list")
    assert status == 0
    assert "matchflow gallery create" in out


def test_a_gallery_is_deleted_only_when_that_is_confirmed(
    cli: Run, demo: str, client: matchflow.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for answer, expected in (("n\n", 1), ("", 2)):
        said = tmp_path / "answer"
        said.write_text(answer)
        with said.open() as keyboard:
            monkeypatch.setattr(sys, "stdin", keyboard)
            status, _, err = cli("gallery", "delete", demo)
        assert status == expected
        assert "--yes" in err
        assert client.get_gallery(demo).image_count == 12


def test_evaluation_and_doctor_read_the_store_beside_the_running_server(demo: str, server: RunningServer) -> None:
    command = [sys.executable, "-c", "from matchflow_cli.main import main; main()"]
    port = server.target.partition(":")[2]
    for arguments, expected in (
        (["eval", demo, "--method", "cosine"], "cosine"),
        (["doctor", "--port", port], "1 gallery (demo)"),
    ):
        process = subprocess.run(
            [*command, *arguments, "--store", str(server.settings.store)], capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        assert expected in process.stdout


def test_the_evaluation_measures_every_method_for_every_designer(cli: Run, closed_store: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    status, out, err = cli("eval", "demo", "--store", closed_store, "--query-field", "designer", "--json", figures)
    assert status == 0, err
    measured = json.loads(figures.read_text())
    assert set(measured) == set(DESIGNERS)
    for report in measured.values():
        assert (report["classes"], report["gallery"], report["queries"]) == (CLASSES, CLASSES, CLASSES)
        for method in METHODS:
            assert set(report[method.name]) == {"p_at_1", "r_precision", "map_at_r"}
    assert "structural_plus_cosine" in out
    assert "mean" in out


def test_the_evaluation_can_be_narrowed(cli: Run, closed_store: Path) -> None:
    demo, store = "demo", closed_store
    status, out, _ = cli(
        *("eval", demo, "--store", store, "--query-field", "designer", "--query", "noto"),
        *("--method", "cosine", "--depth", 3),
    )
    assert status == 0
    assert "twemoji" not in out
    assert "max_sim" not in out
    status, out, _ = cli("eval", demo, "--store", store, "--method", "same_cell")
    assert status == 0
    assert "all" in out


def test_the_slow_methods_are_measured_only_when_asked_for(cli: Run, closed_store: Path) -> None:
    status, out, _ = cli("eval", "demo", "--store", closed_store)
    assert status == 0
    assert "position_aware" in out
    assert "earth_mover" not in out
    status, out, _ = cli("eval", "demo", "--store", closed_store, "--method", "earth_mover", "--method", "partial")
    assert status == 0
    assert "earth_mover" in out
    assert "partial" in out
    assert "position_aware" not in out


def test_queries_without_anything_to_find_are_counted(cli: Run, closed_store: Path) -> None:
    status, out, _ = cli(
        "eval",
        "demo",
        "--store",
        closed_store,
        "--class-field",
        "designer",
        "--query-field",
        "designer",
        "--method",
        "cosine",
    )
    assert status == 0
    assert "left out: 12 queries" in out


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--query", "noto"], 2, "--query-field"),
        (["--method", "telepathy"], 2, "--method must be one of cosine"),
        (["--class-field", "colour"], 2, "no image has a label 'colour'; the gallery's labels are class, designer"),
        (
            ["--query-field", "designer", "--query", "nobody"],
            2,
            "no image has designer=nobody; there are noto, twemoji",
        ),
        (["--query-field", "colour"], 2, "the gallery's labels are class, designer"),
    ],
)
def test_an_evaluation_that_makes_no_sense_says_why(
    cli: Run, closed_store: Path, arguments: list[str], status: int, problem: str
) -> None:
    ended, _, err = cli("eval", "demo", "--store", closed_store, *arguments)
    assert ended == status
    assert problem in err


def test_an_evaluation_of_nothing_is_one_line(cli: Run, closed_store: Path, tmp_path: Path) -> None:
    status, _, err = cli("eval", "nobody", "--store", closed_store)
    assert status == 1
    assert "there is no gallery 'nobody'" in err
    status, _, err = cli("eval", "demo", "--store", tmp_path / "nowhere")
    assert status == 1
    assert "--store" in err


def test_the_doctor_finds_the_healthy_server(cli: Run, server: RunningServer) -> None:
    host, _, port = server.target.partition(":")
    status, out, _ = cli("doctor", "--host", host, "--port", port)
    assert status == 0
    assert f"a healthy server is on {server.target}, with lite0" in out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "the server needs --store, or MATCHFLOW_STORE in the environment"),
        (["--store", "x", "--bundle", "y", "--port", "99999"], "--port or MATCHFLOW_PORT"),
        (["--store", "x", "--bundle", "y", "--max-image-mib", "65"], "max_image_bytes must be at most"),
    ],
)
def test_a_server_with_settings_that_are_no_good_does_not_start(cli: Run, flags: list[str], problem: str) -> None:
    status, _, err = cli("serve", *flags)
    assert status == 2
    assert problem in err


def test_a_server_without_a_bundle_to_load_does_not_start(cli: Run, tmp_path: Path) -> None:
    status, _, err = cli("serve", "--store", tmp_path / "store", "--bundle", tmp_path, "--port", 0)
    assert status == 1
    assert "can't load the bundle" in err
    assert "Traceback" not in err


def test_serve_takes_flags_over_the_environment_and_stops_when_told(sample_bundle: Bundle, tmp_path: Path) -> None:
    environment = os.environ | {
        "MATCHFLOW_BUNDLES": str(sample_bundle.path),
        "MATCHFLOW_STORE": str(tmp_path / "unused"),
        "MATCHFLOW_LOG_FORMAT": "console",
    }
    command = [sys.executable, "-c", "from matchflow_cli.main import main; main()", "serve"]
    flags = ["--port", "0", "--store", str(tmp_path / "store"), "--log-format", "json", "--encoder-threads", "1"]
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        listening = json.loads(process.stderr.readline())
        assert listening["event"] == "listening"
        with matchflow.Client(f"127.0.0.1:{listening['port']}") as client:
            assert client.health() is matchflow.Health.SERVING
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait() == 0
    assert (tmp_path / "store").exists()
    assert not (tmp_path / "unused").exists()


def test_a_model_is_exported_as_the_flags_say(cli: Run, sample_images: dict[str, list[Path]], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sample_images["noto"][:24]:
        shutil.copy(path, images)
    out_folder = tmp_path / "bundle"
    arguments = (
        *("export", "--name", "tiny", "--head-images", images, "--output", out_folder, "--size", "64x96"),
        *("--grid", "2x3", "--dim", 16, "--power", 0.5, "--policy", "pad", "--version", "7"),
    )
    status, out, err = cli(*arguments)
    assert status == 0, err
    manifest = load_bundle(out_folder).manifest
    assert (manifest.name, manifest.version, manifest.policy.value) == ("tiny", "7", "pad")
    assert (manifest.height_px, manifest.width_px, manifest.embedding_dim) == (64, 96, 16)
    assert (manifest.grid.rows, manifest.grid.columns) == (2, 3)
    assert "parity" in out
    assert f"matchflow serve --store store --bundle {out_folder}" in out.replace("\n", "")
    status, _, err = cli(*arguments)
    assert status == 1
    assert "--overwrite" in err


def test_an_export_asked_wrongly_fails_before_torch_is_loaded(cli: Run, tmp_path: Path) -> None:
    status, _, err = cli("export", "--name", "x", "--head-images", tmp_path, "--size", "big")
    assert status == 2
    assert "--size must be like" in err


def test_every_command_is_documented() -> None:
    for module in (evaluate_command.evaluate, explain_command.explain, search_command.search, serve_command.serve):
        assert module.__doc__
