"""One matrix product for everything a match needs: similarities and both sides' attention, in exact integers.

The cells of a candidate and its global vector, as int8, are the rows of one matrix; the query's are the columns of the
other. Their product holds S, <g_q, z_x> and <g_x, z_q> up to the scales. All partial sums are whole numbers below 2^24
(D <= 1,040; float64 carries larger D), so floating point adds them without rounding, in any order: the result does not
depend on BLAS, on threads or on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_matching import kernels
from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import FeatureBatch, Features

EXACT_IN_FLOAT32 = (2**24 - 1) // INT8_MAX**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Integer products of N candidates with a query.

    values: float32 [N, Rx + 1, Rq + 1]; the last row belongs to the candidate's global vector, the last column to the
    query's. S[n, i, j] = values[n, i, j] * image_scales[n, i] * query_scales[j].
    image_scales float32 [N, Rx], query_scales float32 [Rq]; image_valid bool [N, Rx], query_valid bool [Rq];
    readable bool [N]: false where a candidate holds a number that is not finite.
    """

    values: NDArray[np.float32]
    image_scales: NDArray[np.float32]
    query_scales: NDArray[np.float32]
    image_valid: NDArray[np.bool_]
    query_valid: NDArray[np.bool_]
    readable: NDArray[np.bool_]


def multiply(
    query: Features,
    candidates: FeatureBatch,
    query_mask: NDArray[np.bool_] | None,
    image_masks: NDArray[np.bool_] | None,
) -> Products:
    """Return the products of `query` with every candidate; masks are bool [Rq] and [N, Rx], None for all valid.

    Raises FeaturesInvalidError when shapes disagree or the query holds a number that is not finite.
    """
    check_pair(query, candidates)
    query_valid = _mask(query_mask, query.scales.shape, "query_mask")
    image_valid = _mask(image_masks, candidates.scales.shape, "image_masks")
    image_scales = candidates.scales.astype(np.float32)
    values, readable = _integer_products(query, candidates)
    readable &= np.isfinite(image_scales).all(axis=1)
    if not readable.all():
        image_scales[~readable] = 0
    return Products(
        values=values,
        image_scales=image_scales,
        query_scales=query.scales.astype(np.float32),
        image_valid=image_valid,
        query_valid=query_valid,
        readable=readable,
    )


def check_pair(query: Features, candidates: FeatureBatch) -> None:
    """Raise FeaturesInvalidError unless query and candidates can be multiplied and the query is finite."""
    dim = len(query.embedding)
    n, cells_dim = candidates.embeddings.shape
    image_cells = candidates.cells.shape
    if query.cells.shape != (len(query.scales), dim) or not len(query.scales):
        raise FeaturesInvalidError(
            f"a query has cells [R, D] and scales [R]; got {query.cells.shape} and {query.scales.shape} with D = {dim}"
        )
    if cells_dim != dim or image_cells != (*candidates.scales.shape, dim) or len(candidates.scales) != n:
        raise FeaturesInvalidError(
            f"expected {n} candidates of dimension {dim}; got cells {image_cells}, scales {candidates.scales.shape}"
        )
    if not (np.isfinite(query.embedding).all() and np.isfinite(query.scales).all()):
        raise FeaturesInvalidError("the query holds numbers that are not finite")


def _mask(mask: NDArray[np.bool_] | None, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(shape, dtype=np.bool_)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise FeaturesInvalidError(f"{name} must be bool {list(shape)}; got {mask.dtype} {list(mask.shape)}")
    return plain(mask)


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as every kernel takes it: contiguous and writable, copied when it is not.

    Each other layout would be compiled anew, by the request that first brings it.
    """
    return np.require(array, requirements=["C", "W"])


def _integer_products(query: Features, candidates: FeatureBatch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    n, rx, dim = candidates.cells.shape
    dtype = np.float32 if dim <= EXACT_IN_FLOAT32 else np.float64
    readable = np.empty(n, np.bool_)
    rows = np.empty((n, rx + 1, dim), dtype=dtype)
    rows[:, :rx] = candidates.cells
    kernels.round_embeddings(plain(candidates.embeddings), rows[:, rx], readable)
    columns = np.empty((len(query.cells) + 1, dim), dtype=dtype)
    columns[:-1] = query.cells
    columns[-1] = whole_numbers(query.embedding[None])[0]
    product = rows.reshape(n * (rx + 1), dim) @ columns.T
    return product.reshape(n, rx + 1, len(columns)).astype(np.float32, copy=False), readable


def whole_numbers(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors [N, D] scaled so that the largest component is +-127, and rounded.

    Only directions matter here: the scale cancels when the weights are normalised. Vectors that are zero or not finite
    become zero.
    """
    rounded = np.empty_like(embeddings)
    kernels.round_embeddings(plain(embeddings), rounded, np.empty(len(embeddings), np.bool_))
    return rounded
