"""How the fused Triton kernel is launched: which shapes it takes, and with what arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton

from matchflow_matching.settings import Marginals
from matchflow_matching.torch_values import PADDED_TO, ManyMatches, TopFlows
from matchflow_matching.triton_kernels import CROSS, SELF, UNIFORM, transport

if TYPE_CHECKING:
    from typing import Any

    from matchflow_matching.torch_values import Task

INTERPRETED = triton.knobs.runtime.interpret
LEAST_CELLS, MOST_CELLS = 16, 128
SHORT_DIM = 128
# Over how many lanes an image's cells are spread, by their number padded to a power of two: XL of triton_kernels.
IMAGE_LANES = {16: 2, 32: 4, 64: 8, 128: 8}
# Entries of a pair's matrix that a lane of a warp of its own holds in registers, at most; and of several warps.
MOST_ENTRIES, SHARED_ENTRIES = 128, 64
MOST_REGISTERS = 255
MARGINALS = {
    Marginals.UNIFORM: UNIFORM,
    Marginals.CROSS_CORRELATION: CROSS,
    Marginals.SELF_CORRELATION: SELF,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The shapes that share one compiled kernel: Rx and Rq cells of `dim` bytes, and how they are laid out.

    xl, yl and the logarithms of XR and YR: see triton_kernels. warps: of a program. registers: the most that a lane may
    take; what is spilled is outside of the iterations, and more warps fit. groups: tiles of queries that a program
    works through with the same images.
    """

    rx: int
    rq: int
    dim: int
    xl: int
    yl: int
    log_xr: int
    log_yr: int
    warps: int
    registers: int
    groups: int = 2

    @classmethod
    def of(cls, rx: int, rq: int, dim: int) -> Family | None:
        """Return the family of Rx and Rq cells of dimension D; None where there is none."""
        if max(rx, rq) > MOST_CELLS or dim % PADDED_TO:
            return None
        rows, columns = (max(LEAST_CELLS, triton.next_power_of_2(cells)) for cells in (rx, rq))
        # Long vectors want more pairs for each cell that is read.
        many_pairs = columns == LEAST_CELLS or (columns == 2 * LEAST_CELLS and dim > SHORT_DIM and rows < MOST_CELLS)
        xl, yl = IMAGE_LANES[rows], 4 if many_pairs else 8
        xr, yr = rows // xl, 2 * columns // yl
        return cls(
            rx=rx,
            rq=rq,
            dim=dim,
            xl=xl,
            yl=yl,
            log_xr=xr.bit_length() - 1,
            log_yr=yr.bit_length() - 1,
            warps=1 if xr * yr <= MOST_ENTRIES else xr * yr // SHARED_ENTRIES,
            registers=144 if xr * yr <= MOST_ENTRIES // 2 else MOST_REGISTERS,
        )

    @property
    def images(self) -> int:
        """How many images a program works on."""
        return 8 // self.xl

    @property
    def queries(self) -> int:
        """How many queries a program works on."""
        return 8 // self.yl * self.groups

    def constants(self) -> dict[str, Any]:
        """Return the kernel's constants that the shape decides."""
        return {
            "RX": self.rx,
            "RQ": self.rq,
            "DIM": self.dim,
            "BLOCK_D": next(block for block in (128, 64, 32) if self.dim % block == 0),
            "LXR": self.log_xr,
            "LYR": self.log_yr,
            "XL": self.xl,
            "YL": self.yl,
            "SLICED": self.warps == 1,
            "GROUPS": self.groups,
        }

    def options(self, flows: int) -> dict[str, Any]:
        """Return the compiler's options; finding the top flows takes registers of its own."""
        registers = MOST_REGISTERS if flows else self.registers
        return {"num_warps": self.warps, "num_stages": 2, "maxnreg": registers, "enable_fp_fusion": True}


def launch(task: Task, family: Family) -> ManyMatches:
    """Solve all pairs in one launch."""
    queries, candidates, settings = task.queries, task.candidates, task.settings
    q, n, device = len(queries), len(candidates), queries.device
    floats = torch.empty((4, q, n), dtype=torch.float32, device=device)
    iterations = torch.empty((q, n), dtype=torch.int32, device=device)
    flags = torch.empty((3, q, n), dtype=torch.int8, device=device)
    flow_cells = torch.empty((q, n, task.flows), dtype=torch.int32, device=device)
    flow_values = torch.empty((2, q, n, task.flows), dtype=torch.float32, device=device)
    if q and n:
        transport[triton.cdiv(n, family.images), triton.cdiv(q, family.queries)](
            candidates.cells,
            candidates.digits,
            candidates.scales,
            candidates.peaks,
            candidates.attention,
            candidates.readable.view(torch.int8),
            flags if task.image_masks is None else task.image_masks.view(torch.int8),
            queries.cells,
            queries.digits,
            queries.scales,
            queries.peaks,
            queries.attention,
            flags if task.query_masks is None else task.query_masks.view(torch.int8),
            floats if task.places is None else task.places[0],
            floats if task.places is None else task.places[1],
            floats,
            iterations,
            flags,
            flow_cells,
            flow_values,
            n,
            q,
            task.exponent_factor,
            math.log(2) * settings.epsilon,
            settings.tolerance,
            settings.global_weight,
            -1.0 - settings.spatial_weight,
            settings.max_iterations,
            MARGINALS=MARGINALS[settings.marginals],
            SPATIAL=task.places is not None,
            IMAGE_MASKED=task.image_masks is not None,
            QUERY_MASKED=task.query_masks is not None,
            FLOWS=task.flows,
            FAST=not INTERPRETED,
            **family.constants(),
            **family.options(task.flows),
        )
    cosine, structural, score, marginal_error = floats
    converged, query_uniform, image_uniform = flags.view(torch.bool)
    return ManyMatches(
        cosine=cosine,
        structural=structural,
        score=score,
        iterations=iterations,
        marginal_error=marginal_error,
        converged=converged,
        query_uniform=query_uniform,
        image_uniform=image_uniform,
        flows=_top_flows(task, flow_cells, flow_values) if task.flows else None,
    )


def _top_flows(task: Task, cells: torch.Tensor, values: torch.Tensor) -> TopFlows:
    """Take flat places [Q, N, F], -1 for none, and masses and values [2, Q, N, F] apart."""
    columns, (masses, worths) = task.queries.cells_per_image, values
    # What is no number says nothing about the pair.
    sound = task.candidates.readable[:, None] & torch.isfinite(values).all(0)
    found = (cells >= 0) & sound.all(-1, keepdim=True)
    if task.penalties is not None:
        worths = worths + task.penalties.flatten()[cells.clamp(min=0).long()]
    return TopFlows(
        image_cells=torch.where(found, cells // columns, -1),
        query_cells=torch.where(found, cells % columns, -1),
        masses=torch.where(found, masses, 0.0),
        similarities=torch.where(found, worths, 0.0),
    )
