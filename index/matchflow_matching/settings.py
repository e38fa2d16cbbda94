"""How to match: the family of matchers and their settings."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Self

from matchflow_matching.errors import SettingsInvalidError

EPSILON_RANGE = (0.005, 10.0)
TOLERANCE_RANGE = (1e-6, 1.0)
ITERATIONS_RANGE = (1, 10_000)
GLOBAL_WEIGHT_RANGE = (0.0, 10.0)
SPATIAL_WEIGHT_RANGE = (0.0, 100.0)
MATCHED_MASS_RANGE = (0.05, 1.0)


class MatchMode(enum.StrEnum):
    """How a pair is scored; docs/matchers.md has definitions, sources and bounds.

    S are the cosines of image cells (rows) and query cells (columns), u and v the weights of the two sides. Where a
    spatial weight w is taken, S stands for S - w * d2, with d2 the squared distance of the cells, 1 between opposite
    corners. Each score is sum_ij P_ij S_ij of a plan P that can be shown.
    """

    COSINE = "cosine"
    """The global vectors only; no plan."""
    MAX_SIM = "max_sim"
    """Each query cell takes its best image cell: sum_j v_j max_i S_ij. Takes a spatial weight."""
    CHAMFER = "chamfer"
    """Half max_sim, half its mirror image, in which each image cell takes a query cell. Takes a spatial weight."""
    SAME_CELL = "same_cell"
    """Mean of S_ii: equal positions, no transport. The control."""
    STRIPES = "stripes"
    """Rows of cells aligned from top to bottom by a monotone path: upright people, cut at different heights."""
    STRUCTURAL = "structural"
    """The entropic optimal transport plan for the cost 1 - S: the paper."""
    POSITION_AWARE = "position_aware"
    """The same with a spatial weight: parts may move, but moving costs."""
    EARTH_MOVER = "earth_mover"
    """The exact optimal transport plan. Takes a spatial weight."""
    PARTIAL = "partial"
    """The exact plan that moves only the share `matched_mass`, the cheapest: occlusion. Takes a spatial weight."""


class Marginals(enum.StrEnum):
    """How the weight of each cell is found."""

    CROSS_CORRELATION = "cross_correlation"
    """max(0, cosine with the other image's global vector), normalised to sum 1."""
    SELF_CORRELATION = "self_correlation"
    """max(0, cosine with the image's own global vector), normalised: what the image itself is mostly about."""
    UNIFORM = "uniform"
    """The same for every valid cell."""


SPATIAL_MODES = frozenset(
    {MatchMode.MAX_SIM, MatchMode.CHAMFER, MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER, MatchMode.PARTIAL}
)
# Those with weights on both sides that a plan has to meet.
TRANSPORT_MODES = frozenset({MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER, MatchMode.PARTIAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSettings:
    """How to match. Raises SettingsInvalidError for a value out of its range, or one that the mode does not take.

    global_weight: factor of the cosine in the final score, 0 to 10 (the paper: 1). epsilon: entropic regularisation,
    0.005 to 10; small ones take many iterations. tolerance: a pair stops at this L1 violation of
    its row marginal, 1e-6 to 1. max_iterations: 1 to 10,000. spatial_weight: w, 0 to 100.
    matched_mass: share of the mass that `PARTIAL` moves, 0.05 to 1.
    """

    mode: MatchMode = MatchMode.STRUCTURAL
    global_weight: float = 1.0
    marginals: Marginals = Marginals.CROSS_CORRELATION
    epsilon: float = 0.05
    tolerance: float = 1e-4
    max_iterations: int = 200
    spatial_weight: float = 0.0
    matched_mass: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is out of range, NaN included, and what would be ignored."""
        for name, (low, high) in {
            "global_weight": GLOBAL_WEIGHT_RANGE,
            "epsilon": EPSILON_RANGE,
            "tolerance": TOLERANCE_RANGE,
            "max_iterations": ITERATIONS_RANGE,
            "spatial_weight": SPATIAL_WEIGHT_RANGE,
            "matched_mass": MATCHED_MASS_RANGE,
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsInvalidError(f"{name} must be from {low:g} to {high:g}; got {value:g}", field=name)
        if self.spatial_weight and self.mode not in SPATIAL_MODES:
            hint = f"; choose {MatchMode.POSITION_AWARE}" if self.mode is MatchMode.STRUCTURAL else ""
            raise SettingsInvalidError(
                f"spatial_weight must be 0 with {self.mode}; got {self.spatial_weight:g}{hint}", field="spatial_weight"
            )
        if self.matched_mass != 1 and self.mode is not MatchMode.PARTIAL:
            raise SettingsInvalidError(
                f"matched_mass must be 1 with {self.mode}; got {self.matched_mass:g}", field="matched_mass"
            )

    @classmethod
    def of(cls, mode: MatchMode, **given: Any) -> Self:
        """Return the recommended settings of a mode, with those that are given in their place.

        The paper's for STRUCTURAL; `make bench-accuracy` says what the others' were chosen by.
        """
        return cls(mode=mode, **(RECOMMENDED.get(mode, {}) | given))


_POSITION_AWARE = {"marginals": Marginals.SELF_CORRELATION, "spatial_weight": 1.0, "global_weight": 0.0}
RECOMMENDED: dict[MatchMode, dict[str, Any]] = {
    MatchMode.POSITION_AWARE: _POSITION_AWARE,
    MatchMode.EARTH_MOVER: _POSITION_AWARE,
    MatchMode.PARTIAL: {**_POSITION_AWARE, "matched_mass": 0.75},
}
