"""Many queries against many candidates on a torch device: scores, certificates and top flows of all pairs.

The same scores as `match`, which needs no torch. On an NVIDIA GPU, entropic transport runs in one fused Triton kernel;
every other device, matcher and shape takes plain torch operations.
"""

from __future__ import annotations

import importlib.util
import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch

from matchflow_matching.errors import FeaturesInvalidError, SettingsInvalidError
from matchflow_matching.matchers import penalties
from matchflow_matching.matching import UNREADABLE_COSINE
from matchflow_matching.positions import coordinates
from matchflow_matching.settings import Marginals, MatchMode
from matchflow_matching.torch_matchers import MATCHERS, PairProducts, joined, whole_products
from matchflow_matching.torch_values import DeviceBatch, ManyMatches, Task, TopFlows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid
    from matchflow_matching.settings import MatchSettings

    Mask = NDArray[np.bool_] | torch.Tensor

__all__ = ["DeviceBatch", "Engine", "ManyMatches", "TopFlows", "match_many"]

Engine = Literal["auto", "torch", "triton"]
ENTROPIC_MODES = (MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE)
MEMORY_BYTES = 512 * 2**20
# Arrays [Rx, Rq] of four bytes that a chunk holds per pair at its fullest.
ARRAYS_PER_PAIR = 8


def match_many(
    queries: DeviceBatch,
    candidates: DeviceBatch,
    settings: MatchSettings,
    *,
    grid: CellGrid | None = None,
    image_grid: CellGrid | None = None,
    query_masks: Mask | None = None,
    image_masks: Mask | None = None,
    flows: int = 0,
    engine: Engine = "auto",
    memory_bytes: int = MEMORY_BYTES,
) -> ManyMatches:
    """Score Q queries against N candidates, each pair as `match` does.

    `grid` is that of the queries, and of the candidates unless `image_grid` says otherwise. Masks: bool [Q, Rq] and
    [N, Rx], true for cells that count. flows: how many top flows to return of each pair. engine: "triton" is one launch
    for all pairs (entropic transport; CUDA tensors, or Triton's interpreter); "torch" works in chunks that take about
    `memory_bytes`; "auto" takes Triton where it can.
    A candidate with numbers that are not finite gets the least cosine and structural score there are, and is not
    converged. Raises FeaturesInvalidError when shapes or devices disagree, a grid is missing or a query is not finite,
    and SettingsInvalidError for a mode that is not here or an engine that cannot take it.
    """
    if settings.mode not in MATCHERS:
        raise SettingsInvalidError(
            f"{settings.mode} does not run on torch devices; {', '.join(MATCHERS)} do", field="mode"
        )
    if flows < 0:
        raise SettingsInvalidError(f"the number of flows must be at least 0; got {flows}")
    task = _task(
        queries,
        candidates,
        settings,
        grids=(image_grid or grid, grid),
        masks=(_mask(image_masks, candidates, "image_masks"), _mask(query_masks, queries, "query_masks")),
        flows=flows,
    )
    matches = None if engine == "torch" else _by_triton(task)
    if matches is None and engine == "triton":
        raise SettingsInvalidError(
            f"Triton takes {' and '.join(ENTROPIC_MODES)} of at most 128 cells a side, on CUDA, with costs that "
            f"float32 carries; got {settings.mode} of {candidates.cells_per_image} and {queries.cells_per_image} "
            f"cells on {queries.device}"
        )
    return matches or _by_torch(task, memory_bytes)


