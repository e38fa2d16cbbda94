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
from index_samples import GRID, sample_features

from matchflow_index import METHODS, LabelledImages
from matchflow_index.evaluation import Measurements

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples" / "emoji"
NAMES = tuple(method.name for method in METHODS)
GAINS = {
    "gain_position_aware": "position_aware",
    "gain_same_cell_control": "same_cell",
    "gain_paper": "structural_plus_cosine",
    "gain_max_sim": "max_sim",
}


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module("accuracy")


@pytest.fixture
def accuracy_images(accuracy: ModuleType) -> ModuleType:
    assert accuracy
    return importlib.import_module("accuracy_images")


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


def test_no_class_is_both_fitted_and_scored(accuracy_images: ModuleType) -> None:
    every = classes(300)
    halves = accuracy_images.split(every)
    fitted, scored = ({each.codepoint for each in half} for half in (halves.fitted, halves.scored))
    assert not fitted & scored
    assert fitted | scored == {each.codepoint for each in every}
    assert 100 < len(fitted) < 200


def test_the_split_depends_on_the_code_points_alone(accuracy_images: ModuleType) -> None:
    every = classes(60)
    assert accuracy_images.split(every[::-1]) == accuracy_images.split(every)
    # A class stays in its half whatever other classes there are.
    fewer = accuracy_images.split(every[:30])
    assert set(map(id, fewer.scored)) <= set(map(id, accuracy_images.split(every).scored))


def test_a_limit_keeps_the_same_classes_each_time(accuracy_images: ModuleType) -> None:
    limited, whole = accuracy_images.split(classes(60), 5), accuracy_images.split(classes(60))
    assert limited.fitted == whole.fitted[:5]
    assert limited.scored == whole.scored[:5]


def measurements(values: list[list[float]]) -> Measurements:
    """Return what queries gave: one row per query with P@1 of cosine, of same cell and of position-aware transport."""
    return Measurements(
        methods=("cosine", "same_cell", "position_aware"),
        queries=np.arange(len(values)),
        values=np.repeat(np.array(values, np.float64)[:, :, None], 3, axis=2),
        classes=len(values),
        gallery=9,
        skipped=0,
        depth=0,
    )


def results_of(accuracy: ModuleType, values: dict[str, dict[str, list[list[float]]]]) -> Any:
    return accuracy.Results(
        methods=("cosine", "same_cell", "position_aware"),
        measured={f: {d: measurements(rows) for d, rows in row.items()} for f, row in values.items()},
    )


def test_a_gain_is_the_mean_over_framings_designers_and_classes(accuracy: ModuleType) -> None:
    results = results_of(
        accuracy,
        {
            "original": {"noto": [[0, 1, 1], [0, 1, 1]], "twemoji": [[1, 1, 1], [0, 0, 1]]},
            "displaced": {"noto": [[0, 0, 0], [1, 1, 0]], "twemoji": [[0, 0, 1], [0, 0, 1]]},
        },
    )
    assert results.gain("cosine") == (0.0, 0.0)
    assert results.gain("position_aware")[0] == pytest.approx(100 * (6 - 2) / 8)
    assert results.gain("position_aware", framings=("original",))[0] == pytest.approx(100 * 3 / 4)
    assert results.gain("position_aware", "same_cell")[0] == pytest.approx(100 * (6 - 4) / 8)
    assert results.mean("same_cell", ("displaced",)).p_at_1 == pytest.approx(1 / 4)
    gains = results.details()["gains"]["position_aware"]
    assert gains["both"]["points"] == pytest.approx(50)
    assert gains["displaced"]["points"] == pytest.approx(25)
    assert gains["original_over_control"]["points"] == pytest.approx(25)


def test_the_standard_error_takes_classes_as_what_was_drawn(accuracy: ModuleType) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=400)
    assert accuracy.bootstrap_error(values) == pytest.approx(values.std() / 20, rel=0.1)
    # A designer more who says the same adds queries but no class: the error stays.
    rows = rng.integers(0, 2, size=(200, 3)).astype(float).tolist()
    one = results_of(accuracy, {f: {"noto": rows} for f in ("original", "displaced")})
    two = results_of(accuracy, {f: {"noto": rows, "twemoji": rows} for f in ("original", "displaced")})
    assert two.gain("same_cell") == pytest.approx(one.gain("same_cell"))


def drawn(designers: tuple[str, ...], count: int) -> LabelledImages:
    labels = [
        {"class": f"c{number}", "designer": designer, "framing": framing}
        for framing in ("original", "displaced")
        for designer in designers
        for number in range(count)
    ]
    return LabelledImages(
        image_ids=tuple("-".join(each.values()) for each in labels),
        labels=tuple(labels),
        grid=GRID,
        features=sample_features(len(labels)),
    )


