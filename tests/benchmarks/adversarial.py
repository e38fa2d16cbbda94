"""Pairs that matching can go wrong on, by family, made from real features and from nothing.

Every family is a function (rng, images, grid) -> Case: a query, N candidates and masks on both sides. `damaged` makes
what a store or a client could hold after something broke: numbers that are not finite, and finite ones that no model
gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from bench_features import unit

from matchflow_matching import CellGrid, FeatureBatch, Features, dequantise, quantise

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Family = Callable[[np.random.Generator, FeatureBatch, CellGrid], "Case"]

PAIRS = 50
DAMAGE: dict[str, NDArray[np.float32] | NDArray[np.float16]] = {
    "embeddings": np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e30, 2.0**-130, 2.0**-149, 0], np.float32),
    "scales": np.array([np.nan, np.inf, -np.inf, 65504, -65504, -0.01, 2.0**-24, 0], np.float16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A query and N candidates with their grids and masks, bool [Rq] and [N, Rx]."""

    query: Features
    candidates: FeatureBatch
    query_grid: CellGrid
    image_grid: CellGrid
    query_mask: NDArray[np.bool_]
    image_masks: NDArray[np.bool_]


def case(query: Features, candidates: FeatureBatch, query_grid: CellGrid, image_grid: CellGrid | None = None) -> Case:
    """Return a case in which every cell counts; the candidates' grid is the query's unless given."""
    return Case(
        query=query,
        candidates=candidates,
        query_grid=query_grid,
        image_grid=image_grid or query_grid,
        query_mask=np.ones(query.scales.shape, np.bool_),
        image_masks=np.ones(candidates.scales.shape, np.bool_),
    )


def repeated(image: Features, count: int = PAIRS) -> FeatureBatch:
    """Return one image so many times, in memory of its own."""
    return FeatureBatch.stack([image] * count)


def drawn(rng: np.random.Generator, images: FeatureBatch) -> tuple[Features, FeatureBatch]:
    """Return one image and PAIRS others, at random."""
    chosen = rng.choice(len(images), PAIRS + 1, replace=len(images) <= PAIRS)
    return images[int(chosen[0])], images.take(chosen[1:])


