"""Every way to match many queries with many candidates behind one face, the float64 reference included."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Marginals,
    MatchMode,
    MatchSettings,
    dequantise,
    explain_batch,
    match,
    reference,
    top_flows,
)
from matchflow_matching.positions import squared_distances
from matchflow_matching.torch_matching import DeviceBatch, Engine, match_many

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

ENTROPIC = frozenset({MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE})
ON_DEVICES = ENTROPIC | {MatchMode.COSINE, MatchMode.MAX_SIM, MatchMode.CHAMFER, MatchMode.SAME_CELL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Queries, candidates and how to match them; see matchflow_matching.match."""

    queries: FeatureBatch
    candidates: FeatureBatch
    settings: MatchSettings
    grid: CellGrid | None = None
    image_grid: CellGrid | None = None
    query_masks: NDArray[np.bool_] | None = None
    image_masks: NDArray[np.bool_] | None = None
    flows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Matches holds, [Q, N] each; flows [Q, N, F, 4]: image cell, query cell, mass, similarity."""

    cosine: NDArray[Any]
    structural: NDArray[Any]
    score: NDArray[Any]
    iterations: NDArray[Any]
    marginal_error: NDArray[Any]
    converged: NDArray[Any]
    query_uniform: NDArray[Any]
    image_uniform: NDArray[Any]
    flows: NDArray[Any] | None = None

    @classmethod
    def stack(cls, rows: list[Any], flows: list[Any]) -> Self:
        """Return one answer from one row per query, anything with these attributes."""
        names = [field.name for field in fields(cls) if field.name != "flows"]
        return cls(
            **{name: np.stack([getattr(row, name) for row in rows]) for name in names},
            flows=np.array(flows) if flows else None,
        )


class Matcher(Protocol):
    """One implementation. `modes` are those it has; `exactly` whether a pair's bits never depend on its batch."""

    @property
    def modes(self) -> frozenset[MatchMode]: ...

    @property
    def exactly(self) -> bool: ...

    def match(self, work: Work) -> Answer:
        """Score every pair."""


class Processor:
    """The compiled kernels on one core: `match`, query by query."""

    modes = ON_DEVICES
    exactly = True

    def match(self, work: Work) -> Answer:
        """Score every pair."""
        rows, flows = [], []
        for index in range(len(work.queries)):
            query = work.queries[index]
            places: dict[str, Any] = {
                "grid": work.grid,
                "image_grid": work.image_grid,
                "query_mask": None if work.query_masks is None else work.query_masks[index],
                "image_masks": work.image_masks,
            }
            rows.append(match(query, work.candidates, work.settings, **places))
            if work.flows:
                plans = explain_batch(query, work.candidates, work.settings, **places)
                # Devices order by contribution, as is done without grids.
                tops = [top_flows(replace(plan, image_grid=None, query_grid=None), work.flows) for plan in plans]
                flows.append(
                    [
                        [[flow.image_cell, flow.query_cell, flow.mass, flow.similarity] for flow in top]
                        + [[-1, -1, 0, 0]] * (work.flows - len(top))
                        for top in tops
                    ]
                )
        return Answer.stack(rows, flows)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """`match_many` on a torch device."""

    device: str
    engine: Engine
    memory_bytes: int = 2**28

    @property
    def modes(self) -> frozenset[MatchMode]:
        """Those of the engine."""
        return ENTROPIC if self.engine == "triton" else ON_DEVICES

    @property
    def exactly(self) -> bool:
        """Torch's sums on a GPU may be cut differently for another shape."""
        return self.device == "cpu" or self.engine == "triton"

    def match(self, work: Work) -> Answer:
        """Score every pair."""
        many = match_many(
            DeviceBatch.upload(work.queries, self.device),
            DeviceBatch.upload(work.candidates, self.device),
            work.settings,
            grid=work.grid,
            image_grid=work.image_grid,
            query_masks=work.query_masks,
            image_masks=work.image_masks,
            flows=work.flows,
            engine=self.engine,
            memory_bytes=self.memory_bytes,
        )
        names = [field.name for field in fields(Answer) if field.name != "flows"]
        flows = many.flows and [
            many.flows.image_cells,
            many.flows.query_cells,
            many.flows.masses,
            many.flows.similarities,
        ]
        return Answer(
            **{name: getattr(many, name).cpu().numpy() for name in names},
            flows=torch.stack([part.double() for part in flows], 3).cpu().numpy() if flows else None,
        )


