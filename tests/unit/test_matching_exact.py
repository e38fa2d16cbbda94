"""Exact transport, whole and partial: against float64, POT and linear programming, and by its own proof."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from matchflow_matching import CellGrid, MatchMode, MatchSettings, exact_kernels, match, reference, reference_exact
from matchflow_matching.bound_kernels import column_bounds, transport_bounds
from matchflow_matching.exact_kernels import exact_transport
from matchflow_matching.simplex_kernels import FIELDS, FLOW, PARENT, units
from matchflow_matching.simplex_kernels import solve as simplex
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

few = settings(max_examples=60, deadline=None)
MANY_PIVOTS = 10**6
# What rounding to multiples of 2^-37 and summing in float64 leave of a gap.
PROVED = 1e-9
# Float32 of a score, and of the weights that are normalised in it.
CLOSE = 2e-6
masses = st.sampled_from([0.05, 0.3, 0.75, 0.999, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """N problems of one shape: values float32 [N, Rx, Rq], and attention and masks that weigh the cells."""

    values: Floats
    image_attention: Floats
    query_attention: Floats
    image_valid: NDArray[np.bool_]
    query_valid: NDArray[np.bool_]

    def take(self, chosen: NDArray[np.intp]) -> Problems:
        return Problems(
            values=self.values[chosen],
            image_attention=self.image_attention[chosen],
            query_attention=self.query_attention[chosen],
            image_valid=self.image_valid[chosen],
            query_valid=self.query_valid,
        )

    def weights(self, n: int) -> tuple[Doubles, Doubles]:
        return (
            weights(self.image_attention[n], self.image_valid[n]),
            weights(self.query_attention[n], self.query_valid),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    structural: Floats
    iterations: NDArray[np.int32]
    errors: Floats
    gaps: Floats
    uniform: NDArray[np.bool_]
    plans: Floats


def weights(attention: Floats, valid: NDArray[np.bool_]) -> Doubles:
    positive = np.where(valid, np.maximum(attention, 0), 0).astype(np.float64)
    return positive / positive.sum() if positive.any() else reference.uniform_weights(valid)


def problem(values: Doubles | Floats, u: Doubles | None = None, v: Doubles | None = None) -> Problems:
    """One problem with all cells valid; equal weights unless given."""
    rx, rq = values.shape
    return Problems(
        values=values[None].astype(np.float32),
        image_attention=(np.ones(rx) if u is None else u)[None].astype(np.float32),
        query_attention=(np.ones(rq) if v is None else v)[None].astype(np.float32),
        image_valid=np.ones((1, rx), np.bool_),
        query_valid=np.ones(rq, np.bool_),
    )


def solve(
    given: Problems,
    mass: float = 1.0,
    *,
    limit: int = MANY_PIVOTS,
    skipped: NDArray[np.bool_] | None = None,
    cross: bool = True,
    with_plans: bool = True,
) -> Solved:
    n, rx, rq = given.values.shape
    solved = Solved(
        structural=np.zeros(n, np.float32),
        iterations=np.zeros(n, np.int32),
        errors=np.zeros(n, np.float32),
        gaps=np.zeros(n, np.float32),
        uniform=np.zeros((n, 2), np.bool_),
        plans=np.zeros((n if with_plans else 0, rx, rq), np.float32),
    )
    exact_transport(
        given.values,
        given.image_attention,
        given.query_attention,
        given.image_valid,
        given.query_valid,
        np.zeros(n, np.bool_) if skipped is None else skipped,
        cross,
        mass,
        limit,
        solved.structural,
        solved.iterations,
        solved.errors,
        solved.gaps,
        solved.uniform,
        solved.plans,
    )
    return solved


def best(given: Problems, n: int, mass: float = 1.0) -> float:
    """The specification's score."""
    values = given.values[n].astype(np.float64)
    return float((reference_exact.exact_plan(values, *given.weights(n), mass=mass) * values).sum()) / mass


