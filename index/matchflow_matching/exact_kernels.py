"""Exact optimal transport between cells, whole or partial, compiled; reference_exact.py is its specification.

    maximise    sum_ij T_ij V_ij
    subject to  T 1 = u,   T' 1 = v,   T >= 0                          (matched_mass m = 1)
    or          T 1 <= u,  T' 1 <= v,  sum T = m,  T >= 0              (m < 1)

with the values V: similarities, less the penalties of a spatial weight. The score is sum_ij P_ij V_ij with P = T / m.
simplex_kernels.py finds T in whole numbers: masses are rounded to multiples of 2^-40 and values to 2^-40 (2^-37 for 128
cells), so that the solver has no tolerance. What the rounding does to the problem as given is in the gap, which is
worked out in float64 from the values as given.

Partial transport is whole transport with one more row and column that take up what is left over, free of cost but not
for each other (Caffarelli and McCann, Annals of Mathematics 171, 2010; Chapel et al., NeurIPS 2020, arXiv 2002.08276).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled
from matchflow_matching.kernels import NO_VALID_CELL, UNIFORM, weigh
from matchflow_matching.simplex_kernels import FIELDS, FLOW, FORBIDDEN_COST, HIGHEST_COST, PARENT, Units, solve, units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Integers = NDArray[np.int32]
    Wholes = NDArray[np.int64]
    Mask = NDArray[np.bool_]

# Masses in units of 2^-40.
ONE = 2**40
UNIT = 1.0 / 2**40


@compiled(inline="always")
def _round_masses(weights: Floats, places: Wholes, masses: Wholes) -> tuple[int, float]:
    """Fill places with the cells that weigh something and masses with their weights in units.

    Returns how many they are and the L1 distance of masses from weights, both summing to 1. The masses sum to ONE: what
    rounding leaves over goes to the first of the heaviest cells.
    """
    total = np.float64(0)
    for i in range(weights.size):
        total += np.float64(weights[i])
    count, heaviest, left, distance = 0, 0, np.int64(ONE), 0.0
    for i in range(weights.size):
        weight = np.float64(weights[i]) / total
        mass = np.int64(weight * ONE + 0.5)
        distance += abs(mass * UNIT - weight)
        if mass > 0:
            places[count] = i
            masses[count] = mass
            left -= mass
            if mass > masses[heaviest]:
                heaviest = count
            count += 1
    masses[heaviest] += left
    return count, distance + abs(left) * UNIT


@compiled(inline="always")
def _load(
    values: Floats,
    image_places: Wholes,
    query_places: Wholes,
    scale: Units,
    rows: int,
    columns: int,
    chosen: Doubles,
    costs: Wholes,
) -> None:
    """Fill chosen [R, C] with the values of cells that weigh something, costs [R, C] with their negatives, packed."""
    for i in range(rows):
        for j in range(columns):
            chosen[i, j] = values[image_places[i], query_places[j]]
        for j in range(columns):
            cost = min(max(-chosen[i, j], -HIGHEST_COST), HIGHEST_COST)
            costs[i, j] = (np.int64(cost * scale.cost) << scale.index_bits) + j


@compiled(inline="always")
def _add_leftovers(scale: Units, rows: int, columns: int, leftover: int, costs: Wholes, masses: Wholes) -> None:
    """Add the row and the column for what is left over, as the last ones."""
    for i in range(rows):
        costs[i, columns] = columns
    for j in range(columns):
        costs[rows, j] = j
    costs[rows, columns] = (np.int64(FORBIDDEN_COST * scale.cost) << scale.index_bits) + columns
    masses[rows] = leftover << scale.mass_bits
    masses[rows + 1 + columns] = leftover << scale.mass_bits


@compiled()
def _upper_bound(
    chosen: Doubles,
    image_masses: Wholes,
    query_masses: Wholes,
    potentials: Wholes,
    scale: Units,
    rows: int,
    columns: int,
    leftover: int,
    best: Doubles,
) -> float:
    """Return an upper bound of sum T V over all plans of that mass, whatever the solver did: weak duality.

    Whole: sum u a + sum v b for any a, with b_j = max_i (V_ij - a_i). Partial of mass m: l m + sum u a + sum v b for
    any l and a >= 0, with b_j = max(0, max_i (V_ij - a_i) - l). a and l come from the potentials; b is worked out anew
    from the values as given, in float64. best is float64 [C], overwritten.
    """
    partial = leftover > 0
    factor = 1.0 / (scale.cost * (1 << scale.index_bits))
    level, shift = 0.0, np.int64(0)
    if partial:
        # The leftover row and column cost nothing, so that a_i = -(potential_i + theirs) >= 0 and l = both of theirs.
        shift = potentials[rows + 1 + columns]
        level = (potentials[rows] + shift) * factor
    for j in range(columns):
        best[j] = -np.inf
    bound = level * (ONE - leftover) * UNIT
    for i in range(rows):
        dual = -(potentials[i] + shift) * factor
        dual = max(dual, 0.0) if partial else dual
        bound += image_masses[i] * UNIT * dual
        for j in range(columns):
            best[j] = max(best[j], chosen[i, j] - dual)
    for j in range(columns):
        least = best[j] - level
        least = max(least, 0.0) if partial else least
        bound += query_masses[j] * UNIT * least
    return bound


@compiled(inline="always")
def _read(
    tree: Wholes,
    chosen: Doubles,
    image_places: Wholes,
    query_places: Wholes,
    scale: Units,
    rows: int,
    columns: int,
    leftover: int,
    plan: Floats,
) -> tuple[float, float]:
    """Return the mass of T between cells and sum T V; fill plan [Rx, Rq] with T / m unless it is empty."""
    mass, score = 0.0, 0.0
    half, share = 1 << (scale.mass_bits - 1), (ONE - leftover) * UNIT
    first_column = rows + 1 if leftover > 0 else rows
    for node in range(2 * first_column - rows + columns):
        parent = tree[node, PARENT]
        i, j = min(node, parent), max(node, parent) - first_column
        if 0 <= i < rows and j < columns:
            flow = ((tree[node, FLOW] + half) >> scale.mass_bits) * UNIT
            mass += flow
            score += flow * chosen[i, j]
            if plan.size > 0:
                plan[image_places[i], query_places[j]] = np.float32(flow / share)
    return mass, score


@compiled()
def exact_transport(
    values: Floats,
    image_attention: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    skipped: Mask,
    cross: bool,
    matched_mass: float,
    limit: int,
    structural: Floats,
    iterations: Integers,
    errors: Floats,
    gaps: Floats,
    uniform: Mask,
    plans: Floats,
) -> None:
    """Score N pairs by exact transport of `matched_mass` (0 < m <= 1), the whole of it when that is 1.

    Inputs as in kernels.transport; limit: a pair is given up after so many pivots, with a plan that is not the best.
    Outputs, zero on entry: structural float32 [N], sum P V; iterations int32 [N], pivots; errors float32 [N], for whole
    transport the L1 violation of both marginals, else |mass - m| / m: up to ~1e-10, from rounding; gaps float32 [N], a
    proved upper bound of sum P V over all plans, less this one: up to ~1e-10 where the pair was not given up; uniform
    bool [N, 2]; plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted.
    """
    n, rx, rq = values.shape
    scale = units(rx + 1, rq + 1)
    u, image_places, image_masses = np.zeros(rx, np.float32), np.zeros(rx, np.int64), np.zeros(rx, np.int64)
    v, query_places, query_masses = np.zeros(rq, np.float32), np.zeros(rq, np.int64), np.zeros(rq, np.int64)
    chosen, costs, best = np.zeros((rx, rq)), np.zeros((rx + 1, rq + 1), np.int64), np.zeros(rq)
    masses, potentials = np.zeros(rx + rq + 2, np.int64), np.zeros(rx + rq + 2, np.int64)
    tree = np.zeros((rx + rq + 2, FIELDS), np.int64)
    no_plan = np.zeros((0, 0), np.float32)
    leftover = min(max(np.int64(ONE) - np.int64(matched_mass * ONE + 0.5), np.int64(0)), np.int64(ONE - 1))
    share = (ONE - leftover) * UNIT
    extra = 1 if leftover > 0 else 0
    for p in range(n):
        image_state = weigh(image_attention[p], image_valid[p], cross, u)
        query_state = weigh(query_attention[p], query_valid, cross, v)
        uniform[p, 0] = cross and image_state == UNIFORM
        uniform[p, 1] = cross and query_state == UNIFORM
        if NO_VALID_CELL in (image_state, query_state) or skipped[p]:
            continue
        rows, image_distance = _round_masses(u, image_places, image_masses)
        columns, query_distance = _round_masses(v, query_places, query_masses)
        if rows == 0 or columns == 0:
            continue
        _load(values[p], image_places, query_places, scale, rows, columns, chosen, costs)
        for i in range(rows):
            masses[i] = image_masses[i] << scale.mass_bits
        for j in range(columns):
            masses[rows + extra + j] = query_masses[j] << scale.mass_bits
        if extra:
            _add_leftovers(scale, rows, columns, leftover, costs, masses)
        iterations[p] = solve(costs, masses, potentials, tree, scale, rows + extra, columns + extra, limit)
        plan = plans[p] if plans.shape[0] > 0 else no_plan
        mass, score = _read(tree, chosen, image_places, query_places, scale, rows, columns, leftover, plan)
        bound = _upper_bound(chosen, image_masses, query_masses, potentials, scale, rows, columns, leftover, best)
        structural[p] = np.float32(score / share)
        errors[p] = np.float32(abs(mass - share) / share if extra else image_distance + query_distance)
        gaps[p] = np.float32((bound - score) / share)