def _task(
    queries: DeviceBatch,
    candidates: DeviceBatch,
    settings: MatchSettings,
    *,
    grids: tuple[CellGrid | None, CellGrid | None],
    masks: tuple[torch.Tensor | None, torch.Tensor | None],
    flows: int,
) -> Task:
    if queries.device != candidates.device:
        raise FeaturesInvalidError(f"queries are on {queries.device}, candidates on {candidates.device}")
    if queries.dim != candidates.dim:
        raise FeaturesInvalidError(f"queries have dimension {queries.dim}, candidates {candidates.dim}")
    if not queries.all_readable:
        raise FeaturesInvalidError("a query holds numbers that are not finite")
    shape = candidates.cells_per_image, queries.cells_per_image
    if settings.mode is MatchMode.SAME_CELL and shape[0] != shape[1]:
        raise FeaturesInvalidError(f"same_cell needs as many image cells as query cells; got {shape[0]} and {shape[1]}")
    # Says what is wrong with the grids, if anything.
    penalties(shape, settings, *grids)
    image_grid, query_grid = grids
    distances = None
    if settings.spatial_weight and image_grid and query_grid:
        distances = _distances(image_grid, query_grid, settings, queries.device)
    return Task(
        queries=queries,
        candidates=candidates,
        settings=settings,
        penalties=None if distances is None else distances[0],
        places=None if distances is None else distances[1:],
        query_masks=masks[1],
        image_masks=masks[0],
        flows=min(flows, shape[0] * shape[1]),
    )


