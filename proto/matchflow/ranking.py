"""How hits are scored and which images may be hits: the options of a search as messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from matchflow.v1 import search_pb2
from matchflow.values import ImageRef, Marginals, RerankMode, Tuning

LabelConditions: TypeAlias = Mapping[str, str | Iterable[str]]
"""Label name -> the value, or the values of which one must hold."""


def rerank(mode: RerankMode | str | None, tuning: Tuning | None, *, depth: int | None = None) -> search_pb2.Rerank:
    """Return how candidates are scored; raises ValueError for a mode that does not exist."""
    settings = tuning or Tuning()
    message = search_pb2.Rerank(
        depth=depth,
        global_weight=settings.global_weight,
        epsilon=settings.epsilon,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
    )
    if mode is not None:
        message.mode = search_pb2.RerankMode.Value(f"RERANK_MODE_{RerankMode(mode).name}")
    if settings.marginals is not None:
        message.marginals = search_pb2.Marginals.Value(f"MARGINALS_{Marginals(settings.marginals).name}")
    return message


def label_filter(
    gallery: str,
    where: LabelConditions | None,
    where_not: LabelConditions | None,
    exclude: Iterable[str],
) -> search_pb2.Filter:
    """Return the filter: labels that must hold, labels that must not, and ids that are never returned."""
    return search_pb2.Filter(
        labels=[*_conditions(where, negated=False), *_conditions(where_not, negated=True)],
        exclude_images=[ImageRef(gallery, image_id).name for image_id in exclude],
    )


def _conditions(conditions: LabelConditions | None, *, negated: bool) -> Iterator[search_pb2.LabelCondition]:
    for name, allowed in (conditions or {}).items():
        any_of = [allowed] if isinstance(allowed, str) else list(allowed)
        yield search_pb2.LabelCondition(field=name, any_of=any_of, negated=negated)
