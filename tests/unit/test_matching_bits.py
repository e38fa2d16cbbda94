"""A pair has one score, to the last bit: in whatever batch, order, shortlist or thread, and after save and load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import bits_probe
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, new_image

from matchflow_index import GalleryStore, SearchQuery
from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Features,
    Marginals,
    Matches,
    MatchMode,
    MatchSettings,
    explain,
    explain_batch,
    match,
    quantise,
    top_flows,
    vnni,
)
from matching_strategies import random_batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

few = settings(max_examples=60, deadline=None)
THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A query and N candidates with grids and masks of their own, and how to match them."""

    query: Features
    candidates: FeatureBatch
    query_grid: CellGrid
    image_grid: CellGrid
    query_mask: NDArray[np.bool_]
    image_masks: NDArray[np.bool_]
    settings: MatchSettings

    def match(self, chosen: NDArray[np.intp] | None = None, candidates: FeatureBatch | None = None) -> Matches:
        """Match the candidates at `chosen`, in that order; by default all."""
        order = np.arange(len(self.candidates)) if chosen is None else chosen
        return match(
            self.query,
            (candidates or self.candidates).take(order),
            self.settings,
            grid=self.query_grid,
            image_grid=self.image_grid,
            query_mask=self.query_mask,
            image_masks=self.image_masks[order],
        )


def random_problem(rng: np.random.Generator, mode: MatchMode, marginals: Marginals, dim: int, count: int) -> Problem:
    """Return a problem whose sides differ wherever the mode lets them."""
    query_grid, image_grid = (
        CellGrid(rows=int(rows), columns=int(columns)) for rows, columns in rng.integers(1, 6, size=(2, 2))
    )
    if mode is MatchMode.SAME_CELL:
        image_grid = query_grid
    if mode is MatchMode.STRIPES:
        image_grid = replace(image_grid, columns=query_grid.columns)
    spread = float(rng.choice([0.0, 0.3, 1.0, 3.0]))
    return Problem(
        query=random_batch(rng, 1, query_grid.size, dim, spread)[0],
        candidates=random_batch(rng, count, image_grid.size, dim, spread),
        query_grid=query_grid,
        image_grid=image_grid,
        query_mask=rng.random(query_grid.size) < rng.choice([0.5, 1.0]),
        image_masks=rng.random((count, image_grid.size)) < rng.choice([0.5, 1.0]),
        settings=MatchSettings.of(mode, marginals=marginals),
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mode, marginals = draw(st.sampled_from(MatchMode)), draw(st.sampled_from(Marginals))
    return random_problem(rng, mode, marginals, draw(st.sampled_from([2, 3, 8, 33, 128])), draw(st.integers(1, 6)))


def bits(result: object, place: int | None = None) -> dict[str, bytes]:
    """Return every array of a result (of one of its candidates) as bytes: -0 is not 0 here, and NaN is NaN."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}  # type: ignore[arg-type]
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return {name: (array if place is None else array[place]).tobytes() for name, array in arrays.items()}


def at_an_odd_address(array: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a copy that starts where no vector register would want it."""
    buffer = np.empty(array.nbytes + 1, np.int8)
    moved = buffer[1:].reshape(array.shape)
    moved[:] = array
    return moved


@few
@given(problem=problems(), data=st.data())
def test_a_pair_has_the_same_bits_in_every_batch(problem: Problem, data: st.DataObject) -> None:
    count = len(problem.candidates)
    # Any shortlist: some left out, some twice, in any order.
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    together = problem.match(chosen)
    for place, n in enumerate(chosen.tolist()):
        assert bits(together, place) == bits(problem.match(np.array([n])), 0)


@few
@given(problem=problems(), data=st.data())
def test_a_damaged_neighbour_changes_no_bit(problem: Problem, data: st.DataObject) -> None:
    count = len(problem.candidates)
    broken = data.draw(st.integers(0, count - 1))
    poison = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    embeddings, scales = problem.candidates.embeddings.copy(), problem.candidates.scales.copy()
    if data.draw(st.booleans()):
        embeddings[broken, -1] = poison
    else:
        scales[broken, 0] = poison
    sound = problem.match()
    # An infinite cosine times a weight of 0 is no number until it is replaced.
    with np.errstate(invalid="ignore"):
        spoiled = problem.match(candidates=replace(problem.candidates, embeddings=embeddings, scales=scales))
    assert spoiled.cosine[broken] == -1
    assert spoiled.structural[broken] == -1 - np.float32(problem.settings.spatial_weight)
    for n in range(count):
        assert n == broken or bits(spoiled, n) == bits(sound, n)


@few
@given(problem=problems())
def test_where_the_cells_lie_in_memory_changes_no_bit(problem: Problem) -> None:
    moved = replace(problem.candidates, cells=at_an_odd_address(problem.candidates.cells))
    turned = replace(moved, cells=np.asfortranarray(problem.candidates.cells))
    moved.cells.flags.writeable = False
    for elsewhere in (moved, turned):
        assert bits(problem.match(candidates=elsewhere)) == bits(problem.match())


@few
@given(problem=problems())
def test_a_plan_has_the_same_bits_alone_and_among_others(problem: Problem) -> None:
    order = np.arange(len(problem.candidates))[::-1]
    together = explain_batch(
        problem.query,
        problem.candidates.take(order),
        problem.settings,
        grid=problem.query_grid,
        image_grid=problem.image_grid,
        query_mask=problem.query_mask,
        image_masks=problem.image_masks[order],
    )
    for flow, n in zip(together, order.tolist(), strict=True):
        alone = explain(
            problem.query,
            problem.candidates[n],
            problem.settings,
            grid=problem.query_grid,
            image_grid=problem.image_grid,
            query_mask=problem.query_mask,
            image_mask=problem.image_masks[n],
        )
        assert bits(flow) == bits(alone)


@few
@given(problem=problems())
def test_byte_products_and_blas_give_the_same_bits_in_every_mode(problem: Problem) -> None:
    here = bits(problem.match())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vnni, "is_available", lambda: False)
        assert bits(problem.match()) == here


