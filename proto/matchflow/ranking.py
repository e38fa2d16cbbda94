"""How pairs are scored: the options as messages, and settings read back."""

from __future__ import annotations

import ctypes
from typing import Literal

from matchflow.matching import Marginals, RerankMode, RerankSettings, Tuning
from matchflow.v1 import matching_pb2

MODES = {matching_pb2.RerankMode.Value(f"RERANK_MODE_{mode.name}"): mode for mode in RerankMode}
MARGINALS = {matching_pb2.Marginals.Value(f"MARGINALS_{marginals.name}"): marginals for marginals in Marginals}
REALS: tuple[Literal["global_weight", "epsilon", "tolerance", "spatial_weight", "matched_mass"], ...] = (
    *("global_weight", "epsilon", "tolerance"),
    *("spatial_weight", "matched_mass"),
)
# So many digits tell every float32 from its neighbours.
FLOAT32_DIGITS = 9


def rerank(mode: RerankMode | str | None, tuning: Tuning | None, *, depth: int | None = None) -> matching_pb2.Rerank:
    """Return how candidates are scored; raises ValueError for a mode that does not exist."""
    settings = tuning or Tuning()
    message = matching_pb2.Rerank(
        depth=depth,
        max_iterations=settings.max_iterations,
        **{name: getattr(settings, name) for name in REALS},
    )
    if mode is not None:
        message.mode = matching_pb2.RerankMode.Value(f"RERANK_MODE_{RerankMode(mode).name}")
    if settings.marginals is not None:
        message.marginals = matching_pb2.Marginals.Value(f"MARGINALS_{Marginals(settings.marginals).name}")
    return message


def rerank_settings(message: matching_pb2.Rerank) -> RerankSettings | None:
    """Return the settings that a reply states; None where it states none, or a mode that this client does not know."""
    mode = MODES.get(message.mode)
    if mode is None:
        return None
    reals = {name: written(getattr(message, name)) if message.HasField(name) else None for name in REALS}
    return RerankSettings(
        mode=mode,
        depth=message.depth if message.HasField("depth") else None,
        tuning=Tuning(
            marginals=MARGINALS.get(message.marginals),
            max_iterations=message.max_iterations if message.HasField("max_iterations") else None,
            **reals,
        ),
    )


def written(value: float) -> float:
    """Return the shortest decimal that float32 rounds to `value`: what was written before the wire rounded it.

    >>> written(0.05000000074505806)
    0.05
    """
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, FLOAT32_DIGITS + 1))
    return next((short for short in candidates if ctypes.c_float(short).value == value), value)