def vectors(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Return random unit vectors float32 [..., D]."""
    return unit(rng.normal(size=shape).astype(np.float32))


def real(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """A real query and its real shortlist."""
    query = int(rng.integers(len(images)))
    order = np.argsort(-(images.embeddings @ images.embeddings[query]), kind="stable")
    return case(images[query], images.take(order[order != query][:PAIRS]), grid)


def real_at_random(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """A real query and real images that have nothing to do with it."""
    return case(*drawn(rng, images), grid)


def masked(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images; each cell of either side counts with probability one half, so that some sides have none."""
    whole = real(rng, images, grid)
    return replace(
        whole,
        query_mask=rng.random(whole.query_mask.shape) < 0.5,
        image_masks=rng.random(whole.image_masks.shape) < 0.5,
    )


def one_cell_of_query(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images; one cell of the query counts."""
    return replace(real(rng, images, grid), query_mask=one_hot(rng, 1, grid.size)[0])


def one_cell_of_image(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images; one cell of each candidate counts."""
    return replace(real(rng, images, grid), image_masks=one_hot(rng, PAIRS, grid.size))


def one_cell_of_both(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images; one cell of either side counts."""
    return replace(one_cell_of_image(rng, images, grid), query_mask=one_hot(rng, 1, grid.size)[0])


def one_hot(rng: np.random.Generator, count: int, size: int) -> NDArray[np.bool_]:
    """Return masks [count, size] with one true entry each."""
    masks: NDArray[np.bool_] = np.arange(size) == rng.integers(size, size=(count, 1))
    return masks


def identical(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """The query itself, so many times."""
    query = images[int(rng.integers(len(images)))]
    return case(query, repeated(query), grid)


def near_duplicates(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """The query with a few stored bytes off by one."""
    query = images[int(rng.integers(len(images)))]
    candidates = repeated(query)
    changed = rng.random(candidates.cells.shape) < rng.choice([1e-3, 1e-2, 0.1])
    steps = np.where(candidates.cells > 0, -1, 1) * changed
    return case(query, replace(candidates, cells=(candidates.cells + steps).astype(np.int8)), grid)


def opposite(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images with every vector turned round: no cell attends to anything, or all to everything."""
    query, candidates = drawn(rng, images)
    candidates = FeatureBatch.stack([query, *(candidates[n] for n in range(1, PAIRS))])
    turned = FeatureBatch(embeddings=-candidates.embeddings, cells=-candidates.cells, scales=candidates.scales)
    # Half of them keep their global vector, so that one side attends and the other does not.
    kept = rng.random(PAIRS) < 0.5
    turned.embeddings[kept] = candidates.embeddings[kept]
    return case(query, turned, grid)


def constant_maps(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Images whose cells are all the same, as of a blank picture, on the candidates' side and half the time on both."""
    query, candidates = drawn(rng, images)
    flat = FeatureBatch(
        embeddings=candidates.embeddings,
        cells=np.repeat(candidates.cells[:, :1], grid.size, axis=1),
        scales=np.repeat(candidates.scales[:, :1], grid.size, axis=1),
    )
    return case(flat[0] if rng.random() < 0.5 else query, flat, grid)


def zero_cells(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid) -> Case:
    """Real images with cells of zero on both sides; some candidates have no other."""
    query, candidates = drawn(rng, images)
    cells = dequantise(candidates)
    cells[rng.random(cells.shape[:2]) < rng.choice([0.2, 0.9])] = 0
    cells[:3] = 0
    query_cells = dequantise(repeated(query, 1))
    query_cells[:, rng.random(grid.size) < 0.5] = 0
    return case(quantise(query.embedding[None], query_cells)[0], quantise(candidates.embeddings, cells), grid)


def own_axes(rng: np.random.Generator, _images: FeatureBatch, _grid: CellGrid) -> Case:
    """Cells along axes of their own, in another order or turned round: similarities of exactly -1, 0 and 1."""
    rows, columns = 4, 4
    size, dim = rows * columns, 32
    axes = np.eye(dim, dtype=np.float32)
    order = np.argsort(rng.random((PAIRS + 1, dim)), axis=1)[:, :size]
    cells = axes[order] * rng.choice([-1.0, 1.0], size=(PAIRS + 1, size, 1), p=[0.2, 0.8]).astype(np.float32)
    embeddings = unit(cells.mean(axis=1) + 0.05 * vectors(rng, PAIRS + 1, dim))
    batch = quantise(embeddings, cells)
    return case(batch[0], batch.take(slice(1, None)), CellGrid(rows=rows, columns=columns))


def one_bright_cell(rng: np.random.Generator, _images: FeatureBatch, _grid: CellGrid) -> Case:
    """Global vectors along one cell of the other side, which takes nearly all the weight."""
    size, dim = 16, 64
    cells = vectors(rng, PAIRS + 1, size, dim)
    embeddings = np.repeat(cells[:1, 0], PAIRS + 1, axis=0)
    embeddings[0] = cells[1, 0]
    batch = quantise(unit(embeddings + 0.1 * vectors(rng, PAIRS + 1, dim)), cells)
    return case(batch[0], batch.take(slice(1, None)), CellGrid(rows=4, columns=4))


def hardly_attentive(rng: np.random.Generator, _images: FeatureBatch, _grid: CellGrid) -> Case:
    """Global vectors all but orthogonal to the cells of the other side: weights made of what is left, 1e-2 to 1e-4."""
    size, dim = 16, 64
    cells = unit(np.concatenate([vectors(rng, PAIRS + 1, size, dim // 2), np.zeros((PAIRS + 1, size, dim // 2))], 2))
    rest = np.concatenate([np.zeros((PAIRS + 1, dim // 2)), vectors(rng, PAIRS + 1, dim // 2)], 1)
    left = np.concatenate([vectors(rng, PAIRS + 1, dim // 2), np.zeros((PAIRS + 1, dim // 2))], 1)
    batch = quantise(unit((rest + rng.choice([1e-2, 1e-3, 1e-4]) * left).astype(np.float32)), cells.astype(np.float32))
    return case(batch[0], batch.take(slice(1, None)), CellGrid(rows=4, columns=4))


def scattered(rng: np.random.Generator, _images: FeatureBatch, _grid: CellGrid) -> Case:
    """Random vectors in other dimensions, and grids that differ between the sides."""
    dim = int(rng.choice([8, 33, 128, 512]))
    query_grid, image_grid = (CellGrid(rows=int(r), columns=int(c)) for r, c in rng.integers(1, 8, size=(2, 2)))
    common = vectors(rng, dim) * rng.choice([0.3, 1.0, 3.0])
    sides = []
    for count, size in ((1, query_grid.size), (PAIRS, image_grid.size)):
        cells = unit(common + vectors(rng, count, size, dim))
        sides.append(quantise(unit(common + vectors(rng, count, dim)), cells))
    return case(sides[0][0], sides[1], query_grid, image_grid)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        real,
        real_at_random,
        masked,
        one_cell_of_query,
        one_cell_of_image,
        one_cell_of_both,
        identical,
        near_duplicates,
        opposite,
        constant_maps,
        zero_cells,
        own_axes,
        one_bright_cell,
        hardly_attentive,
        scattered,
    )
}


def cases(rng: np.random.Generator, images: FeatureBatch, grid: CellGrid, pairs: int) -> list[tuple[str, Case]]:
    """Return cases with at least so many pairs together: half of them real, the others from each family in turn."""
    count = -(-pairs // PAIRS)
    names = list(FAMILIES)
    chosen = ["real" if n % 2 == 0 else names[(n // 2) % len(names)] for n in range(count)]
    return [(name, FAMILIES[name](rng, images, grid)) for name in chosen]


def damaged(rng: np.random.Generator, batch: FeatureBatch) -> FeatureBatch:
    """Return a copy in which about a third of the images hold one to three numbers that no model gives."""
    copy = FeatureBatch(embeddings=batch.embeddings.copy(), cells=batch.cells.copy(), scales=batch.scales.copy())
    for image in np.flatnonzero(rng.random(len(batch)) < 1 / 3).tolist():
        for _ in range(rng.integers(1, 4)):
            name = str(rng.choice(list(DAMAGE)))
            row = getattr(copy, name)[image]
            # One number, or all of them.
            place = slice(None) if rng.random() < 0.3 else int(rng.integers(len(row)))
            row[place] = rng.choice(DAMAGE[name])
        if rng.random() < 0.3:
            # No quantiser gives -128, and nothing keeps a client from sending it.
            copy.cells[image, :, ::2] = -128
    return copy


def is_finite(image: Features) -> bool:
    """Tell whether all that an image holds is finite."""
    return bool(np.isfinite(image.embedding).all() and np.isfinite(image.scales).all())
