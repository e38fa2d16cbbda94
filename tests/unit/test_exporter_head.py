"""The projection head: whitening by a power, without labels, the same every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from matchflow_exporter import HeadFitError
from matchflow_exporter.head import fit_whitening

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_exporter.head import ProjectionHead


@pytest.fixture
def cells() -> NDArray[np.float64]:
    draw = np.random.default_rng(0)
    mixing = draw.standard_normal((12, 12)) * np.geomspace(10, 0.1, 12)
    return draw.standard_normal((500, 12)) @ mixing + 3


def projected(head: ProjectionHead, cells: NDArray[np.float64]) -> NDArray[np.float64]:
    return cells @ head.weight.T.astype(np.float64)


def test_a_power_of_a_half_makes_all_directions_equally_strong(cells: NDArray[np.float64]) -> None:
    out = projected(fit_whitening(cells, 8, 0.5), cells)
    np.testing.assert_allclose(np.cov(out.T, bias=True), np.eye(8), atol=1e-4)


def test_the_mean_is_kept_so_that_a_cell_without_response_stays_at_the_origin(cells: NDArray[np.float64]) -> None:
    head = fit_whitening(cells, 8, 0.25)
    assert not projected(head, np.zeros((1, 12))).any()
    np.testing.assert_allclose(head.weight, fit_whitening(cells + 100.0, 8, 0.25).weight, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_the_variances_left_are_the_eigenvalues_to_the_rest_of_the_power(
    cells: NDArray[np.float64], power: float
) -> None:
    out = projected(fit_whitening(cells, 6, power), cells)
    eigenvalues = np.linalg.eigvalsh(np.cov(cells.T, bias=True))[::-1][:6]
    np.testing.assert_allclose(out.var(axis=0), eigenvalues ** (1 - 2 * power), rtol=1e-3)


def test_without_a_power_in_full_dimension_distances_are_kept(cells: NDArray[np.float64]) -> None:
    out = projected(fit_whitening(cells, 12, 0.0), cells)
    for first, second in ((0, 1), (5, 77)):
        wanted = np.linalg.norm(cells[first] - cells[second])
        assert np.linalg.norm(out[first] - out[second]) == pytest.approx(wanted, rel=1e-4)


def test_equal_cells_give_an_equal_head_with_fixed_signs(cells: NDArray[np.float64]) -> None:
    first, second = fit_whitening(cells, 8, 0.25), fit_whitening(cells.copy(), 8, 0.25)
    np.testing.assert_array_equal(first.weight, second.weight)
    assert (first.weight[np.arange(8), np.abs(first.weight).argmax(axis=1)] > 0).all()


def test_a_mirrored_cloud_has_the_same_directions(cells: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(fit_whitening(cells, 8, 0.25).weight, fit_whitening(-cells, 8, 0.25).weight, atol=1e-5)


def test_the_head_says_how_much_it_keeps(cells: NDArray[np.float64]) -> None:
    shares = [fit_whitening(cells, dim, 0.25).explained_variance for dim in (1, 6, 12)]
    assert 0 < shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(1)


def test_the_head_is_float32_of_the_shapes_of_a_convolution(cells: NDArray[np.float64]) -> None:
    head = fit_whitening(cells, 5, 0.25)
    assert head.weight.shape == (5, 12)
    assert head.weight.dtype == np.float32


@pytest.mark.parametrize("dim", [0, -1, 13])
def test_dimensions_that_the_cells_do_not_have_are_refused(cells: NDArray[np.float64], dim: int) -> None:
    with pytest.raises(HeadFitError, match="expected 1 to 12 dimensions"):
        fit_whitening(cells, dim, 0.25)


def test_too_few_cells_are_refused(cells: NDArray[np.float64]) -> None:
    with pytest.raises(HeadFitError, match="more than 8 cells to fit 8 dimensions; got 8"):
        fit_whitening(cells[:8], 8, 0.25)


def test_cells_that_vary_in_too_few_directions_are_refused(cells: NDArray[np.float64]) -> None:
    flat = cells.copy()
    flat[:, 4:] = 1.0
    with pytest.raises(HeadFitError, match="vary in 8 directions; they vary in 4"):
        fit_whitening(flat, 8, 0.25)
    with pytest.raises(HeadFitError, match="they vary in 0"):
        fit_whitening(np.ones((50, 12)), 2, 0.25)
