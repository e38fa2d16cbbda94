"""How pairs are matched, as plain frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RerankMode(enum.StrEnum):
    """How candidates are scored in the second stage; matching.proto has the formulas."""

    NONE = "none"
    """Coarse order only."""
    MAX_SIM = "max_sim"
    """Each query cell takes its best image cell."""
    CHAMFER = "chamfer"
    """The mean of max_sim in both directions."""
    SAME_CELL = "same_cell"
    """Mean cosine of cells at equal positions: the control that knows no transport."""
    STRIPES = "stripes"
    """Rows of cells aligned from top to bottom, for upright people."""
    STRUCTURAL = "structural"
    """Entropic optimal transport between the cells: the paper."""
    POSITION_AWARE = "position_aware"
    """The same, where it costs a part to move."""
    EARTH_MOVER = "earth_mover"
    """The plan of the largest score there is."""
    PARTIAL = "partial"
    """The best plan that has to match only a share of the mass, for things partly covered."""


class Marginals(enum.StrEnum):
    """How the weight of each cell is found."""

    CROSS_CORRELATION = "cross_correlation"
    """Cosine with the other image's global vector, where positive."""
    SELF_CORRELATION = "self_correlation"
    """Cosine with the image's own global vector, where positive."""
    UNIFORM = "uniform"
    """Every cell weighs the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How pairs are matched; None leaves a setting to the server.

    It then has the value recommended for the mode or, where no mode is given, that of the gallery's default.
    """

    global_weight: float | None = None
    """Weight of the cosine in the final score, 0 to 10."""
    marginals: Marginals | None = None
    epsilon: float | None = None
    """Entropic regularisation, 0.005 to 10."""
    tolerance: float | None = None
    """The solver stops for a pair at this L1 marginal error, 1e-6 to 1."""
    max_iterations: int | None = None
    """... or after so many iterations, 1 to 10,000."""
    spatial_weight: float | None = None
    """What moving from corner to corner costs, 0 to 100; for position_aware, earth_mover, partial, max_sim, chamfer."""
    matched_mass: float | None = None
    """Share of the mass that must be matched, 0.05 to 1; for partial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankSettings:
    """How pairs were scored, with every setting; to score so again, hand on `mode`, `depth` and `tuning`.

    depth: None for a single pair, which needs none.
    """

    mode: RerankMode
    depth: int | None
    tuning: Tuning
