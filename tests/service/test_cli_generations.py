"""`matchflow generation` against a real server with two real models: begin, compare, switch, search, go back."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from service_harness import RunningServer, encoded, eventually, picture, settings_for

import matchflow
from matchflow import GenerationState
from matchflow_cli.application import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

    Run = Callable[..., tuple[int, str, str]]

CLASSES = 8
DESIGNERS = ("noto", "twemoji", "fluent")


@pytest.fixture(scope="module")
def folder(sample_images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji by class, FOLDER/1f600/noto.png, and one picture larger than its thumbnail."""
    root = tmp_path_factory.mktemp("emoji")
    for designer in DESIGNERS:
        for path in sample_images[designer][:CLASSES]:
            target = root / path.stem / f"{designer}.png"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    (root / "large").mkdir()
    (root / "large" / "photo.jpg").write_bytes(encoded(picture(5, width=800, height=500), "JPEG", quality=95))
    return root


@pytest.fixture(scope="module")
def both(sample_bundle: Bundle, other_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server with both models listens."""
    bundles = [sample_bundle.path, other_bundle.path]
    server = RunningServer(settings_for(sample_bundle, tmp_path_factory.mktemp("both") / "store", bundles=bundles))
    server.start()
    yield server.target
    server.stop()


@pytest.fixture
def cli(both: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the server; gives its exit status and what it printed on either channel."""
    monkeypatch.setenv("MATCHFLOW_SERVER", both)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def done(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert status == 0, out + err
    return out


def found(cli: Run, *arguments: object) -> Any:
    return json.loads(done(cli(*arguments, "--json")))


def test_a_gallery_gets_another_model_and_gets_it_back(cli: Run, both: str, folder: Path, tmp_path: Path) -> None:
    done(cli("ingest", folder, "-g", "emoji", "--create", "--label-from-folders", "class"))
    out = done(cli("generation", "create", "emoji", "--model", "other", "--wait"))
    assert "generation 2 of emoji" in out
    listed = found(cli, "generation", "list", "emoji")
    assert [(each["number"], each["state"]) for each in listed] == [(1, "active"), (2, "ready")]
    assert done(cli("generation", "missing", "emoji", "2")) == ""
    # The large one comes from its thumbnail until it is sent again.
    with matchflow.Client(both) as client:
        large = folder / "large" / "photo.jpg"
        (hit,) = client.search(large, gallery="emoji", top_k=1, generation=2)
        assert hit.image.from_thumbnail
        done(cli("ingest", folder, "-g", "emoji", "--generation", 2))
        (hit,) = client.search(large, gallery="emoji", top_k=1, generation=2)
        assert not hit.image.from_thumbnail
        assert hit.coarse_score == pytest.approx(1, abs=1e-6)
    compared = found(cli, "generation", "compare", "emoji", "2", "--queries", 20, "--label", "class")
    assert compared["query_count"] == compared["labelled_queries"] == 20
    assert 0 < compared["overlap"] <= 1
    query = next(folder.glob("*/noto.png"))
    assert "; generation 1" in done(cli("search", query, "-g", "emoji"))
    out = done(cli("generation", "activate", "emoji", "2"))
    assert "matchflow generation activate emoji 1" in out
    assert found(cli, "search", query, "-g", "emoji")["generation"] == 2
    assert found(cli, "search", query, "-g", "emoji", "--generation", 1)["generation"] == 1
    # What comes in goes to both.
    more = tmp_path / "more" / "new"
    more.mkdir(parents=True)
    (more / "one.png").write_bytes(encoded(picture(6)))
    done(cli("ingest", more.parent, "-g", "emoji"))
    with matchflow.Client(both) as client:
        eventually(lambda: client.get_generation("emoji", 1).state is GenerationState.READY)
    done(cli("generation", "activate", "emoji", "1"))
    done(cli("generation", "delete", "emoji", "2", "--yes"))
    assert [each["number"] for each in found(cli, "generation", "list", "emoji")] == [1]
    with matchflow.Client(both) as client:
        assert client.get_gallery("emoji").image_count == CLASSES * len(DESIGNERS) + 2


def test_what_can_not_be_done_says_why(cli: Run, folder: Path) -> None:
    done(cli("ingest", folder / "large", "-g", "few", "--create"))
    status, _, err = cli("generation", "create", "few", "--model", "nobody")
    assert (status, "nobody" in err) == (1, True)
    status, _, err = cli("generation", "create", "few")
    assert status == 1
    assert "expected another model than that of the gallery" in err
    status, _, err = cli("generation", "activate", "few", "2")
    assert status == 1
    assert "there is no generation 2" in err
    status, _, err = cli("generation", "delete", "few", "1", "--yes")
    assert status == 1
    assert "is active" in err
