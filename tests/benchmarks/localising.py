"""Do the flows lead where they should? Copies of an image of which the true place of every cell is known.

An image is matched with a copy of itself that is shifted by a whole cell, shrunk into a corner, or partly covered. For
every cell of the image that shows something, geometry says which cell of the copy shows the same, if any does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from blanking import Fill, blanked, inked
from PIL import Image

from matchflow_matching import CellGrid, MatchingFlow, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from blanking import Pixels
    from numpy.typing import NDArray

    from matchflow_matching import Features, Flow, MatchSettings

NO_CELL = -1
WHITE = 255
SHRINK_TO = 0.75
COVERED_ROWS, COVERED_COLUMNS = 2, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A changed copy of an image; truth int [R]: the copy's cell that shows what the image's cell shows, or -1."""

    kind: str
    image: Pixels
    pixels: Pixels
    truth: NDArray[np.intp]


def shifted(image: Pixels, grid: CellGrid, rows: int, columns: int) -> Copy:
    """Move an image [H, W, 3] by whole cells over a white ground; what leaves the frame is lost."""
    height, width = image.shape[:2]
    down, right = rows * height // grid.rows, columns * width // grid.columns
    pixels = np.full_like(image, WHITE)
    kept = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    top, left = max(0, down), max(0, right)
    pixels[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
    truth = np.full(grid.size, NO_CELL, np.intp)
    for row, column in product(range(grid.rows), range(grid.columns)):
        if 0 <= row + rows < grid.rows and 0 <= column + columns < grid.columns:
            truth[row * grid.columns + column] = (row + rows) * grid.columns + column + columns
    return Copy(kind="shifted", image=image, pixels=pixels, truth=truth)


def shrunk(image: Pixels, grid: CellGrid, factor: float, down: bool, right: bool) -> Copy:
    """Draw an image smaller, in one corner of a white ground; a cell's truth is where its middle comes to lie."""
    height, width = image.shape[:2]
    small_height, small_width = round(height * factor), round(width * factor)
    top, left = (height - small_height) * down, (width - small_width) * right
    pixels = np.full_like(image, WHITE)
    small = Image.fromarray(image).resize((small_width, small_height), Image.Resampling.BILINEAR)
    pixels[top : top + small_height, left : left + small_width] = np.asarray(small)
    rows, columns = np.divmod(np.arange(grid.size), grid.columns)
    middles_y = top + (rows + 0.5) / grid.rows * small_height
    middles_x = left + (columns + 0.5) / grid.columns * small_width
    truth = (middles_y * grid.rows // height).astype(np.intp) * grid.columns
    return Copy(
        kind="shrunk", image=image, pixels=pixels, truth=truth + (middles_x * grid.columns // width).astype(np.intp)
    )


def covered(image: Pixels, grid: CellGrid, row: int, column: int) -> Copy:
    """Paint a block of 2 x 2 cells with the mean colour: its cells have no true place, all others their own."""
    block = [(row + r) * grid.columns + column + c for r, c in product(range(COVERED_ROWS), range(COVERED_COLUMNS))]
    truth = np.arange(grid.size)
    truth[block] = NO_CELL
    return Copy(kind="covered", image=image, pixels=blanked(image, grid, block, Fill.MEAN), truth=truth)


def copies(images: Sequence[Pixels], grid: CellGrid) -> list[Copy]:
    """Return one copy of each kind per image; directions and places take turns."""
    steps = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]
    corners = list(product((False, True), repeat=2))
    blocks = list(product(range(grid.rows - COVERED_ROWS + 1), range(grid.columns - COVERED_COLUMNS + 1)))
    return [
        made
        for index, image in enumerate(images)
        for made in (
            shifted(image, grid, *steps[index % len(steps)]),
            shrunk(image, grid, SHRINK_TO, *corners[index % len(corners)]),
            covered(image, grid, *blocks[index % len(blocks)]),
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """Where the flows of one pair end; all but `asked_flows` are shares, of mass or of a number of flows.

    mass, mass_near: of the mass that leaves cells with a true place, what lands on it, and at most one cell off.
    flows, flows_near: the same for the first flows that are shown and leave such a cell; asked_flows: how many those
    are. NaN where there is none.
    chance_near: what lands at most one cell off when all cells are equally likely.
    """

    mass: float
    mass_near: float
    flows: float
    flows_near: float
    asked_flows: int
    chance_near: float


def landed(
    flow: MatchingFlow, shown: Sequence[Flow], truth: NDArray[np.intp], counted: NDArray[np.bool_], grid: CellGrid
) -> Landed:
    """Judge a plan [R, R] and the flows `shown` by truth int [R], for the query cells in `counted`, bool [R]."""
    asked = counted & (truth != NO_CELL)
    near = _near(grid)
    mass = flow.plan[:, asked]
    total = float(mass.sum()) or 1.0
    places = truth[asked]
    on_truth = [(each.image_cell, truth[each.query_cell]) for each in shown if asked[each.query_cell]]
    return Landed(
        mass=float(mass[places, np.arange(len(places))].sum()) / total,
        mass_near=float((mass * near[:, places]).sum()) / total,
        flows=float(np.mean([cell == true for cell, true in on_truth])) if on_truth else float("nan"),
        flows_near=float(np.mean([near[cell, true] for cell, true in on_truth])) if on_truth else float("nan"),
        asked_flows=len(on_truth),
        chance_near=float(near[:, places].mean()) if len(places) else float("nan"),
    )


def _near(grid: CellGrid) -> NDArray[np.bool_]:
    """Return bool [R, R]: at most one row and one column apart."""
    rows, columns = np.divmod(np.arange(grid.size), grid.columns)
    apart = np.maximum(np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns))
    close: NDArray[np.bool_] = apart <= 1
    return close


def localisation(
    pairs: Sequence[tuple[Copy, Features, Features]],
    matchers: Mapping[str, MatchSettings],
    shown: Callable[[MatchingFlow, CellGrid], Sequence[Flow]],
    grid: CellGrid,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by kind and matcher the means of Landed over pairs of (copy, features of the image, of the copy)."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for kind in dict.fromkeys(copy.kind for copy, _, _ in pairs):
        for name, settings in matchers.items():
            results = []
            for copy, image, changed in pairs:
                if copy.kind == kind:
                    flow = explain(image, changed, settings, grid=grid)
                    results.append(landed(flow, shown(flow, grid), copy.truth, inked(copy.image, grid), grid))
            table.setdefault(kind, {})[name] = _means(results)
    return table


def _means(results: Sequence[Landed]) -> dict[str, float]:
    names = ("mass", "mass_near", "flows", "flows_near", "asked_flows", "chance_near")
    columns = {name: np.array([getattr(each, name) for each in results], float) for name in names}
    return {name: float(column[~np.isnan(column)].mean()) for name, column in columns.items()}
