from __future__ import annotations

import base64
import csv
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emoji
import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples" / "emoji"
METHODS = ("cosine", "max_sim", "same_cell", "structural", "structural_plus_cosine")


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module("accuracy")


@pytest.fixture
def sets_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sample images stand for the full sets, which only npm brings."""
    with (SAMPLES / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def load(_folder: Path, designers: tuple[str, ...]) -> dict[str, emoji.IconSet]:
        return {designer: sample_set(rows, designer) for designer in designers}

    monkeypatch.setattr(emoji, "DESIGNERS", ("noto", "twemoji", "emojione"))
    monkeypatch.setattr(emoji, "load_icon_sets", load)


def sample_set(rows: list[dict[str, str]], designer: str) -> emoji.IconSet:
    drawn = [row for row in rows if row["designer"] == designer]
    return emoji.IconSet(
        designer=designer,
        drawings={row["class"]: as_document(SAMPLES / row["path"]) for row in drawn},
        names={row["class"]: row["class"] for row in drawn},
        kinds={},
    )


def as_document(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">'
        f'<image width="128" height="128" href="data:image/png;base64,{data}"/></svg>'
    )


def classes(count: int) -> list[emoji.EmojiClass]:
    return [
        emoji.EmojiClass(codepoint=f"1f{number:03x}", name=f"n{number}", kind="Symbols", icons={})
        for number in range(count)
    ]


def test_no_class_is_both_fitted_and_scored(accuracy: ModuleType) -> None:
    every = classes(300)
    halves = accuracy.split(every)
    fitted, scored = ({each.codepoint for each in half} for half in (halves.fitted, halves.scored))
    assert not fitted & scored
    assert fitted | scored == {each.codepoint for each in every}
    assert 100 < len(fitted) < 200


def test_the_split_depends_on_the_code_points_alone(accuracy: ModuleType) -> None:
    every = classes(60)
    assert accuracy.split(every[::-1]) == accuracy.split(every)
    # A class stays in its half whatever other classes there are.
    fewer = accuracy.split(every[:30])
    assert set(map(id, fewer.scored)) <= set(map(id, accuracy.split(every).scored))


def test_a_limit_keeps_the_same_classes_each_time(accuracy: ModuleType) -> None:
    limited, whole = accuracy.split(classes(60), 5), accuracy.split(classes(60))
    assert limited.fitted == whole.fitted[:5]
    assert limited.scored == whole.scored[:5]


@pytest.mark.parametrize("arguments", [["--designers", "1"], ["--classes", "0"]])
def test_too_few_designers_or_classes_are_refused(
    accuracy: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        accuracy.parsed(arguments)
    assert stopped.value.code == 2
    assert "expected at least" in capsys.readouterr().err


def test_the_command_repeats_the_run(accuracy: ModuleType) -> None:
    assert accuracy.parsed([]).command == "make bench-accuracy"
    assert accuracy.parsed(["--classes", "4"]).command == "python tests/benchmarks/accuracy.py --classes 4"
    assert accuracy.parsed(["--designers", "3"]).command == "python tests/benchmarks/accuracy.py --designers 3"


@pytest.mark.usefixtures("sets_of_samples")
def test_a_small_run_reports_every_designer_and_every_method(
    accuracy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Head weights of channels that never fire round to zero in float32.
    with np.errstate(under="ignore"):
        accuracy.main(["--classes", "12", "--folder", str(tmp_path)])
    report: dict[str, Any] = json.loads((tmp_path / "accuracy.json").read_text())
    designers = ("noto", "twemoji", "emojione")
    assert tuple(report) == (*designers, "figures", "details", "machine", "command")
    for designer in designers:
        entry = report[designer]
        assert tuple(entry) == ("classes", "gallery", "queries", *METHODS)
        assert (entry["classes"], entry["gallery"], entry["queries"]) == (12, 24, 12)
        for method in METHODS:
            assert tuple(entry[method]) == ("p_at_1", "r_precision", "map_at_r")
            assert all(0 <= value <= 1 for value in entry[method].values())
    for method in METHODS:
        means = [report[designer][method]["p_at_1"] for designer in designers]
        assert report["figures"][f"mean_p_at_1_{method}"] == pytest.approx(np.mean(means))
    # Guessing finds one of the 2 right among 24: a real model on real images is far above.
    assert report["figures"]["mean_p_at_1_cosine"] > 0.4
    details = report["details"]
    assert details["head"]["fitted_on_images"] == 12 * 3
    assert "mean_p_at_1_structural_uniform" in details["depth_100"]["figures"]
    # Fewer images than the depth: re-ranking the best 100 is ranking the whole gallery.
    assert details["depth_100"]["noto"]["structural"] == report["noto"]["structural"]
    fitted = {path.stem for path in (tmp_path / "accuracy" / "fit").rglob("*.png")}
    with (SAMPLES / "index.csv").open(encoding="utf-8", newline="") as file:
        known = [
            emoji.EmojiClass(codepoint=name, name=name, kind="", icons={})
            for name in {row["class"] for row in csv.DictReader(file)}
        ]
    assert fitted == {each.codepoint for each in accuracy.split(known, 12).fitted}
    assert "structural + cosine" in capsys.readouterr().out