@pytest.mark.parametrize("framing", ["original", "displaced"])
def test_only_queries_are_displaced_never_the_gallery(accuracy_images: ModuleType, framing: str) -> None:
    images = drawn(("noto", "twemoji", "emojione"), 4)
    found = accuracy_images.asked(images, "noto", framing)
    queries = [each for each in found.labels if each["designer"] == "noto"]
    gallery = [each for each in found.labels if each["designer"] != "noto"]
    assert [each["class"] for each in queries] == ["c0", "c1", "c2", "c3"]
    assert {each["framing"] for each in queries} == {framing}
    assert {each["framing"] for each in gallery} == {"original"}
    assert len(gallery) == 2 * 4
    assert len(found.features) == len(found.labels) == len(found.image_ids)
    place = images.image_ids.index(found.image_ids[0])
    np.testing.assert_array_equal(found.features[0].cells, images.features[place].cells)


def test_the_best_candidate_is_chosen(accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    images = drawn(("noto", "twemoji"), 6)
    settings, table = accuracy.choose(images, ("noto", "twemoji"))
    best = max(accuracy.CANDIDATES, key=lambda each: sum(table[each.name].values()))
    assert settings == best.settings
    assert set(table) == {each.name for each in accuracy.CANDIDATES}
    # A candidate that is equal to another never replaces it.
    first = accuracy.CANDIDATES[3]
    twin = accuracy.replace(first, name="twin", settings=accuracy.replace(first.settings, max_iterations=300))
    monkeypatch.setattr(accuracy, "CANDIDATES", (first, twin))
    settings, table = accuracy.choose(images, ("noto", "twemoji"))
    assert table["twin"] == table[first.name]
    assert settings == first.settings


def test_exact_transport_is_scored_with_the_chosen_weights(accuracy: ModuleType) -> None:
    chosen = accuracy.CANDIDATES[5].settings
    replaced = accuracy.with_chosen(accuracy.METHODS + accuracy.EXACT_METHODS, chosen)
    for before, after in zip(accuracy.METHODS + accuracy.EXACT_METHODS, replaced, strict=True):
        assert (after.name, after.settings.mode) == (before.name, before.settings.mode)
        if after.name in ("position_aware", "earth_mover", "partial"):
            assert after.settings.spatial_weight == chosen.spatial_weight
            assert after.settings.marginals == chosen.marginals
        else:
            assert after == before
    assert accuracy.METHODS == METHODS


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
    accuracy: ModuleType, accuracy_images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Head weights of channels that never fire round to zero in float32.
    with np.errstate(under="ignore"):
        accuracy.main(["--classes", "12", "--folder", str(tmp_path)])
    report: dict[str, Any] = json.loads((tmp_path / "accuracy.json").read_text())
    figures, details = report["figures"], report["details"]
    designers = ("noto", "twemoji", "emojione")
    assert tuple(report) == (*designers, "figures", "details", "machine", "command")
    for table in (report, details["original"], details["displaced"]):
        for designer in designers:
            entry = table[designer]
            assert tuple(entry) == ("classes", "gallery", "queries", *NAMES)
            assert (entry["classes"], entry["gallery"], entry["queries"]) == (12, 24, 12)
            for method in NAMES:
                assert tuple(entry[method]) == ("p_at_1", "r_precision", "map_at_r")
                assert all(0 <= value <= 1 for value in entry[method].values())
    assert details["original"]["noto"] == report["noto"]
    assert details["displaced"]["noto"] != report["noto"]
    means = {
        (framing, method): np.mean([details[framing][designer][method]["p_at_1"] for designer in designers])
        for framing in ("original", "displaced")
        for method in NAMES
    }
    for method in NAMES:
        assert figures[f"mean_p_at_1_{method}"] == pytest.approx(means["original", method])
    for name, method in GAINS.items():
        gains = [means[framing, method] - means[framing, "cosine"] for framing in ("original", "displaced")]
        assert figures[name] == pytest.approx(100 * np.mean(gains))
        assert details["gains"][method]["both"]["points"] == pytest.approx(figures[name])
    # Guessing finds one of the 2 right among 24: a real model on real images is far above.
    assert figures["mean_p_at_1_cosine"] > 0.4
    assert details["head"]["fitted_on_images"] == 12 * 3
    assert details["position_aware"]["mode"] == "position_aware"
    assert details["classes_chosen_on"] == 12
    assert "mean_p_at_1_structural_uniform" in details["depth_100"]["figures"]
    assert "mean_p_at_1_earth_mover" in details["depth_100"]["displaced_figures"]
    # Fewer images than the depth: re-ranking the best 100 is ranking the whole gallery.
    assert details["depth_100"]["noto"]["structural"] == report["noto"]["structural"]
    fitted = {path.stem for path in (tmp_path / "accuracy" / "fit").rglob("*.png")}
    with (SAMPLES / "index.csv").open(encoding="utf-8", newline="") as file:
        known = [
            emoji.EmojiClass(codepoint=name, name=name, kind="", icons={})
            for name in {row["class"] for row in csv.DictReader(file)}
        ]
    assert fitted == {each.codepoint for each in accuracy_images.split(known, 12).fitted}
    assert "structural + cosine" in capsys.readouterr().out
