"""One matrix product for everything a match needs: similarities and both sides' attention, in exact integers.

The cells of a candidate and its global vector, as int8, are the rows of one matrix; the query's are the columns of the
other. Their product holds S, <g_q, z_x> and <g_x, z_q> up to the scales. A global vector is written in four digits of
base 254, as precise as its float32 values, and takes a row (or column) for each. All partial sums are whole numbers
below 2^31, so integers add them without rounding, in any order: the result does not depend on how it is multiplied
(products of bytes where the processor has them, else of words), on threads or on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_matching import product_kernels, vnni
from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import INT8_MAX, FeatureBatch
from matchflow_matching.product_kernels import DIGITS, LARGEST_PEAK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import Features

    # Similarities, image_attention and query_attention, as in Products.
    Scaled = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

EXACT_IN_FLOAT32 = (2**24 - 1) // INT8_MAX**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """What every way to match consumes, for N candidates and a query.

    similarities: S float32 [N, Rx, Rq]. image_attention float32 [N, Rx] and query_attention float32 [N, Rq]: <g_q, z_x>
    and <g_x, z_q> (or <g_x, z_x> and <g_q, z_q>) times a positive factor per image, which
    cancels when they are normalised.
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

    cells int8 [N, Rx, D], embeddings int8 [N, 4, D] (digits), columns int8 [Rq + 4, D] (the query's cells and its
    embedding's digits), image_scales float32 [N, Rx], query_scales float32 [Rq].
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
    *,
    own_attention: bool = False,
) -> Products:
    """Return the products of `query` with every candidate; masks are bool [Rq] and [N, Rx], None for all valid.

    own_attention: each side's attention is to its own global vector instead of the other's.
    Raises FeaturesInvalidError when shapes disagree or the query holds a number that is not finite.
    """
    check_pair(query, candidates)
    query_valid = _mask(query_mask, query.scales.shape, "query_mask")
    image_valid = _mask(image_masks, candidates.scales.shape, "image_masks")
    image_scales = candidates.scales.astype(np.float32, order="C")
    embeddings, readable = _digits(candidates.embeddings, image_scales)
    operands = Operands(
        cells=plain(candidates.cells),
        embeddings=embeddings,
        columns=np.concatenate([query.cells, digits(query.embedding[None])[0]]),
        image_scales=image_scales,
        query_scales=query.scales.astype(np.float32),
    )
    bytewise = vnni.is_available() and len(query.embedding) % vnni.BYTES_PER_STEP == 0
    similarities, image_attention, query_attention = (by_bytes if bytewise else by_words)(operands)
    if own_attention:
        image_attention, query_attention = _self_attentions(operands)
    return Products(
        similarities=similarities,
        image_attention=image_attention,
        query_attention=query_attention,
        image_valid=image_valid,
        query_valid=query_valid,
        readable=readable,
    )


def _self_attentions(operands: Operands) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return <g_x, z_x[i]> [N, Rx] and <g_q, z_q[j]>, the same N times, [N, Rq]."""
    image, query = np.empty_like(operands.image_scales), np.empty((1, len(operands.query_scales)), np.float32)
    product_kernels.self_attention(operands.cells, operands.embeddings, operands.image_scales, image)
    cells, own = operands.columns[None, :-DIGITS], operands.columns[None, -DIGITS:]
    product_kernels.self_attention(plain(cells), plain(own), operands.query_scales[None], query)
    return image, np.repeat(query, len(image), axis=0)


def self_attention(images: FeatureBatch) -> NDArray[np.float32]:
    """Return <g, z[i]> of each image's own global vector and cells, float32 [N, R], times a positive factor per image.

    0 for images that are not readable.
    """
    scales = images.scales.astype(np.float32, order="C")
    split, _ = _digits(images.embeddings, scales)
    attention = np.empty_like(scales)
    product_kernels.self_attention(plain(images.cells), split, scales, attention)
    return attention


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
    if not (np.abs(query.embedding).max() <= LARGEST_PEAK and np.isfinite(query.scales).all()):
        raise FeaturesInvalidError(f"the query holds numbers that are not finite, or beyond {LARGEST_PEAK:.0e}")


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


def _digits(embeddings: NDArray[np.float32], scales: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    n, dim = embeddings.shape
    split, readable = np.empty((n, DIGITS, dim), np.int8), np.empty(n, np.bool_)
    product_kernels.split_embeddings(plain(embeddings), scales, split, readable)
    return split, readable


def by_words(operands: Operands) -> Scaled:
    """Multiply by products of 16-bit words, which every processor has; see words.py."""
    scaled = _empty(operands)
    product_kernels.multiply_words(
        operands.cells,
        operands.embeddings,
        product_kernels.pack_words(operands.columns),
        operands.image_scales,
        operands.query_scales,
        *scaled,
    )
    return scaled


def by_bytes(operands: Operands) -> Scaled:
    """Multiply by the processor's byte products, to the same bits as `by_words`; see vnni.py for when it can."""
    scaled = _empty(operands)
    product_kernels.multiply_bytes(
        operands.cells,
        operands.embeddings,
        product_kernels.pack(operands.columns),
        operands.image_scales,
        operands.query_scales,
        *scaled,
    )
    return scaled


def _empty(operands: Operands) -> Scaled:
    n, rx = operands.image_scales.shape
    rq = len(operands.query_scales)
    return np.empty((n, rx, rq), np.float32), np.empty((n, rx), np.float32), np.empty((n, rq), np.float32)


def digits(embeddings: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return vectors [N, D] in four digits of base 254, the highest first, int8 [N, 4, D].

    d0 + d1 / 254 + d2 / 254^2 + d3 / 254^3 is the vector times the power of two that takes its largest component to
    between 63.5 and 127, within 6e-8. Only directions matter here: the factor cancels when the weights are normalised.
    Vectors that are zero or damaged become zero.
    """
    return _digits(embeddings, np.zeros((len(embeddings), 0), np.float32))[0]