@st.composite
def problems(draw: st.DrawFn, largest: int = 12) -> Problems:
    """Draw 1-4 problems with ties, constants, far costs, one-hot and very uneven weights, and masks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, rx, rq = draw(st.integers(1, 4)), draw(st.integers(1, largest)), draw(st.integers(1, largest))
    makers: dict[str, Callable[[], Doubles]] = {
        "random": lambda: rng.uniform(-1, 1, (n, rx, rq)),
        "few levels": lambda: rng.integers(-2, 3, (n, rx, rq)) / 2,
        "constant": lambda: np.full((n, rx, rq), draw(st.sampled_from([-1.0, 0.0, 0.7, 1.0]))),
        "rank one": lambda: rng.uniform(-1, 1, (n, rx, 1)) * rng.uniform(-1, 1, (n, 1, rq)),
        "sums": lambda: rng.uniform(-0.5, 0.5, (n, rx, 1)) + rng.uniform(-0.5, 0.5, (n, 1, rq)),
        "spatial": lambda: rng.uniform(-1, 1, (n, rx, rq)) - 100 * rng.uniform(0, 1, (rx, rq)),
        "nearly tied": lambda: (2**23 + rng.integers(0, 3, (n, rx, rq))) / 2**24,
    }
    values = makers[draw(st.sampled_from(sorted(makers)))]()

    def attention(*shape: int) -> Doubles:
        kinds: dict[str, Callable[[], Doubles]] = {
            "random": lambda: rng.uniform(-0.5, 1, shape),
            "equal": lambda: np.ones(shape),
            "one-hot": lambda: np.eye(shape[1])[rng.integers(0, shape[1], shape[0])],
            "uneven": lambda: 10 ** rng.uniform(-14, 0, shape),
            "negative": lambda: -np.ones(shape),
            "few levels": lambda: rng.integers(0, 4, shape).astype(np.float64),
        }
        return kinds[draw(st.sampled_from(sorted(kinds)))]()

    share = draw(st.sampled_from([1.0, 0.7, 0.2]))
    return Problems(
        values=np.ascontiguousarray(values, np.float32),
        image_attention=attention(n, rx).astype(np.float32),
        query_attention=attention(n, rq).astype(np.float32),
        image_valid=rng.random((n, rx)) <= share,
        query_valid=rng.random(rq) <= share,
    )


@few
@given(given=problems(), mass=masses)
def test_the_kernel_finds_the_score_of_the_float64_reference(given: Problems, mass: float) -> None:
    solved = solve(given, mass)
    for n in range(len(given.values)):
        if given.image_valid[n].any() and given.query_valid.any():
            scale = max(1.0, float(np.abs(given.values[n]).max()))
            assert solved.structural[n] == pytest.approx(best(given, n, mass), abs=CLOSE * scale)
        else:
            assert solved.structural[n] == solved.gaps[n] == solved.errors[n] == 0


@few
@given(given=problems(), mass=masses)
def test_every_plan_proves_itself(given: Problems, mass: float) -> None:
    solved = solve(given, mass)
    for n, plan in enumerate(solved.plans.astype(np.float64)):
        if not (given.image_valid[n].any() and given.query_valid.any()):
            assert not plan.any()
            continue
        u, v = given.weights(n)
        scale = max(1.0, float(np.abs(given.values[n]).max()))
        assert -PROVED * scale < solved.gaps[n] < PROVED * scale
        assert (plan >= 0).all()
        assert plan.sum() == pytest.approx(1, abs=CLOSE)
        assert np.count_nonzero(plan) <= np.count_nonzero(u) + np.count_nonzero(v) + 1
        assert (plan * given.values[n]).sum() == pytest.approx(solved.structural[n], abs=CLOSE * scale)
        assert (mass * plan.sum(axis=1) <= u + CLOSE).all()
        assert (mass * plan.sum(axis=0) <= v + CLOSE).all()
        violation = np.abs(plan.sum(axis=1) - u).sum() + np.abs(plan.sum(axis=0) - v).sum() if mass == 1 else 0.0
        assert solved.errors[n] == pytest.approx(violation, abs=CLOSE)
        assert solved.errors[n] < PROVED


@few
@given(given=problems(), mass=masses, limit=st.integers(0, 12))
def test_a_pair_that_is_given_up_says_how_far_from_the_best_it_may_be(given: Problems, mass: float, limit: int) -> None:
    solved, early = solve(given, mass), solve(given, mass, limit=limit)
    assert (early.iterations == np.minimum(solved.iterations, limit)).all()
    for n in range(len(given.values)):
        scale = max(1.0, float(np.abs(given.values[n]).max()))
        # Partial plans on the way may carry more than their mass, and say so: only then can a score be too high.
        if early.errors[n] < CLOSE:
            assert early.structural[n] <= solved.structural[n] + CLOSE * scale
        assert early.structural[n] + early.gaps[n] >= solved.structural[n] - CLOSE * scale
        if solved.structural[n] - early.structural[n] > CLOSE * scale:
            assert early.gaps[n] > PROVED


def test_a_planted_wrong_plan_has_a_gap() -> None:
    rng = np.random.default_rng(0)
    given = problem(rng.uniform(-1, 1, (9, 9)))
    for mass in (1.0, 0.75):
        wrong, right = solve(given, mass, limit=0), solve(given, mass)
        assert right.gaps[0] < PROVED < 1e-2 < wrong.gaps[0]
        assert right.structural[0] - wrong.structural[0] <= wrong.gaps[0]


@few
@given(given=problems(), mass=masses, seed=st.integers(0, 2**32))
def test_the_bound_of_the_gap_holds_for_any_potentials(given: Problems, mass: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = given.values[0].astype(np.float64)
    rx, rq = values.shape
    scale = units(rx + 1, rq + 1)
    u, v = rng.dirichlet(np.ones(rx)), rng.dirichlet(np.ones(rq))
    in_units = [np.round(w * exact_kernels.ONE).astype(np.int64) for w in (u, v)]
    leftover = round((1 - mass) * exact_kernels.ONE)
    potentials = (rng.uniform(-3, 3, rx + rq + 2) * scale.cost).astype(np.int64) << scale.index_bits
    bound = exact_kernels._upper_bound(values, *in_units, potentials, scale, rx, rq, leftover, np.zeros(rq, np.float64))
    plan = reference_exact.exact_plan(values, u, v, mass=mass)
    assert bound >= (plan * values).sum() - 1e-8
    if mass == 1:
        a = -potentials[:rx] / (scale.cost * 2.0**scale.index_bits)
        assert bound == pytest.approx(reference_exact.dual_bound(values, u, v, a), abs=1e-6)


@st.composite
def networks(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Draw whole costs [R, C], supply [R] and demand [C] of equal sums, many of them tied."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    costs = rng.integers(-3, 4, (rows, columns)) * draw(st.sampled_from([0, 1, 2**30]))
    supply, demand = rng.integers(1, 4, rows) * columns, np.full(columns, 0)
    demand[:] = supply.sum() // columns
    demand[0] += supply.sum() - demand.sum()
    return costs, supply, demand


@few
@given(network=networks(), limit=st.sampled_from([0, 2, MANY_PIVOTS]))
def test_the_simplex_leaves_a_tree_whose_potentials_prove_it(
    network: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], limit: int
) -> None:
    costs, supply, demand = network
    rows, columns = costs.shape
    scale = units(rows, columns)
    packed = (costs << scale.index_bits) + np.arange(columns)
    ours = np.concatenate([supply, demand]) << scale.mass_bits
    potentials, tree = np.zeros(rows + columns, np.int64), np.zeros((rows + columns, FIELDS), np.int64)
    pivots = simplex(packed, ours, potentials, tree, scale, rows, columns, limit)
    flow = np.zeros((rows, columns), np.int64)
    in_tree = np.zeros((rows, columns), np.bool_)
    for node in range(rows + columns):
        parent = int(tree[node, PARENT])
        if parent >= 0:
            i, j = min(node, parent), max(node, parent) - rows
            assert tree[node, FLOW] > 0
            flow[i, j] = (tree[node, FLOW] + (1 << scale.mass_bits - 1)) >> scale.mass_bits
            in_tree[i, j] = True
    assert in_tree.sum() == rows + columns - 1
    assert np.array_equal(flow.sum(axis=1), supply)
    assert np.array_equal(flow.sum(axis=0), demand)
    assert (flow >= 0).all()
    reduced = (costs << scale.index_bits) - potentials[:rows, None] - potentials[None, rows:]
    assert not reduced[in_tree].any()
    assert pivots <= limit
    assert (reduced >= 0).all() or pivots == limit


@few
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40), columns=st.integers(1, 40), equal=st.booleans())
def test_pot_finds_no_better_whole_plan(seed: int, rows: int, columns: int, *, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    given = problem(
        rng.uniform(-1, 1, (rows, columns)),
        None if equal else rng.dirichlet(np.ones(rows)),
        None if equal else rng.dirichlet(np.ones(columns)),
    )
    u, v = given.weights(0)
    values = given.values[0].astype(np.float64)
    expected = 1 - ot.emd2(u, v, 1 - values)
    assert solve(given).structural[0] == pytest.approx(expected, abs=CLOSE)


@few
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    mass=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_pot_finds_no_better_partial_plan(seed: int, rows: int, columns: int, mass: float) -> None:
    rng = np.random.default_rng(seed)
    given = problem(rng.uniform(-1, 1, (rows, columns)), rng.dirichlet(np.ones(rows)), rng.dirichlet(np.ones(columns)))
    u, v = given.weights(0)
    values = given.values[0].astype(np.float64)
    plan = ot.partial.partial_wasserstein(u, v, 1 - values, m=mass)
    assert plan.sum() == pytest.approx(mass, abs=1e-6)
    assert solve(given, mass).structural[0] == pytest.approx((plan * values).sum() / mass, abs=1e-5)


@pytest.mark.parametrize("mass", [0.4, 1.0])
def test_linear_programming_finds_the_same_score(mass: float) -> None:
    rng = np.random.default_rng(7)
    for rx, rq in ((3, 5), (8, 8), (16, 4)):
        given = problem(rng.integers(-3, 4, (rx, rq)) / 3, rng.dirichlet(np.ones(rx)), rng.dirichlet(np.ones(rq)))
        u, v = given.weights(0)
        values = given.values[0].astype(np.float64)
        sums = np.concatenate([np.kron(np.eye(rx), np.ones(rq)), np.kron(np.ones(rx), np.eye(rq))])
        found = linprog(
            -values.ravel(),
            A_ub=sums,
            b_ub=np.concatenate([u, v]),
            A_eq=np.ones((1, rx * rq)),
            b_eq=[mass * (1 - 1e-12)],
        )
        assert solve(given, mass).structural[0] == pytest.approx(-found.fun / mass, abs=CLOSE)


@few
@given(seed=st.integers(0, 2**32), cells=st.integers(1, 16), spread=st.sampled_from([0.1, 1.0, 10.0]))
def test_exact_transport_has_its_place_in_the_chain_of_bounds(seed: int, cells: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=8) + spread * rng.normal(size=(2, cells, 8))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    values = (z[0] @ z[1].T).astype(np.float32).astype(np.float64)
    u, v = rng.dirichlet(np.ones(cells)), rng.dirichlet(np.ones(cells))
    exact = float(solve(problem(values, u, v)).structural[0])
    sinkhorn = reference.sinkhorn(values, u, v, epsilon=0.05, tolerance=1e-9, limit=20_000)
    entropic = float((sinkhorn.plan * values).sum())
    # ICT (Atasu and Mittelholzer, ICML 2019): each query cell takes from its best image cells, at most u_i from each.
    ict = sum(v[j] * reference_exact.best_share(u, values[:, j], v[j]) for j in range(cells))
    column = float(v @ values.max(axis=0))
    row = float(u @ values.max(axis=1))
    chain = [float(u @ values @ v), entropic, exact, ict, column, float(values.max())]
    assert all(low <= high + CLOSE for low, high in pairwise(chain))
    assert exact <= row + CLOSE


@few
@given(given=problems(), mass=masses)
def test_row_and_column_bounds_are_those_of_the_reference_and_hold(given: Problems, mass: float) -> None:
    n = len(given.values)
    rows, columns = np.zeros(n, np.float32), np.zeros(n, np.float32)
    arguments = (given.values, given.image_attention, given.query_attention, given.image_valid, given.query_valid)
    transport_bounds(*arguments, True, mass, rows, columns)
    solved = solve(given, mass)
    assert (solved.structural <= rows).all()
    assert (solved.structural <= columns).all()
    for k in range(n):
        u, v = given.weights(k)
        if not (u.any() and v.any()):
            assert rows[k] == columns[k] == 0
            continue
        values = given.values[k].astype(np.float64)[np.ix_(u > 0, v > 0)]
        scale = max(1.0, float(np.abs(values).max()))
        assert rows[k] == pytest.approx(
            reference_exact.best_share(u[u > 0], values.max(axis=1), mass), abs=CLOSE * scale
        )
        assert columns[k] == pytest.approx(
            reference_exact.best_share(v[v > 0], values.max(axis=0), mass), abs=CLOSE * scale
        )


@few
@given(given=problems())
def test_the_fast_column_bound_is_no_lower_than_the_careful_one(given: Problems) -> None:
    n = len(given.values)
    fast, rows, columns = (np.zeros(n, np.float32) for _ in range(3))
    column_bounds(given.values, given.query_attention, given.image_valid, given.query_valid, True, fast)
    arguments = (given.values, given.image_attention, given.query_attention, given.image_valid, given.query_valid)
    transport_bounds(*arguments, True, 1.0, rows, columns)
    scale = np.maximum(1, np.abs(given.values).max(axis=(1, 2)))
    assert (fast >= columns - CLOSE * scale).all()


@few
@given(given=problems())
def test_less_mass_never_matches_worse(given: Problems) -> None:
    previous = solve(given, 1.0).structural
    scale = np.maximum(1, np.abs(given.values).max(axis=(1, 2)))
    for mass in (0.9, 0.5, 0.05):
        score = solve(given, mass).structural
        assert (score >= previous - CLOSE * scale).all()
        previous = score


@few
@given(given=problems(), mass=masses)
def test_the_two_sides_can_be_exchanged(given: Problems, mass: float) -> None:
    solved = solve(given, mass)
    for n in range(len(given.values)):
        mirrored = Problems(
            values=np.ascontiguousarray(given.values[n].T)[None],
            image_attention=given.query_attention[n : n + 1],
            query_attention=given.image_attention[n : n + 1],
            image_valid=given.query_valid[None],
            query_valid=given.image_valid[n],
        )
        scale = max(1.0, float(np.abs(given.values[n]).max()))
        assert solve(mirrored, mass).structural[0] == pytest.approx(solved.structural[n], abs=CLOSE * scale)


@few
@given(given=problems(), mass=masses)
def test_cells_without_weight_might_as_well_not_exist(given: Problems, mass: float) -> None:
    solved = solve(given, mass)
    for n in range(len(given.values)):
        u, v = (w > 1e-10 for w in given.weights(n))
        if not (u.any() and v.any()):
            continue
        smaller = Problems(
            values=np.ascontiguousarray(given.values[n][np.ix_(u, v)])[None],
            image_attention=given.image_attention[n][u][None],
            query_attention=given.query_attention[n][v][None],
            image_valid=np.ones((1, int(u.sum())), np.bool_),
            query_valid=np.ones(int(v.sum()), np.bool_),
        )
        scale = max(1.0, float(np.abs(given.values[n]).max()))
        assert solve(smaller, mass).structural[0] == pytest.approx(solved.structural[n], abs=CLOSE * scale)


@few
@given(given=problems(), mass=masses, data=st.data())
def test_a_pair_is_bit_equal_whatever_else_is_in_the_batch(given: Problems, mass: float, data: st.DataObject) -> None:
    solved = solve(given, mass)
    order = np.array(data.draw(st.permutations(range(len(given.values)))))
    shuffled = solve(given.take(order), mass)
    for position, n in enumerate(order):
        alone = solve(given.take(order[position : position + 1]), mass)
        for name in ("structural", "iterations", "errors", "gaps", "uniform", "plans"):
            assert np.array_equal(getattr(solved, name)[n], getattr(alone, name)[0])
            assert np.array_equal(getattr(solved, name)[n], getattr(shuffled, name)[position])


def test_pairs_are_bit_equal_in_many_threads() -> None:
    rng = np.random.default_rng(1)
    given = Problems(
        values=rng.uniform(-1, 1, (60, 16, 16)).astype(np.float32),
        image_attention=rng.random((60, 16), np.float32),
        query_attention=rng.random((60, 16), np.float32),
        image_valid=np.ones((60, 16), np.bool_),
        query_valid=np.ones(16, np.bool_),
    )
    expected = solve(given)
    found: list[Solved] = []
    threads = [threading.Thread(target=lambda: found.append(solve(given))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(solved.plans, expected.plans) for solved in found)


def test_skipped_pairs_are_left_alone_and_no_plan_is_made_unasked() -> None:
    rng = np.random.default_rng(2)
    given = Problems(
        values=rng.uniform(-1, 1, (5, 4, 6)).astype(np.float32),
        image_attention=np.ones((5, 4), np.float32),
        query_attention=np.ones((5, 6), np.float32),
        image_valid=np.ones((5, 4), np.bool_),
        query_valid=np.ones(6, np.bool_),
    )
    skipped = np.array([False, True, False, True, True])
    some, every = solve(given, skipped=skipped), solve(given, with_plans=False)
    assert np.array_equal(some.structural[~skipped], every.structural[~skipped])
    assert np.array_equal(some.gaps[~skipped], every.gaps[~skipped])
    assert not some.structural[skipped].any()
    assert not some.iterations[skipped].any()
    assert not some.plans[skipped].any()
    assert every.plans.size == 0


def test_among_equal_plans_the_first_cells_are_matched() -> None:
    plan = solve(problem(np.full((3, 3), 0.5))).plans[0]
    np.testing.assert_allclose(plan, np.eye(3) / 3, atol=1e-7)
    assert solve(problem(np.full((3, 3), 0.5))).iterations[0] == 0


def test_identical_images_match_cell_by_cell_and_score_one() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(16, 32))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    u = rng.dirichlet(np.ones(16))
    solved = solve(problem(z @ z.T, u, u))
    assert solved.structural[0] == pytest.approx(1, abs=CLOSE)
    np.testing.assert_allclose(solved.plans[0], np.diag(u), atol=1e-6)


def test_a_permuted_image_is_put_back_in_order() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(20, 32))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    order = rng.permutation(20)
    solved = solve(problem(z @ z[order].T))
    expected = np.zeros((20, 20))
    expected[order, np.arange(20)] = 1 / 20
    np.testing.assert_allclose(solved.plans[0], expected, atol=1e-7)


def test_opposite_vectors_score_minus_one_and_one_cell_is_matched_as_it_is() -> None:
    assert solve(problem(np.full((7, 5), -1.0))).structural[0] == -1
    for mass in (0.05, 0.5, 1.0):
        single = solve(problem(np.array([[0.25]])), mass)
        assert single.structural[0] == 0.25
        assert single.plans[0].tolist() == [[1.0]]


def test_partial_transport_leaves_what_matches_worst() -> None:
    values = np.diag([1.0, 0.9, -1.0, 0.8]) - 2 * (1 - np.eye(4))
    solved = solve(problem(values), 0.75)
    assert solved.structural[0] == pytest.approx(0.9, abs=CLOSE)
    np.testing.assert_allclose(solved.plans[0], np.diag([1, 1, 0, 1]) / 3, atol=1e-6)
    with_worst = solve(problem(values))
    assert with_worst.structural[0] == pytest.approx(0.425, abs=CLOSE)


def test_a_one_hot_side_takes_the_mean_of_its_cell() -> None:
    rng = np.random.default_rng(5)
    values, v = rng.uniform(-1, 1, (6, 4)), rng.dirichlet(np.ones(4))
    solved = solve(problem(values, np.eye(6)[2], v))
    assert solved.structural[0] == pytest.approx(values[2] @ v, abs=CLOSE)
    assert not solved.plans[0][[0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize(("rows", "columns"), [(1, 300), (300, 1), (130, 128), (40, 257)])
def test_large_and_lopsided_problems_are_solved_too(rows: int, columns: int) -> None:
    rng = np.random.default_rng(6)
    given = problem(rng.uniform(-1, 1, (rows, columns)), rng.random(rows), rng.random(columns))
    u, v = given.weights(0)
    solved = solve(given)
    assert abs(solved.gaps[0]) < PROVED
    expected = 1 - ot.emd2(u, v, 1 - given.values[0].astype(np.float64))
    assert solved.structural[0] == pytest.approx(expected, abs=CLOSE)
    assert abs(solve(given, 0.5).gaps[0]) < PROVED


def test_an_attention_that_is_not_positive_falls_back_and_says_so() -> None:
    given = problem(np.eye(3), -np.ones(3), np.array([1.0, 2.0, 3.0]))
    assert solve(given).uniform.tolist() == [[True, False]]
    assert solve(given, cross=False).uniform.tolist() == [[False, False]]
    np.testing.assert_allclose(solve(given, cross=False).plans[0], np.eye(3) / 3, atol=1e-7)


def test_values_that_no_unit_cells_have_give_finite_numbers_and_an_honest_gap() -> None:
    values = np.array([[1e12, -1e12], [3.0, 200.0]])
    for mass in (0.5, 1.0):
        solved = solve(problem(values), mass)
        assert np.isfinite([solved.structural[0], solved.gaps[0], solved.errors[0]]).all()
        assert solved.structural[0] + solved.gaps[0] >= (1e12 + 200) / 2 * (1 - 1e-6)
    swapped = solve(problem(values[::-1]))
    assert swapped.structural[0] == solve(problem(values)).structural[0]


@pytest.mark.parametrize("mode", [MatchMode.EARTH_MOVER, MatchMode.PARTIAL])
def test_a_match_that_is_given_up_has_not_converged(mode: MatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(np.random.default_rng(8), 6, 16, 32, 3.0)
    chosen = MatchSettings.of(mode, tolerance=1e-6)
    grid = CellGrid(rows=4, columns=4)
    solved = match(batch[0], batch, chosen, grid=grid)
    assert solved.converged.all()
    assert (solved.duality_gap < PROVED).all()
    monkeypatch.setattr("matchflow_matching.matchers.PIVOTS_PER_CELL", 0)
    early = match(batch[0], batch, chosen, grid=grid)
    assert (early.duality_gap[~early.converged] > 1e-6).all()
    assert not early.converged[np.abs(early.structural - solved.structural) > CLOSE].any()
    assert not early.converged.all()
