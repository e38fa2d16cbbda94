"""One matrix product for everything a match needs: similarities and both sides' attention, in exact integers.

The cells of a candidate and its global vector, as int8, are the rows of one matrix; the query's are the columns of the
other. Their product holds S, <g_q, z_x> and <g_x, z_q> up to the scales. All partial sums are whole numbers below 2^24
(D <= 1,040; float64 carries larger D), so floating point adds them without rounding, in any order: the result does not
depend on how it is multiplied (byte products where the processor has them, else BLAS), on threads or on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_matching import product_kernels, vnni
from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import FeatureBatch, Features

    # Similarities, image_attention and query_attention, as in Products.
    Scaled = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

EXACT_IN_FLOAT32 = (2**24 - 1) // INT8_MAX**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """What every way to match consumes, for N candidates and a query.

    similarities: S float32 [N, Rx, Rq]. image_attention float32 [N, Rx] and query_attention float32 [N, Rq]: <g_q, z_x>
    and <g_x, z_q> times a positive factor per image, which cancels when they are normalised.
    image_valid bool [N, Rx], query_valid bool [Rq]; readable bool [N]: false where a candidate holds a number that is
    not finite, and all its products are zero.
    """

    similarities: NDArray[np.float32]
    image_attention: NDArray[np.float32]
    query_attention: NDArray[np.float32]
    image_valid: NDArray[np.bool_]
    query_valid: NDArray[np.bool_]
    readable: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """The two matrices and their scales.

    cells int8 [N, Rx, D], embeddings int8 [N, D] (whole_numbers), columns int8 [Rq + 1, D] (the query's cells and its
    embedding), image_scales float32 [N, Rx], query_scales float32 [Rq].
    """

    cells: NDArray[np.int8]
    embeddings: NDArray[np.int8]
    columns: NDArray[np.int8]
    image_scales: NDArray[np.float32]
    query_scales: NDArray[np.float32]


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
    image_scales = candidates.scales.astype(np.float32, order="C")
    embeddings, readable = _rounded(candidates.embeddings, image_scales)
    operands = Operands(
        cells=plain(candidates.cells),
        embeddings=embeddings,
        columns=np.concatenate([query.cells, whole_numbers(query.embedding[None])]),
        image_scales=image_scales,
        query_scales=query.scales.astype(np.float32),
    )
    bytewise = vnni.is_available() and len(query.embedding) % vnni.BYTES_PER_STEP == 0
    similarities, image_attention, query_attention = (by_bytes if bytewise else by_blas)(operands)
    return Products(
        similarities=similarities,
        image_attention=image_attention,
        query_attention=query_attention,
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
        return np.ones(shape, np.bool_)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise FeaturesInvalidError(f"{name} must be bool {list(shape)}; got {mask.dtype} {list(mask.shape)}")
    return plain(mask)


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as every kernel takes it: contiguous and writable, copied when it is not.

    Each other layout would be compiled anew, by the request that first brings it.
    """
    flags = array.flags
    return array if flags.c_contiguous and flags.writeable else np.array(array, order="C")


def _rounded(
    embeddings: NDArray[np.float32], scales: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    rounded, readable = np.empty(embeddings.shape, np.int8), np.empty(len(embeddings), np.bool_)
    product_kernels.round_embeddings(plain(embeddings), scales, rounded, readable)
    return rounded, readable


def by_blas(operands: Operands) -> Scaled:
    """Multiply by BLAS."""
    n, rx, dim = operands.cells.shape
    rq = len(operands.query_scales)
    rows = np.empty((n, rx + 1, dim), dtype=np.float32 if dim <= EXACT_IN_FLOAT32 else np.float64)
    rows[:, :rx] = operands.cells
    rows[:, rx] = operands.embeddings
    product = rows.reshape(n * (rx + 1), dim) @ operands.columns.astype(rows.dtype).T
    whole = product.reshape(n, rx + 1, rq + 1).astype(np.float32, copy=False)
    return (
        whole[:, :rx, :rq] * operands.image_scales[:, :, None] * operands.query_scales,
        whole[:, :rx, rq] * operands.image_scales,
        whole[:, rx, :rq] * operands.query_scales,
    )


def by_bytes(operands: Operands) -> Scaled:
    """Multiply by the processor's byte products, to the same bits as `by_blas`; see vnni.py for when it can."""
    n, rx, _ = operands.cells.shape
    rq = len(operands.query_scales)
    scaled = (np.empty((n, rx, rq), np.float32), np.empty((n, rx), np.float32), np.empty((n, rq), np.float32))
    product_kernels.multiply_bytes(
        operands.cells,
        operands.embeddings,
        product_kernels.pack(operands.columns),
        operands.image_scales,
        operands.query_scales,
        *scaled,
    )
    return scaled


def whole_numbers(embeddings: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return vectors [N, D] scaled so that the largest component is +-127, and rounded, int8.

    Only directions matter here: the scale cancels when the weights are normalised. Vectors that are zero or not finite
    become zero.
    """
    return _rounded(embeddings, np.zeros((len(embeddings), 0), np.float32))[0]
