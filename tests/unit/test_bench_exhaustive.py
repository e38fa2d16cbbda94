from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from matchflow_index import Gallery, GalleryStore
from matchflow_matching import CellGrid, MatchSettings
from matching_strategies import random_batch

if TYPE_CHECKING:
    from types import ModuleType

    from matchflow_index import SearchAnswer, SearchQuery
    from matchflow_matching import FeatureBatch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GRID = CellGrid(rows=2, columns=2)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("exhaustive")


@pytest.fixture
def batch() -> FeatureBatch:
    return random_batch(np.random.default_rng(0), 300, GRID.size, 8)


def test_brute_force_leaves_out_the_query_and_lets_the_id_decide(bench: ModuleType, batch: FeatureBatch) -> None:
    twins = batch.take(np.array([0, 1, 0, 0, 2]))
    assert bench.brute_force(twins, 2, MatchSettings(), GRID, 2) == ["00000", "00003"]


def test_every_way_to_match_is_measured_in_every_gallery(
    bench: ModuleType, batch: FeatureBatch, tmp_path: Path
) -> None:
    with GalleryStore.open(tmp_path) as store:
        galleries = {name: (bench.filled(store, name, batch, GRID), batch) for name in ("a", "b")}
        assert galleries["a"][0].count == 300
        figures = bench.figures_of(galleries, 5)
    assert set(figures) == {
        f"{figure}_{method}_{name}"
        for figure in ("two_stage_ms", "exhaustive_ms", "brute_force_ms", "exact_at_depth", "unsolved")
        for method in bench.METHODS
        for name in galleries
    }
    assert all(value > 0 for name, value in figures.items() if "_ms_" in name)
    assert all(0 <= value <= 1 for name, value in figures.items() if name.startswith(("exact", "unsolved")))


@pytest.mark.parametrize("exhaustively", [False, True])
def test_an_answer_that_brute_force_contradicts_ends_the_benchmark(
    bench: ModuleType, batch: FeatureBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exhaustively: bool
) -> None:
    real_search: Any = Gallery.search

    def wrong(gallery: Gallery, query: SearchQuery) -> SearchAnswer:
        answer: SearchAnswer = real_search(gallery, query)
        if query.exhaustive is exhaustively:
            return replace(answer, exact=True, hits=answer.hits[::-1])
        return answer

    monkeypatch.setattr(Gallery, "search", wrong)
    with GalleryStore.open(tmp_path) as store:
        gallery = bench.filled(store, "demo", batch, GRID)
        with pytest.raises(RuntimeError, match="query 3: matching everything gives"):
            bench.measure(gallery, batch, MatchSettings(), [3])
