"""Options of how pairs are scored, which several commands share, and settings in words."""

from typing import Annotated

import typer

import matchflow
from matchflow import RerankMode

ModeOption = Annotated[
    matchflow.RerankMode | None, typer.Option("--mode", help="How pairs are scored. Default: as the gallery says.")
]
DepthOption = Annotated[
    int | None, typer.Option("--depth", help="Coarse candidates that are re-ranked, 1 to 10,000.", show_default=False)
]
GlobalWeightOption = Annotated[
    float | None, typer.Option("--global-weight", help="Weight of the cosine in the final score, 0 to 10.")
]
MarginalsOption = Annotated[matchflow.Marginals | None, typer.Option("--marginals", help="How cells are weighted.")]
SpatialWeightOption = Annotated[
    float | None, typer.Option("--spatial-weight", help="What it costs a part to move corner to corner, 0 to 100.")
]
MatchedMassOption = Annotated[
    float | None, typer.Option("--matched-mass", help="Share that has to match in mode partial, 0.05 to 1.")
]
EpsilonOption = Annotated[float | None, typer.Option("--epsilon", help="Entropic regularisation.")]
ToleranceOption = Annotated[float | None, typer.Option("--tolerance", help="L1 marginal error to stop at.")]
IterationsOption = Annotated[int | None, typer.Option("--max-iterations", help="Iterations to stop at.")]

ENTROPIC = (RerankMode.STRUCTURAL, RerankMode.POSITION_AWARE)
SPATIAL = (
    *(RerankMode.MAX_SIM, RerankMode.CHAMFER, RerankMode.POSITION_AWARE),
    *(RerankMode.EARTH_MOVER, RerankMode.PARTIAL),
)
WEIGHTED = (*SPATIAL, RerankMode.STRUCTURAL)


def in_words(settings: matchflow.RerankSettings | None) -> str:
    """Return how pairs are scored: the mode and the settings that it uses.

    >>> in_words(matchflow.RerankSettings(
    ...     mode=RerankMode.MAX_SIM, depth=50, tuning=matchflow.Tuning(spatial_weight=2.0, global_weight=0.5)))
    'max_sim, spatial weight 2, global weight 0.5, depth 50'
    """
    if settings is None:
        return "the server does not say how"
    mode, tuning = settings.mode, settings.tuning
    numbers: dict[str, float | None] = {}
    if mode in SPATIAL:
        numbers["spatial weight"] = tuning.spatial_weight
    if mode is RerankMode.PARTIAL:
        numbers["matched mass"] = tuning.matched_mass
    if mode in ENTROPIC:
        numbers["epsilon"] = tuning.epsilon
        numbers["tolerance"] = tuning.tolerance
        numbers["iterations at most"] = tuning.max_iterations
    if mode is not RerankMode.NONE:
        numbers["global weight"] = tuning.global_weight
        numbers["depth"] = settings.depth
    parts = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
    if mode in WEIGHTED and tuning.marginals is not None:
        parts.insert(0, f"{tuning.marginals.replace('_', '-')} weights")
    return ", ".join((mode, *parts))
