"""`matchflow tune` on real images: in a store that nobody has open, and beside the server that has it open."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from service_harness import RunningServer, settings_for

import matchflow
from matchflow_cli import tune_storing
from matchflow_cli.application import run
from matchflow_index import GalleryStore, MatchDefaults
from matchflow_index.tuning_halves import Half, half_of
from matchflow_matching import MatchMode, MatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

DESIGNERS = ("noto", "twemoji", "emojione")
CLASSES = 16
# Few ways, so that a run takes a moment.
QUICK = ("--query-field", "designer", "--mode", "same_cell", "--mode", "position_aware", "--depth", 10, "--depth", 0)
Run = Any


@pytest.fixture(scope="module")
def folder(sample_images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji by designer and class: FOLDER/noto/1f600/1f600.png."""
    root = tmp_path_factory.mktemp("emoji")
    shared = sorted(set.intersection(*({path.stem for path in sample_images[each]} for each in DESIGNERS)))
    for designer in DESIGNERS:
        for path in sample_images[designer]:
            if path.stem in shared[:CLASSES]:
                target = root / designer / path.stem / path.name
                target.parent.mkdir(parents=True)
                shutil.copy(path, target)
    return root


@pytest.fixture(scope="module")
def filled_store(sample_bundle: Bundle, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a gallery `demo`; tests work on copies of it."""
    store = tmp_path_factory.mktemp("filled") / "store"
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()
    labels = ("--label-from-folders", "designer,class", "--server", running.target)
    status = run(["ingest", str(folder), "-g", "demo", "--create", *labels])
    running.stop()
    assert status == 0
    return store


@pytest.fixture
def store(filled_store: Path, tmp_path: Path) -> Path:
    """A store that nobody has open."""
    return shutil.copytree(filled_store, tmp_path / "store")


@pytest.fixture
def server(sample_bundle: Bundle, store: Path) -> Iterator[RunningServer]:
    """A server that has the store open."""
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command; gives its exit status and what it printed on either channel."""
    monkeypatch.setenv("MATCHFLOW_SERVER", "127.0.0.1:1")

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def beside(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: no process can open a store twice."""
    main = [sys.executable, "-c", "from matchflow_cli.main import main; main()"]
    return subprocess.run([*main, *map(str, arguments)], capture_output=True, text=True, check=False)


def defaults_in(store: Path) -> MatchDefaults:
    with GalleryStore.open(store, read_only=True) as opened:
        return opened.gallery("demo").match_defaults


def way_of(figures: dict[str, Any]) -> MatchDefaults:
    """Return the way that the figures say was chosen."""
    chosen = dict(figures["chosen"])
    depth = chosen.pop("depth")
    mode = tune_storing.match_mode(matchflow.RerankMode(chosen.pop("mode")))
    return MatchDefaults(settings=MatchSettings(mode=mode, **chosen), depth=depth)


def test_the_choice_is_written_to_the_store_and_scores_plain_searches(
    cli: Run, store: Path, folder: Path, sample_bundle: Bundle, tmp_path: Path
) -> None:
    figures, plot = tmp_path / "tune.json", tmp_path / "tune.png"
    status, out, err = cli("tune", "demo", "--store", store, *QUICK, "--json", figures, "--plot", plot)
    assert status == 0, err
    measured = json.loads(figures.read_text())
    chosen = way_of(measured)
    assert chosen.settings.mode in {MatchMode.SAME_CELL, MatchMode.POSITION_AWARE}
    assert defaults_in(store) == chosen
    assert "written to the store: demo is scored by" in out
    assert "to go back, with the server running: matchflow gallery set-default demo --mode structural" in out
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    running = RunningServer(settings_for(sample_bundle, store))
    running.start()
    with matchflow.Client(running.target) as client:
        answer = client.search(min(folder.rglob("*.png")), gallery="demo")
    running.stop()
    assert answer.rerank_settings == tune_storing.as_rerank(chosen)
    assert answer.rerank == matchflow.RerankState.COMPLETE


def test_the_table_has_choice_references_and_what_the_gallery_had(cli: Run, store: Path, tmp_path: Path) -> None:
    figures = tmp_path / "tune.json"
    status, out, _ = cli("tune", "demo", "--store", store, *QUICK, "--dry-run", "--json", figures)
    assert status == 0
    for expected in ("chosen", "none (no re-ranking)", "same_cell (control)", "position_aware", "now", "structural"):
        assert expected in out
    measured = json.loads(figures.read_text())
    assert measured["dry_run"] is True
    halves = measured["halves"]
    assert halves["tuning"]["classes"] + halves["held_out"]["classes"] == CLASSES
    assert halves["tuning"]["queries"] == halves["tuning"]["images"] == len(DESIGNERS) * halves["tuning"]["classes"]
    assert {depth["depth"] for depth in measured["depths"]} == {10, CLASSES * len(DESIGNERS)}
    # A real model on real images: guessing would find 1 of about 8 classes.
    assert measured["rows"][0]["held_out"]["p_at_1"] > 0.4


def test_a_dry_run_stores_nothing_and_says_how(cli: Run, store: Path) -> None:
    status, out, _ = cli("tune", "demo", "--store", store, *QUICK, "--dry-run")
    assert status == 0
    assert defaults_in(store) == MatchDefaults()
    assert "nothing stored; to make it the default of demo: matchflow gallery set-default demo --mode" in out


def test_beside_a_server_the_choice_goes_through_it_and_counts_at_once(
    cli: Run, server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "tune.json"
    store = server.settings.store
    process = beside("tune", "demo", "--store", store, *QUICK, "--server", server.target, "--json", figures)
    assert process.returncode == 0, process.stderr
    assert "set through the server: demo is scored by" in process.stdout
    chosen = tune_storing.as_rerank(way_of(json.loads(figures.read_text())))
    with matchflow.Client(server.target) as client:
        assert client.get_gallery("demo").default_rerank == chosen
        assert client.search(min(folder.rglob("*.png")), gallery="demo").rerank_settings == chosen
    # The way back that it names leads back.
    (undo,) = (line for line in process.stdout.splitlines() if line.startswith("to go back"))
    status, _, err = cli(*shlex.split(undo.partition(": ")[2])[1:], "--server", server.target)
    assert status == 0, err
    with matchflow.Client(server.target) as client:
        assert client.get_gallery("demo").default_rerank == tune_storing.as_rerank(MatchDefaults())


def test_the_same_gallery_gives_the_same_choice_either_way(server: RunningServer, tmp_path: Path) -> None:
    store = server.settings.store
    found = []
    for number in range(2):
        figures = tmp_path / f"{number}.json"
        process = beside("tune", "demo", "--store", store, *QUICK, "--dry-run", "--json", figures)
        assert process.returncode == 0, process.stderr
        measured = json.loads(figures.read_text())
        for row in measured["rows"]:
            assert row.pop("query_ms") > 0
        found.append(measured)
    assert found[0] == found[1]


def test_a_store_that_is_open_elsewhere_without_its_server_is_said_before_the_work(server: RunningServer) -> None:
    process = beside("tune", "demo", "--store", server.settings.store, *QUICK, "--server", "127.0.0.1:1")
    assert process.returncode == 1
    assert process.stdout == ""
    assert "is open for writing in process" in process.stderr
    assert "no server can be reached at 127.0.0.1:1" in process.stderr
    assert "--dry-run" in process.stderr


def test_another_server_with_a_gallery_of_that_name_is_not_taken_for_the_right_one(
    server: RunningServer, sample_bundle: Bundle, tmp_path: Path
) -> None:
    other = RunningServer(settings_for(sample_bundle, tmp_path / "other"))
    other.start()
    with matchflow.Client(other.target) as client:
        client.create_gallery("demo")
    process = beside("tune", "demo", "--store", server.settings.store, *QUICK, "--server", other.target)
    other.stop()
    assert process.returncode == 1
    assert f"the server at {other.target} has another gallery 'demo' than this store" in process.stderr


def test_what_can_not_be_stored_in_the_end_is_shown_with_the_command_that_does(
    cli: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = tune_storing.find_keeper
    asked = []

    def locked_later(*arguments: Any) -> tune_storing.Keeper:
        asked.append(arguments)
        if len(asked) == 1:
            return find(*arguments)
        # Another process has come first: a lock is the open file's, so this one stands for it.
        with GalleryStore.open(arguments[0]):
            return find(*arguments)

    monkeypatch.setattr(tune_storing, "find_keeper", locked_later)
    status, out, err = cli("tune", "demo", "--store", store, *QUICK)
    assert status == 1
    assert "chosen" in out
    assert "the choice was not stored" in err
    assert "by hand: matchflow gallery set-default demo --mode" in err
    assert defaults_in(store) == MatchDefaults()


def test_a_second_tuning_finds_what_the_first_one_stored(cli: Run, store: Path) -> None:
    assert cli("tune", "demo", "--store", store, *QUICK)[0] == 0
    stored = defaults_in(store)
    status, out, _ = cli("tune", "demo", "--store", store, *QUICK)
    assert status == 0
    assert "chosen, now" in out
    assert "to go back" not in out
    assert defaults_in(store) == stored


def test_defaults_that_can_not_be_read_are_set_again(cli: Run, store: Path) -> None:
    with GalleryStore.open(store) as opened:
        gallery = opened.gallery("demo")
        gallery._truth.set_match_defaults(gallery._stored, b"{}")
    status, out, err = cli("tune", "demo", "--store", store, *QUICK)
    assert status == 0
    assert "not compared with the present default" in err
    assert "to go back" not in out
    assert defaults_in(store) != MatchDefaults()


def test_only_some_queries_and_values_ask_if_so_wished(cli: Run, store: Path, tmp_path: Path) -> None:
    figures = tmp_path / "tune.json"
    status, _, _ = cli(
        *("tune", "demo", "--store", store, *QUICK, "--dry-run", "--json", figures),
        *("--queries", 5, "--query", "noto"),
    )
    assert status == 0
    assert {half["queries"] for half in json.loads(figures.read_text())["halves"].values()} == {5}


def test_an_interruption_stores_nothing(cli: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # Only a signal at the right moment would do the same.
    monkeypatch.setattr("matchflow_index.tuning.query_times_ms", stop)
    status, out, err = cli("tune", "demo", "--store", store, *QUICK)
    assert status == 130
    assert "Traceback" not in out + err
    assert defaults_in(store) == MatchDefaults()


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--class-field", "colour"], 2, "no image has a label 'colour'; the gallery's labels are class, designer"),
        (["--query-field", "colour"], 2, "the gallery's labels are class, designer"),
        (["--query-field", "designer", "--query", "nobody"], 2, "no image has designer=nobody; there are emojione,"),
        (["--class-field", "designer", "--query-field", "designer"], 1, "at least 2 classes in each half"),
    ],
)
def test_labels_that_can_not_be_tuned_on_are_said(
    cli: Run, store: Path, arguments: list[str], status: int, problem: str
) -> None:
    ended, out, err = cli("tune", "demo", "--store", store, *arguments)
    assert ended == status
    assert out == ""
    assert problem in err
    assert "\n" not in err.strip()


def test_a_gallery_that_is_not_there_is_said(cli: Run, store: Path) -> None:
    status, _, err = cli("tune", "nobody", "--store", store)
    assert status == 1
    assert "there is no gallery 'nobody'" in err


def test_the_sample_classes_fill_both_halves(folder: Path) -> None:
    halves = [half_of(path.name) for path in (folder / DESIGNERS[0]).iterdir()]
    assert all(halves.count(half) >= 4 for half in Half)