class Interpreted:
    """The Triton kernel in Triton's interpreter, in a process of its own: Triton decides at import which it is."""

    modes = ENTROPIC
    exactly = True

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("interpreted_triton.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def match(self, work: Work) -> Answer:
        """Score every pair."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump(work, self.process.stdin)
        self.process.stdin.flush()
        answer: Answer | Exception = pickle.load(self.process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@dataclass(frozen=True, slots=True)
class _Row:
    cosine: list[float]
    structural: list[float]
    score: list[float]
    iterations: list[int]
    marginal_error: list[float]
    converged: list[bool]
    query_uniform: list[bool]
    image_uniform: list[bool]


class Reference:
    """reference.py, pair by pair in float64, on what is stored."""

    modes = ON_DEVICES
    exactly = True

    def match(self, work: Work) -> Answer:
        """Score every pair of finite numbers."""
        rows = []
        for q in range(len(work.queries)):
            row = _Row([], [], [], [], [], [], [], [])
            for n in range(len(work.candidates)):
                self._pair(work, q, n, row)
            rows.append(row)
        return Answer.stack(rows, [])

    def _pair(self, work: Work, q: int, n: int, row: _Row) -> None:
        settings = work.settings
        z_q, z_x = (dequantise(batch)[at].astype(np.float64) for batch, at in ((work.queries, q), (work.candidates, n)))
        g_q, g_x = work.queries.embeddings[q].astype(np.float64), work.candidates.embeddings[n].astype(np.float64)
        image_mask = np.ones(len(z_x), np.bool_) if work.image_masks is None else work.image_masks[n]
        query_mask = np.ones(len(z_q), np.bool_) if work.query_masks is None else work.query_masks[q]
        if settings.marginals is Marginals.UNIFORM:
            (u, u_uniform), (v, v_uniform) = (
                (reference.uniform_weights(mask), False) for mask in (image_mask, query_mask)
            )
        else:
            other, own = (g_q, g_x), (g_x, g_q)
            seen_by = own if settings.marginals is Marginals.SELF_CORRELATION else other
            u, u_uniform = reference.correlation_weights(z_x, seen_by[0], image_mask)
            v, v_uniform = reference.correlation_weights(z_q, seen_by[1], query_mask)
        values = reference.similarities(z_x, z_q)
        if settings.spatial_weight:
            assert work.grid is not None
            values = values - settings.spatial_weight * squared_distances(work.image_grid or work.grid, work.grid)
        solvable = image_mask.any() and query_mask.any()
        structural, iterations, error = 0.0, 0, 0.0
        if settings.mode in ENTROPIC and solvable:
            plan = reference.sinkhorn(
                values, u, v, epsilon=settings.epsilon, tolerance=settings.tolerance, limit=settings.max_iterations
            )
            structural, iterations, error = float((plan.plan * values).sum()), plan.iterations, plan.marginal_error
        elif settings.mode is MatchMode.SAME_CELL:
            structural = reference.same_cell(values, image_mask, query_mask)
        elif settings.mode in {MatchMode.MAX_SIM, MatchMode.CHAMFER} and solvable:
            structural = reference.max_sim(values, v, image_mask)
            if settings.mode is MatchMode.CHAMFER:
                structural = (structural + reference.max_sim(values.T, u, query_mask)) / 2
        if settings.mode in {MatchMode.COSINE, MatchMode.SAME_CELL}:
            u_uniform = v_uniform = False
        if settings.mode is MatchMode.MAX_SIM:
            u_uniform = False
        cosine = float(g_q @ g_x)
        row.cosine.append(cosine)
        row.structural.append(structural)
        row.score.append(structural + settings.global_weight * cosine)
        row.iterations.append(iterations)
        row.marginal_error.append(error)
        row.converged.append(error <= settings.tolerance)
        row.query_uniform.append(bool(v_uniform and query_mask.any()))
        row.image_uniform.append(bool(u_uniform and image_mask.any()))


def some_of(work: Work, queries: list[int], candidates: list[int]) -> Work:
    """Return the work with only these queries and candidates, in this order."""
    q, n = np.array(queries, np.intp), np.array(candidates, np.intp)
    return replace(
        work,
        queries=work.queries.take(q),
        candidates=work.candidates.take(n),
        query_masks=None if work.query_masks is None else work.query_masks[q],
        image_masks=None if work.image_masks is None else work.image_masks[n],
    )