# Copying to a device waits for it, and few grids and settings are in use at a time.
@lru_cache(maxsize=64)
def _distances(
    image_grid: CellGrid, query_grid: CellGrid, settings: MatchSettings, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the penalties, and the places of the image's and the query's cells, of Task."""
    factor = math.sqrt(settings.spatial_weight * math.log2(math.e) / settings.epsilon)
    arrays = (
        penalties((image_grid.size, query_grid.size), settings, image_grid, query_grid),
        coordinates(image_grid, query_grid) * factor,
        coordinates(query_grid, query_grid) * factor,
    )
    distant, image_places, query_places = (torch.tensor(array, dtype=torch.float32, device=device) for array in arrays)
    return distant, image_places, query_places


def _mask(mask: Mask | None, batch: DeviceBatch, name: str) -> torch.Tensor | None:
    if mask is None:
        return None
    tensor = torch.as_tensor(mask, device=batch.device)
    if tensor.shape != batch.scales.shape or tensor.dtype != torch.bool:
        raise FeaturesInvalidError(
            f"{name} must be bool {list(batch.scales.shape)}; got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor.contiguous()


def _by_triton(task: Task) -> ManyMatches | None:
    """Return what the fused kernel answers, None where it cannot take the task."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    suitable = task.settings.mode in ENTROPIC_MODES and not task.in_logarithms
    if not suitable or not (interpreted or task.queries.device.type == "cuda"):
        return None
    if not _has_triton():
        return None
    from matchflow_matching.triton_matching import Family, launch  # noqa: PLC0415

    family = Family.of(task.candidates.cells_per_image, task.queries.cells_per_image, task.queries.padded_dim)
    return None if family is None else launch(task, family)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    """Torch's own wheels for processors, and those for some systems, come without it."""
    return importlib.util.find_spec("triton") is not None


def _by_torch(task: Task, memory_bytes: int) -> ManyMatches:
    queries, candidates = task.queries, task.candidates
    entries = ARRAYS_PER_PAIR * candidates.cells_per_image * queries.cells_per_image
    pair_bytes = 4 * ((2 if task.in_logarithms else 1) * entries + 4 * queries.dim)
    columns = max(1, min(len(candidates), memory_bytes // pair_bytes))
    rows = max(1, min(len(queries), memory_bytes // pair_bytes // columns))
    # At least one chunk, which can be empty.
    bands = []
    for top in range(0, max(1, len(queries)), rows):
        band = [
            _chunk(task, slice(top, top + rows), slice(left, left + columns))
            for left in range(0, max(1, len(candidates)), columns)
        ]
        bands.append(ManyMatches.put_together(band, 1))
    return ManyMatches.put_together(bands, 0)


def _chunk(task: Task, rows: slice, columns: slice) -> ManyMatches:
    candidates, settings = task.candidates, task.settings
    cosine = _cosines(task.queries.embeddings[rows], candidates.embeddings[columns])
    shape = q, n = cosine.shape
    products = _products(task, rows, columns)
    solved = MATCHERS[settings.mode](products, settings, in_logarithms=task.in_logarithms)
    contributions = (solved.plans * products.values).flatten(1)
    structural = contributions.sum(1).view(shape)
    readable = candidates.readable[columns] & torch.isfinite(cosine) & torch.isfinite(structural)
    least = float(UNREADABLE_COSINE)
    cosine = torch.where(readable, cosine, least)
    structural = torch.where(readable, structural, least - settings.spatial_weight)
    marginal_error = torch.where(readable, solved.marginal_error.view(shape), 0.0)
    plans = torch.where(readable.view(-1, 1, 1), solved.plans, 0.0)
    return ManyMatches(
        cosine=cosine,
        structural=structural,
        score=structural + settings.global_weight * cosine,
        iterations=solved.iterations.view(shape),
        marginal_error=marginal_error,
        converged=(marginal_error <= settings.tolerance) & readable,
        query_uniform=solved.query_uniform.view(shape),
        image_uniform=solved.image_uniform.view(shape),
        flows=_top_flows(contributions, plans, products.similarities, task.flows, (q, n)) if task.flows else None,
    )


def _cosines(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return the cosines of embeddings [Q, D] and [N, D], summed in float64 where the device has it."""
    wide = torch.float32 if queries.device.type == "mps" else torch.float64
    return (queries[:, None, :].to(wide) * candidates[None, :, :].to(wide)).sum(2).float()


def _products(task: Task, rows: slice, columns: slice) -> PairProducts:
    cells, scales = task.queries.cells[rows], task.queries.scales[rows]
    image_cells, image_scales = task.candidates.cells[columns], task.candidates.scales[columns]
    (q, rq, dim), (n, rx, _) = cells.shape, image_cells.shape
    whole = whole_products(cells.reshape(q * rq, dim), image_cells.reshape(n * rx, dim))
    similarities = whole.view(q, rq, n, rx).permute(0, 2, 3, 1).float()
    similarities = similarities * image_scales[None, :, :, None] * scales[:, None, None, :]
    similarities = similarities.reshape(q * n, rx, rq).contiguous()
    if task.settings.marginals is Marginals.SELF_CORRELATION:
        image_attention = task.candidates.attention[columns]
        query_attention = task.queries.attention[rows][:, None, :]
    else:
        parts = whole_products(task.queries.digits[rows].reshape(-1, dim), image_cells.reshape(n * rx, dim))
        image_attention = joined(parts.view(q, 3, n, rx).transpose(0, 1)) * image_scales
        parts = whole_products(task.candidates.digits[columns].reshape(-1, dim), cells.reshape(q * rq, dim))
        query_attention = joined(parts.view(n, 3, q, rq).permute(1, 2, 0, 3)) * scales[:, None, :]
    every = torch.ones((), dtype=torch.bool, device=whole.device)
    image_valid = every if task.image_masks is None else task.image_masks[columns]
    query_valid = every if task.query_masks is None else task.query_masks[rows][:, None, :]
    return PairProducts(
        similarities=similarities,
        values=similarities if task.penalties is None else similarities - task.penalties,
        image_attention=image_attention.expand(q, n, rx).reshape(q * n, rx),
        query_attention=query_attention.expand(q, n, rq).reshape(q * n, rq),
        image_valid=image_valid.expand(q, n, rx).reshape(q * n, rx),
        query_valid=query_valid.expand(q, n, rq).reshape(q * n, rq),
    )


def _top_flows(
    contributions: torch.Tensor, plans: torch.Tensor, similarities: torch.Tensor, count: int, shape: tuple[int, int]
) -> TopFlows:
    masses = plans.flatten(1)
    ranked = torch.where(masses > 0, contributions, -torch.inf)
    at = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :count]
    mass = masses.gather(1, at)
    columns = plans.shape[2]

    def shown(values: torch.Tensor, absent: float) -> torch.Tensor:
        return torch.where(mass > 0, values, absent).view(*shape, count)

    return TopFlows(
        image_cells=shown(at // columns, -1).int(),
        query_cells=shown(at % columns, -1).int(),
        masses=shown(mass, 0.0),
        similarities=shown(similarities.flatten(1).gather(1, at), 0.0),
    )
