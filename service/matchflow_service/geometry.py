"""Where a cell lies in the picture that the user knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matchflow_bundle import Preprocessing
    from matchflow_matching import CellGrid

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """An image's cells on its upright original of width_px x height_px.

    An original of unknown size (ready-made features: 0 x 0) is taken to have the shape of the model's input. Without
    the model of its bundle (`preprocessing` None) nobody knows where the cells lie.
    """

    grid: CellGrid
    preprocessing: Preprocessing | None
    width_px: int
    height_px: int

    def box(self, cell: int) -> Box | None:
        """Return the cell's (left, top, right, bottom) in fractions of the upright original, None when unknown."""
        if self.preprocessing is None:
            return None
        box = self.grid.box(cell)
        if not (self.width_px and self.height_px):
            return box
        return self.preprocessing.image_box(box, self.width_px, self.height_px)

    def boxes(self) -> list[Box | None]:
        """Return the box of every cell."""
        return [self.box(cell) for cell in range(self.grid.size)]
