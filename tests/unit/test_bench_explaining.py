"""The pieces of `make bench-explain`: blanking, the deletion test, copies of known truth, and a small run."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import blanking
import deleting
import emoji
import explaining
import localising
import numpy as np
import pytest
from bench_features import sample_files
from blanking import Fill
from deleting import Explained, Pair
from hypothesis import given
from hypothesis import strategies as st

from matchflow_matching import CellGrid, Flow, MatchingFlow, top_flows
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_bundle import Bundle

GRID = CellGrid(rows=4, columns=4)
SIDE_PX = 128


def picture(seed: int, height: int = SIDE_PX, width: int = SIDE_PX) -> NDArray[np.uint8]:
    # No pixel is white or grey 127: whatever a fill paints is told apart from it.
    return np.random.default_rng(seed).integers(0, 100, (height, width, 3)).astype(np.uint8)


def plan_of(contributions: NDArray[np.float32]) -> MatchingFlow:
    """A plan whose similarities are all 1."""
    return MatchingFlow(
        plan=contributions,
        similarities=np.ones_like(contributions),
        penalties=np.zeros_like(contributions),
        image_weights=contributions.sum(axis=1),
        query_weights=contributions.sum(axis=0),
        image_grid=GRID,
        query_grid=GRID,
    )


def explained(flow: MatchingFlow, seed: int = 0) -> Explained:
    images = random_batch(np.random.default_rng(seed), 2, 16, 8)
    return Explained(flow=flow, query=images[0], image=images[1])


def straight(weights: Sequence[float]) -> MatchingFlow:
    """Every cell flows to its own place."""
    return plan_of(np.diag(np.array(weights, np.float32)))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(7, 60), st.integers(7, 60))
def test_the_cells_of_a_grid_cover_every_pixel_once(rows: int, columns: int, height: int, width: int) -> None:
    grid, covered = CellGrid(rows=rows, columns=columns), np.zeros((height, width), int)
    for cell in range(grid.size):
        covered[blanking.cell_slices(grid, cell, height, width)] += 1
    assert (covered == 1).all()


@given(st.sets(st.integers(0, 15)), st.sampled_from(list(Fill)))
def test_blanking_paints_the_pixels_of_its_cells_and_no_others(cells: set[int], fill: Fill) -> None:
    image = picture(0)
    kept = image.copy()
    painted = blanking.blanked(image, GRID, cells, fill)
    np.testing.assert_array_equal(image, kept)
    for cell in range(16):
        row, column = divmod(cell, 4)
        where = (slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32))
        if cell in cells:
            assert (painted[where] == fill.colour(image)).all()
        else:
            np.testing.assert_array_equal(painted[where], image[where])


def test_the_fills_are_the_mean_colour_white_and_grey() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = (10, 20, 31)
    assert Fill.MEAN.colour(image).tolist() == [5, 10, 16]
    assert Fill.BACKGROUND.colour(image).tolist() == [255, 255, 255]
    assert Fill.GREY.colour(image).tolist() == [127, 127, 127]


def test_a_cell_is_inked_when_enough_of_it_is_not_white() -> None:
    image = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    image[40:60, 40:60] = (255, 0, 0)
    image[0, 0] = 0
    assert np.flatnonzero(blanking.inked(image, GRID)).tolist() == [5]


@given(st.integers(1, 16), st.integers(0, 100))
def test_random_cells_are_that_many_different_ones_for_every_pair(count: int, seed: int) -> None:
    drawn = deleting.random_cells(16, count, 5, seed)
    assert [len(cells) for cells in drawn] == [count] * 5
    assert frozenset[int]().union(*drawn) <= set(range(16))
    assert drawn == deleting.random_cells(16, count, 5, seed)


def test_every_cell_is_drawn_equally_often() -> None:
    counts = np.bincount([cell for cells in deleting.random_cells(16, 4, 8000, 1) for cell in cells], minlength=16)
    # 2,000 expected, standard deviation 39.
    assert np.abs(counts - 2000).max() < 200


class WorthOfCells:
    """A score that is the sum of what each cell is worth, so every drop is known."""

    def __init__(self, worth: Sequence[float]) -> None:
        self.worth = worth

    def __call__(self, pair: Pair, cells: frozenset[int], fill: Fill) -> float:  # noqa: ARG002
        return sum(self.worth) - sum(self.worth[cell] for cell in cells)


WORTH = [float(cell * cell) for cell in range(16)]
PAIRS = [Pair(query=f"a/{label}", image=f"b/{label}", label=f"{label}") for label in range(2000)]


def test_the_drop_is_what_the_blanked_cells_are_worth() -> None:
    drops = deleting.drops(WorthOfCells(WORTH), PAIRS[:2], [frozenset({3}), frozenset({15, 0})], Fill.MEAN)
    assert drops.tolist() == [9.0, 225.0]


def test_the_ratio_of_a_perfect_explanation_is_the_known_one() -> None:
    scorer = WorthOfCells(WORTH)
    order = deleting.by_contribution(explained(straight(WORTH)))
    assert order == tuple(range(15, -1, -1))
    named = deleting.drops(scorer, PAIRS, deleting.first([order] * len(PAIRS), 4), Fill.MEAN)
    at_random = deleting.drops(scorer, PAIRS, deleting.random_cells(16, 4, len(PAIRS), 0), Fill.MEAN)
    known = sum(WORTH[12:]) / (sum(WORTH) / 4)
    error = deleting.ratio_error(named, at_random, [pair.label for pair in PAIRS])
    assert 0 < error < 0.1
    assert deleting.ratio(named, at_random) == pytest.approx(known, abs=4 * error)


def test_an_explanation_that_knows_nothing_has_the_ratio_one() -> None:
    scorer = WorthOfCells(WORTH)
    one, other = (
        deleting.drops(scorer, PAIRS, deleting.random_cells(16, 4, len(PAIRS), seed), Fill.MEAN) for seed in (1, 2)
    )
    error = deleting.ratio_error(one, other, [pair.label for pair in PAIRS])
    assert deleting.ratio(one, other) == pytest.approx(1, abs=4 * error)


def test_pairs_of_one_class_count_as_one_observation() -> None:
    rng = np.random.default_rng(0)
    named, at_random = rng.normal(2, 1, 500), rng.normal(1, 0.1, 500)
    labels = [str(number) for number in range(500)]
    alone = deleting.ratio_error(named, at_random, labels)
    doubled = deleting.ratio_error(
        np.repeat(named, 2), np.repeat(at_random, 2), [each for each in labels for _ in "ab"]
    )
    # Saying everything twice makes nothing surer.
    assert doubled == pytest.approx(alone)


def test_the_orders_rank_cells_by_what_they_say() -> None:
    contributions = np.zeros((16, 16), np.float32)
    for cell in (5, 6, 9, 10):
        contributions[cell, cell] = 0.65
    contributions[15, 0] = 1.0
    # Two smaller flows from one cell.
    contributions[0, 3] = contributions[1, 3] = 0.6
    pair = explained(plan_of(contributions))
    assert deleting.by_contribution(pair)[:2] == (3, 0)
    assert deleting.by_flows(pair)[0] == 0
    assert set(deleting.by_support(pair)[:4]) == {5, 6, 9, 10}
    assert set(deleting.by_supported_flows(pair)[:4]) == {5, 6, 9, 10}


@given(st.integers(0, 2**32))
def test_flows_by_contribution_are_the_flows_that_are_shown_in_another_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contributions = np.where(rng.random((16, 16)) < 0.3, 0, rng.random((16, 16))).astype(np.float32)
    flow = plan_of(contributions)
    ordered = deleting.flows_by_contribution(flow)
    every = top_flows(flow, 256)
    assert len(ordered) == len(every) == np.count_nonzero(contributions)
    assert set(ordered) == set(every)
    values = [each.contribution for each in ordered]
    assert values == sorted(values, reverse=True)


def test_the_controls_take_nothing_from_the_pair_itself() -> None:
    pairs = [explained(straight(np.roll([8.0, *range(15)], turn).tolist()), turn) for turn in range(4)]
    table = deleting.orders(pairs, ["a", "a", "b", "b"])
    # The next pair of another class, around the end.
    for name in ("shares", "contribution"):
        own = table[name]
        assert table[f"{name}_of_another_pair"] == [own[2], own[2], own[0], own[0]]
    assert len(set(table["fixed"])) == 1
    assert set(table["fixed"][0]) == set(range(16))


@given(st.sampled_from([step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]))
def test_a_shifted_copy_shows_each_cell_at_its_true_place(step: tuple[int, int]) -> None:
    image = picture(1)
    copy = localising.shifted(image, GRID, *step)
    for cell in range(16):
        row, column = (place + move for place, move in zip(divmod(cell, 4), step, strict=True))
        inside = 0 <= row < 4 and 0 <= column < 4
        assert copy.truth[cell] == (row * 4 + column if inside else -1)
        if inside:
            source, target = (blanking.cell_slices(GRID, at, SIDE_PX, SIDE_PX) for at in (cell, int(copy.truth[cell])))
            np.testing.assert_array_equal(copy.pixels[target], image[source])
    # Where nothing came from the image there is white.
    empty = set(range(16)) - set(copy.truth.tolist())
    assert all((copy.pixels[blanking.cell_slices(GRID, cell, SIDE_PX, SIDE_PX)] == 255).all() for cell in empty)


@pytest.mark.parametrize(("down", "right"), list(product((False, True), repeat=2)))
def test_a_shrunk_copy_shows_the_middle_of_each_cell_in_its_true_cell(down: bool, right: bool) -> None:
    for cell in range(16):
        image = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
        row, column = divmod(cell, 4)
        # A dot in the middle of the cell: its only ink in the copy lies in the true cell.
        image[row * 32 + 12 : row * 32 + 20, column * 32 + 12 : column * 32 + 20] = 0
        copy = localising.shrunk(image, GRID, 0.75, down=down, right=right)
        ink = [(copy.pixels[blanking.cell_slices(GRID, at, SIDE_PX, SIDE_PX)] < 128).sum() for at in range(16)]
        assert int(np.argmax(ink)) == copy.truth[cell]
        # The corner that was asked for: the strips on the other two sides stay white.
        top, left = 32 * down, 32 * right
        copy.pixels[top : top + 96, left : left + 96] = 255
        assert (copy.pixels == 255).all()


def test_a_covered_copy_leaves_the_rest_in_its_place() -> None:
    image = picture(2)
    copy = localising.covered(image, GRID, 1, 2)
    assert np.flatnonzero(copy.truth == -1).tolist() == [6, 7, 10, 11]
    seen = copy.truth != -1
    assert (copy.truth[seen] == np.arange(16)[seen]).all()
    np.testing.assert_array_equal(copy.pixels, blanking.blanked(image, GRID, [6, 7, 10, 11], Fill.MEAN))


def test_every_image_gets_one_copy_of_each_kind_and_all_directions_occur() -> None:
    made = localising.copies([picture(seed) for seed in range(8)], GRID)
    assert [copy.kind for copy in made] == ["shifted", "shrunk", "covered"] * 8
    assert len({tuple(copy.truth.tolist()) for copy in made if copy.kind == "shifted"}) == 8


def flow_entry(image_cell: int, query_cell: int) -> Flow:
    return Flow(query_cell=query_cell, image_cell=image_cell, mass=0.1, similarity=1.0, penalty=0.0, contribution=0.1)


def test_flows_are_judged_by_where_they_land() -> None:
    truth = localising.shifted(picture(3), GRID, 0, 1).truth
    counted = np.ones(16, bool)
    counted[0] = False
    plan = np.zeros((16, 16), np.float32)
    plan[6, 5] = 0.3  # true
    plan[7, 5] = 0.1  # one off
    plan[15, 4] = 0.4  # far off
    plan[0, 3] = 0.1  # out of the picture: not asked
    plan[9, 0] = 0.1  # not counted
    shown = [flow_entry(6, 5), flow_entry(7, 5), flow_entry(15, 4), flow_entry(15, 4), flow_entry(0, 3)]
    result = localising.landed(plan_of(plan), shown, truth, counted, GRID)
    assert result.mass == pytest.approx(3 / 8)
    assert result.mass_near == pytest.approx(4 / 8)
    assert (result.flows, result.flows_near, result.asked_flows) == (0.25, 0.5, 4)
    # 11 true places asked of: 4 x 3 less the first cell's. Corners have 4 cells around, edges 6, others 9.
    places = [int(truth[cell]) for cell in range(16) if counted[cell] and truth[cell] != -1]
    around = [(2 + (0 < p // 4 < 3)) * (2 + (0 < p % 4 < 3)) for p in places]
    assert result.chance_near == pytest.approx(np.mean(around) / 16)


def test_nothing_asked_is_no_number_and_does_not_spoil_the_mean() -> None:
    truth = np.arange(16)
    nothing = localising.landed(straight([1.0] * 16), [], truth, np.zeros(16, bool), GRID)
    assert np.isnan(nothing.flows)
    assert np.isnan(nothing.chance_near)
    assert nothing.mass == 0


def test_the_halves_share_no_class_and_leave_none_out() -> None:
    names = [f"{designer}/{label}" for designer in ("x", "y", "z") for label in range(9)]
    one, other = (dict(explaining.classes_of(names, half)) for half in explaining.HALVES)
    assert not set(one) & set(other)
    assert set(one) | set(other) == {str(label) for label in range(9)}
    assert dict(explaining.classes_of(names, None)) == one | other
    assert explaining.classes_of(names[::-1], "reported") == explaining.classes_of(names, "reported")


def test_a_pair_is_two_designers_of_one_class_and_all_take_turns() -> None:
    classes = explaining.classes_of([f"{d}/{label:02}" for d in "abcde" for label in range(80)], "reported")
    pairs = explaining.pairs_of(classes)
    assert len(pairs) == 200
    assert len({pair.query for pair in pairs}) == 200
    for pair in pairs:
        assert pair.query.split("/")[1] == pair.image.split("/")[1] == pair.label
    designers = {(pair.query[0], pair.image[0]) for pair in pairs}
    assert designers == {(one, other) for one, other in product("abcde", repeat=2) if one != other}


def test_the_greatest_gain_over_random_cells_is_found() -> None:
    carried_by = {"8": {"share_of_score": 0.3, "query_cells": 7.5, "image_cells": 7.0}}
    curve = {"flows_by_support": [0.1, 0.25, 0.3, 0.4], "random": [0.05, 0.1, 0.16, 0.3]}
    figures = explaining.shown_figures({"curve": curve, "flows": {"by_support": carried_by}})
    assert figures["cells_of_greatest_gain_over_random"] == 2
    assert figures["shown_flows_query_cells"] == 7.5


def test_unseen_classes_are_none_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    designers = sorted({path.parent.name for path in sample_files()})
    known = sample_files()[0].stem
    square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1"/></svg>'
    labels = [known, "1f001", "1f002", "1f003"]
    icon_set = emoji.IconSet(
        designer="any", drawings=dict.fromkeys(labels, square), names={each: each for each in labels}, kinds={}
    )
    # Only npm brings the full sets.
    monkeypatch.setattr(emoji, "load_icon_sets", lambda _folder, wanted: dict.fromkeys((*wanted, "noto"), icon_set))
    images = explaining.unseen_images(2)
    assert len(images) == 2 * len(designers)
    assert not {name.split("/")[1] for name in images} & {known}
    assert {pixels.shape for pixels in images.values()} == {(SIDE_PX, SIDE_PX, 3)}


def test_what_flows_carry_grows_to_the_whole_score() -> None:
    flow = straight([1.0] * 16)
    table = explaining.carried([top_flows(flow, 256)], [flow])
    assert table["4"] == {"share_of_score": 0.25, "query_cells": 4, "image_cells": 4}
    assert table["32"]["share_of_score"] == 1


@pytest.mark.parametrize("arguments", [["--classes", "1"], ["--unseen", "1"], ["--half", "both"]])
def test_what_can_not_be_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explaining.parsed(arguments)
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err or arguments[0] == "--half"


def test_the_command_repeats_the_run() -> None:
    assert explaining.parsed([]).command == "make bench-explain"
    assert explaining.parsed(["--unseen", "9"]).command == "python tests/benchmarks/explaining.py --unseen 9"
    repeated = explaining.parsed(["--classes", "3", "--half", "chosen_on"]).command
    assert repeated == "python tests/benchmarks/explaining.py --classes 3 --half chosen_on"


def test_a_small_run_reports_every_figure(
    sample_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explaining, "sample_bundle", lambda: sample_bundle)
    # Head weights of channels that never fire round to zero in float32.
    with np.errstate(under="ignore"):
        explaining.main(["--classes", "3", "--folder", str(tmp_path)])
    report: dict[str, Any] = json.loads((tmp_path / "explain.json").read_text())
    figures, details = report["figures"], report["details"]
    assert details["pairs"] == 15
    assert details["cells_blanked"] == 4
    ratios = details["deletion"]["position_aware"]["mean"]["ratios"]
    assert figures["deletion_ratio"] == ratios["shares"]
    assert figures["deletion_ratio_plain"] == ratios["contribution"]
    assert figures["control_fixed_order"] == ratios["fixed"]
    for curve in details["curves"].values():
        assert curve.pop("cells") == list(range(1, 9))
        assert all(len(line) == 8 for line in curve.values())
        # Half of the picture gone: a lower score, whoever chose the half.
        assert all(line[-1] > 0 for line in curve.values())
    for by_matcher in details["localisation"]["by_support"].values():
        for entry in by_matcher.values():
            assert all(0 <= entry[name] <= 1 for name in ("mass", "mass_near", "flows", "flows_near"))
            assert entry["mass"] <= entry["mass_near"]
    # Equal places are no places of a shifted copy, and all there is of a covered one.
    assert figures["localisation_shifted_same_cell"] == 0
    assert figures["localisation_covered_same_cell"] == 1
    assert (
        figures["shown_flows_share_of_score"] == details["flows"]["position_aware"]["by_support"]["8"]["share_of_score"]
    )
    assert "deletion_ratio" in capsys.readouterr().out
