"""The projection head: PCA whitening, fitted on cells without labels.

With the covariance V diag(s) V^T (s falling) of the cells x of the head images, the head is
y = diag(s_1..s_D)^-power V_D^T x, a linear map and so a 1x1 convolution. Power 0 is plain PCA, which leaves the cosine
to the few strongest directions; 0.5 makes all directions equally strong, the noisy ones included.

The mean is taken out to find the directions but not when projecting: see docs/adr/0004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_exporter.errors import HeadFitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A direction this much weaker than the strongest is rounding noise, not signal.
LEAST_RELATIVE_VARIANCE = 1e-10
LEAST_VARIANCE = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionHead:
    """y = weight x: `weight` float32 [D, C]; and the share of the cells' variance that it keeps."""

    weight: NDArray[np.float32]
    explained_variance: float


def fit_whitening(cells: NDArray[np.float64], dim: int, power: float) -> ProjectionHead:
    """Fit the head on cells [N, C], to `dim` dimensions, eigenvalues scaled by `power` (0..0.5 is useful).

    The sign of every direction is fixed (its largest weight is positive), so equal cells give an equal head.
    Raises HeadFitError if the cells vary in fewer than `dim` directions.
    """
    count, channels = cells.shape
    if not 1 <= dim <= channels:
        raise HeadFitError(f"expected 1 to {channels} dimensions from cells of {channels}; got {dim}")
    if count <= dim:
        raise HeadFitError(f"expected more than {dim} cells to fit {dim} dimensions; got {count}")
    centred = cells - cells.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / count)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = max(LEAST_RELATIVE_VARIANCE * values[0], LEAST_VARIANCE)
    if values[dim - 1] <= noise:
        found = int((values > noise).sum())
        raise HeadFitError(f"expected cells that vary in {dim} directions; they vary in {found}")
    directions = vectors[:, :dim].T
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(dim), largest])[:, None]
    # A channel that never responds has weights too small for float32: zero is right.
    with np.errstate(under="ignore"):
        weight = (directions * values[:dim, None] ** -power).astype(np.float32)
    return ProjectionHead(
        weight=weight,
        explained_variance=min(float(values[:dim].sum() / np.maximum(values, 0).sum()), 1.0),
    )
