"""How pairs are scored: from the message Rerank to settings, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from matchflow.v1 import matching_pb2
from matchflow_index import MatchDefaults
from matchflow_matching import Marginals, MatchMode, MatchSettings, SettingsInvalidError
from matchflow_matching.settings import (
    EPSILON_RANGE,
    GLOBAL_WEIGHT_RANGE,
    ITERATIONS_RANGE,
    MATCHED_MASS_RANGE,
    SPATIAL_WEIGHT_RANGE,
    TOLERANCE_RANGE,
)
from matchflow_service import fields
from matchflow_service.errors import FieldInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matchflow_index import Gallery

V = TypeVar("V")
MAX_DEPTH = 10_000
# What no gallery's default has changed: the paper's way.
PAPER = MatchDefaults()
MODES = {
    matching_pb2.RERANK_MODE_NONE: MatchMode.COSINE,
    matching_pb2.RERANK_MODE_MAX_SIM: MatchMode.MAX_SIM,
    matching_pb2.RERANK_MODE_CHAMFER: MatchMode.CHAMFER,
    matching_pb2.RERANK_MODE_SAME_CELL: MatchMode.SAME_CELL,
    matching_pb2.RERANK_MODE_STRIPES: MatchMode.STRIPES,
    matching_pb2.RERANK_MODE_STRUCTURAL: MatchMode.STRUCTURAL,
    matching_pb2.RERANK_MODE_POSITION_AWARE: MatchMode.POSITION_AWARE,
    matching_pb2.RERANK_MODE_EARTH_MOVER: MatchMode.EARTH_MOVER,
    matching_pb2.RERANK_MODE_PARTIAL: MatchMode.PARTIAL,
}
MARGINALS = {
    matching_pb2.MARGINALS_CROSS_CORRELATION: Marginals.CROSS_CORRELATION,
    matching_pb2.MARGINALS_SELF_CORRELATION: Marginals.SELF_CORRELATION,
    matching_pb2.MARGINALS_UNIFORM: Marginals.UNIFORM,
}
MODE_NUMBERS = {mode: number for number, mode in MODES.items()}
MARGINALS_NUMBERS = {marginals: number for number, marginals in MARGINALS.items()}
REALS: Mapping[
    Literal["global_weight", "epsilon", "tolerance", "spatial_weight", "matched_mass"], tuple[float, float]
] = {
    "global_weight": GLOBAL_WEIGHT_RANGE,
    "epsilon": EPSILON_RANGE,
    "tolerance": TOLERANCE_RANGE,
    "spatial_weight": SPATIAL_WEIGHT_RANGE,
    "matched_mass": MATCHED_MASS_RANGE,
}


def parse_rerank(
    message: matching_pb2.Rerank, default: MatchDefaults = PAPER, *, field: str = "rerank"
) -> MatchDefaults:
    """Return how pairs are scored, and how many; raises FieldInvalidError.

    Without a mode it is `default`, with a mode what is recommended for that; what the message says besides replaces it.
    """
    if message.mode == matching_pb2.RERANK_MODE_UNSPECIFIED:
        settings, depth = written(default.settings), default.depth
    else:
        settings, depth = MatchSettings.of(_known(MODES, message.mode, f"{field}.mode", "RerankMode")), PAPER.depth
    if message.marginals != matching_pb2.MARGINALS_UNSPECIFIED:
        marginals = _known(MARGINALS, message.marginals, f"{field}.marginals", "Marginals")
        settings = replace(settings, marginals=marginals)
    for name, (low, high) in REALS.items():
        if message.HasField(name):
            value = fields.real(getattr(message, name), f"{field}.{name}", low=low, high=high)
            settings = _with(settings, name, value, field)
    if message.HasField("max_iterations"):
        low, high = ITERATIONS_RANGE
        limit = fields.whole(message.max_iterations, f"{field}.max_iterations", low=low, high=high)
        settings = replace(settings, max_iterations=limit)
    if message.HasField("depth"):
        depth = fields.whole(message.depth, f"{field}.depth", low=1, high=MAX_DEPTH)
    return MatchDefaults(settings=settings, depth=depth)


def rerank_in(gallery: Gallery, message: matching_pb2.Rerank) -> MatchDefaults:
    """Return how pairs of a gallery are scored, and how many; blocks, raises FieldInvalidError.

    Defaults that can't be read are in nobody's way who names a mode.
    """
    named = message.mode != matching_pb2.RERANK_MODE_UNSPECIFIED
    return parse_rerank(message, PAPER if named else gallery.match_defaults)


def rerank_message(settings: MatchSettings, depth: int | None = None) -> matching_pb2.Rerank:
    """Return the message that parse_rerank reads as these settings, whatever the defaults are then."""
    return matching_pb2.Rerank(
        mode=MODE_NUMBERS[settings.mode],
        depth=depth,
        marginals=MARGINALS_NUMBERS[settings.marginals],
        max_iterations=settings.max_iterations,
        **{name: getattr(settings, name) for name in REALS},
    )


def written(settings: MatchSettings) -> MatchSettings:
    """Return settings as the wire gives them back, so that a reply's settings give the very same scores again.

    Defaults need not have come over the wire, and then may have more digits than float32 has.
    """
    reals: dict[str, Any] = {name: fields.written(getattr(settings, name)) for name in REALS}
    return replace(settings, **reals)


def _with(settings: MatchSettings, name: str, value: float, field: str) -> MatchSettings:
    """Return settings with one more; FieldInvalidError when the mode has no use for it."""
    changed: dict[str, Any] = {name: value}
    try:
        return replace(settings, **changed)
    except SettingsInvalidError as error:
        description = str(error).replace(f"{name} must be", "expected", 1).replace(MatchMode.COSINE, "none")
        raise FieldInvalidError(f"{field}.{name}", description) from error


def _known(table: Mapping[Any, V], number: int, field: str, enum: str) -> V:
    try:
        return table[number]
    except KeyError:
        raise FieldInvalidError(field, f"expected a value of {enum}; got {number}") from None
