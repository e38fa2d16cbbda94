"""Conditions on one label of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matchflow_index.labels import LabelKind, kind_of

if TYPE_CHECKING:
    from datetime import datetime

    from matchflow_index.labels import Labels, LabelValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRange:
    """Numbers or times between ends, of which at least one must be given; all that are given must hold."""

    gte: float | datetime | None = None
    gt: float | datetime | None = None
    lte: float | datetime | None = None
    lt: float | datetime | None = None

    def __post_init__(self) -> None:
        """Refuse ends of several kinds, of none, and texts."""
        kinds = {kind_of(end) for end in (self.gte, self.gt, self.lte, self.lt) if end is not None}
        if len(kinds) != 1 or LabelKind.TEXT in kinds:
            raise ValueError(f"the ends of a range are numbers or times, one at least; got {self}")

    @property
    def kind(self) -> LabelKind:
        """Of what kind the ends are."""
        return next(kind_of(end) for end in (self.gte, self.gt, self.lte, self.lt) if end is not None)

    def holds(self, value: LabelValue) -> bool:
        """Tell whether a value lies within; one of another kind never does.

        >>> LabelRange(gte=18, lt=65).holds(65)
        False
        """
        return kind_of(value) is self.kind and (
            (self.gte is None or value >= self.gte)  # type: ignore[operator]
            and (self.gt is None or value > self.gt)  # type: ignore[operator]
            and (self.lte is None or value <= self.lte)  # type: ignore[operator]
            and (self.lt is None or value < self.lt)  # type: ignore[operator]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCondition:
    """The label `field` is one of `any_of` and lies `within` a range, as far as given; neither: it is there at all.

    Negated: the opposite, so that an image without the label passes.
    """

    field: str
    any_of: frozenset[LabelValue] | None = None
    within: LabelRange | None = None
    negated: bool = False

    def accepts(self, labels: Labels) -> bool:
        """Tell whether an image with these labels passes.

        >>> LabelCondition(field="designer", any_of=frozenset({"noto"}), negated=True).accepts({})
        True
        """
        value = labels.get(self.field)
        return (value is not None and self._holds(value)) != self.negated

    def _holds(self, value: LabelValue) -> bool:
        return (self.any_of is None or value in self.any_of) and (self.within is None or self.within.holds(value))