@pytest.mark.parametrize("mode", MatchMode)
def test_threads_that_match_different_shuffles_at_once_get_the_same_bits(mode: MatchMode) -> None:
    rng = np.random.default_rng(7)
    problem = random_problem(rng, mode, Marginals.CROSS_CORRELATION, 32, 40)
    expected = [bits(problem.match(np.array([n])), 0) for n in range(40)]
    shuffles = [[rng.permutation(40)[: rng.integers(1, 41)] for _ in range(12)] for _ in range(THREADS)]
    found: list[tuple[NDArray[np.intp], Matches]] = []
    start = threading.Barrier(THREADS)

    def work(mine: list[NDArray[np.intp]]) -> None:
        start.wait()
        found.extend([(order, problem.match(order)) for order in mine])

    threads = [threading.Thread(target=work, args=(mine,)) for mine in shuffles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 * THREADS
    for order, matches in found:
        for place, n in enumerate(order.tolist()):
            assert bits(matches, place) == expected[n]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of this family")
def test_kernels_compiled_for_the_oldest_processor_give_the_same_bits(tmp_path: Path) -> None:
    # SSE2 only: vectors of 4, no fused multiply-add, no byte products.
    oldest = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "NUMBA_CACHE_DIR": str(tmp_path)}
    tests = Path(__file__).parent.parent
    environment = {**os.environ, **oldest, "PYTHONPATH": str(tests)}
    ran = subprocess.run(
        [sys.executable, tests / "bits_probe.py"], check=True, capture_output=True, text=True, env=environment
    )
    assert ran.stdout == bits_probe.bits()


def stored(folder: Path, images: FeatureBatch, grid: CellGrid) -> None:
    """Put images into a gallery of their own, over several commits, with others that are gone again."""
    names = [f"image-{n:03}" for n in range(len(images))]
    spec = replace(gallery_spec(), grid=grid, embedding_dim=images.embeddings.shape[1])
    with GalleryStore.open(folder) as store:
        gallery = store.create(spec)
        for start in range(0, len(images), 7):
            gallery.put([new_image(f"gone-{start}", images[start])])
            gallery.put([new_image(names[n], images[n]) for n in range(start, min(start + 7, len(images)))])
            gallery.delete([f"gone-{start}"])


# The first is multiplied by bytes where the processor can, the second never.
@pytest.mark.parametrize("dim", [32, 33])
def test_a_search_after_save_and_load_has_the_bits_of_the_features_that_were_put(tmp_path: Path, dim: int) -> None:
    grid, count = CellGrid(rows=3, columns=2), 20
    batch = random_batch(np.random.default_rng(dim), count + 1, grid.size, dim)
    query, images = batch[0], batch.take(slice(1, None))
    stored(tmp_path, images, grid)
    # The first start reads the truth, the next what the first kept beside it.
    for _ in range(2):
        with GalleryStore.open(tmp_path) as store:
            gallery = store.gallery("demo")
            for mode in MatchMode:
                chosen = MatchSettings.of(mode, global_weight=1.0)
                expected = match(query, images, chosen, grid=grid)
                answer = gallery.search(SearchQuery(features=query, top_k=count, settings=chosen, max_flows=4))
                assert len(answer.hits) == count
                for hit in answer.hits:
                    n = int(hit.record.image_id.removeprefix("image-"))
                    assert np.float32(hit.cosine).tobytes() == expected.cosine[n].tobytes()
                    if mode is MatchMode.COSINE:
                        continue
                    assert np.float32(hit.score).tobytes() == expected.score[n].tobytes()
                    assert hit.structural is not None
                    assert np.float32(hit.structural).tobytes() == expected.structural[n].tobytes()
                    if hit.certificate is not None:
                        assert hit.certificate.iterations == expected.iterations[n]
                        assert hit.certificate.marginal_error == expected.marginal_error[n]
                    assert hit.flows == top_flows(explain(query, images[n], chosen, grid=grid), 4)


def test_what_comes_out_of_a_store_is_what_went_in_bit_by_bit(tmp_path: Path) -> None:
    grid = CellGrid(rows=2, columns=2)
    rng = np.random.default_rng(0)
    images = random_batch(rng, 9, grid.size, 16)
    # Values that a careless copy would change: zeros with a sign, denormal numbers, cells of nothing.
    embeddings = images.embeddings.copy()
    embeddings[0, :2] = [-0.0, 2.0**-149]
    embeddings[0, 2:] = np.sqrt(1 / 14)
    cells = rng.normal(size=(9, grid.size, 16)).astype(np.float32)
    cells /= np.linalg.norm(cells, axis=2, keepdims=True)
    cells[1] = 0
    images = quantise(embeddings, cells)
    stored(tmp_path, images, grid)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        for n in range(9):
            assert bits(gallery.features(f"image-{n:03}")) == bits(images[n])
