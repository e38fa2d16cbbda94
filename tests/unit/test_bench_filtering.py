"""The brute force of the filter benchmark: its masks are what the filters say, and its tallies count right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filtering import KINDS, SELECTIVITIES, Tally, Truth, asked, image_id, report, tallied

from matchflow_index import ImageRecord


@pytest.fixture(scope="module")
def truth() -> Truth:
    made = Truth.random(2_000, 8, np.random.default_rng(0))
    made.source[:] = np.random.default_rng(1).integers(0, 40, 2_000)
    made.live[::7] = False
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SELECTIVITIES)
def test_brute_force_lets_through_what_the_filter_accepts(truth: Truth, kind: str, share: float) -> None:
    image_filter, passing = asked(truth, np.random.default_rng(2), kind, share)
    accepted = [
        bool(truth.live[k])
        and image_filter.accepts(
            ImageRecord(
                image_id=image_id(k),
                row_id=k,
                content_hash="",
                labels=truth.labels(k),
                width_px=0,
                height_px=0,
                update_time_s=0.0,
            )
        )
        for k in range(len(truth.live))
    ]
    assert passing.tolist() == accepted


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"people", "presence"}))
def test_a_filter_lets_through_about_what_it_should(truth: Truth, kind: str, share: float) -> None:
    rng = np.random.default_rng(3)
    shares = [KINDS[kind](truth, share, rng)[1].mean() for _ in range(30)]
    assert np.mean(shares) == pytest.approx(share, abs=0.02 + 0.12 * share)


def hits(*slots: int) -> Any:
    return [SimpleNamespace(record=SimpleNamespace(image_id=image_id(slot))) for slot in slots]


def test_hits_outside_are_wrong_and_hits_that_are_not_among_the_best_are_not_found() -> None:
    cosines = np.linspace(1, 0, 100, dtype=np.float32)
    passing = np.arange(100) % 2 == 0
    best = tallied(hits(*range(0, 20, 2)), passing, cosines)
    assert (best.wrong, best.found, best.expected, best.passing) == (0, 10, 10, 50)
    odd = tallied(hits(1, *range(0, 16, 2), 98), passing, cosines)
    assert (odd.wrong, odd.found) == (1, 8)


def test_where_fewer_pass_than_are_asked_for_all_of_them_are_expected() -> None:
    cosines = np.linspace(1, 0, 100, dtype=np.float32)
    few = np.isin(np.arange(100), [3, 50])
    assert tallied(hits(3), few, cosines).recall == 0.5
    assert tallied(hits(), np.zeros(100, np.bool_), cosines).recall == 1.0


def test_a_tie_at_the_end_is_won_by_either() -> None:
    cosines = np.array([1.0] * 9 + [0.5, 0.5, 0.5], np.float32)
    everything = np.ones(12, np.bool_)
    assert tallied(hits(*range(9), 11), everything, cosines).recall == 1.0


def test_the_report_has_the_worst_selectivity(tmp_path: Any) -> None:
    tallies = {
        ("numbers", share): Tally(searches=1, expected=10, found=9 if share == 0.5 else 10) for share in SELECTIVITIES
    }
    tallies["numbers", 0.9].wrong = 2
    report(tallies, {}, tmp_path)
    written = (tmp_path / "filter.json").read_text()
    assert '"min_recall_at_10": 0.9' in written
    assert '"wrong_ids": 2.0' in written
