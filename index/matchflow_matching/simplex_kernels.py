"""The network simplex for dense transport problems in whole numbers, compiled.

    minimise  sum_ij F_ij C_ij   subject to   F 1 = supply,   F' 1 = demand,   F >= 0

A basis is a spanning tree of rows and columns; its arcs carry all flow, and fix potentials with C_ij - a_i - b_j = 0
along them. A pivot brings in an arc where that difference is negative and drops the arc of the cycle that runs empty
first; without such an arc the tree is optimal (Dantzig 1951; Ahuja, Magnanti, Orlin, Network Flows, 1993, chapter 11).
All is int64: nothing is compared within a tolerance, and every machine does the same pivots.

Two things are packed into the whole numbers. Each row has one unit more to ship than its mass says and the last column
takes them all, with masses multiples of more than twice the number of rows: no arc of a tree can run empty together
with another one, so that every pivot makes progress and no tree comes twice (Orden's perturbation, Management Science
2, 1956); rounding the flows removes it. And a cost ends in the number of its column, so that one minimum over a row
finds the arc too; among equal costs the first column wins.

Arrays: costs int64 [R, C], packed as in Units. Nodes are the rows, then the columns. masses int64 [R + C]: supply and
demand, packed, of equal sums, used up by `solve`. potentials int64 [R + C]: a and b, packed, without a column. tree
int64 [R + C, 8]: a node's parent, the flow of the arc to it, its depth, and its place among the lists of children: its
own first child, and its following and preceding sibling; -1 where there is none. ORDER is a list of its own: the nodes
as they were finished by the first tree, leaves first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from matchflow_matching.compiling import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wholes = NDArray[np.int64]

# A node's fields fill one cache line.
FIELDS = 8
PARENT, FLOW, DEPTH, FIRST, FOLLOWING, PRECEDING, ORDER = range(7)

FAR = 2**61
# Costs are at most HIGHEST_COST, but for an arc that an optimal flow must not use. What a tree's path of 2 C arcs sums
# up to, in units of 2^-(53 - 2 log2 C) and packed, stays below 2^61.
HIGHEST_COST, FORBIDDEN_COST = 127.0, 128.0
COST_BITS, FINEST_COST_BITS = 53, 40
# Rows with a candidate that are looked at for the best one: fewer pivots against longer searches.
ROWS_PER_SEARCH = 6


class Units(NamedTuple):
    """How numbers become whole: mass * 2^mass_bits; cost * `cost`, then that * 2^index_bits + its column."""

    mass_bits: int
    cost: float
    index_bits: int


@compiled()
def units(rows: int, columns: int) -> Units:
    """Return the units for problems of up to so many rows and columns."""
    mass_bits, index_bits = 2, 1
    while 1 << mass_bits < 2 * rows + 2:
        mass_bits += 1
    while 1 << index_bits < columns:
        index_bits += 1
    return Units(mass_bits, 2.0 ** min(FINEST_COST_BITS, COST_BITS - 2 * index_bits), index_bits)


@compiled(inline="always")
def _cheapest(costs: Wholes, row: int, potentials: Wholes, rows: int, columns: int) -> np.int64:
    """Return the least of a row's costs less the columns' potentials; it ends in the column's number."""
    least = np.int64(2 * FAR - 1)
    for j in range(columns):
        least = min(least, costs[row, j] - potentials[rows + j])
    return least


@compiled(inline="always")
def _price_by_means(costs: Wholes, potentials: Wholes, index_bits: int, rows: int, columns: int) -> None:
    """Set the columns' potentials to their mean costs: a row then prefers what is cheap for it above others."""
    for j in range(columns):
        potentials[rows + j] = 0
    for i in range(rows):
        for j in range(columns):
            potentials[rows + j] += costs[i, j] >> index_bits
    for j in range(columns):
        potentials[rows + j] = (potentials[rows + j] // rows) << index_bits


@compiled()
def _start(
    costs: Wholes, masses: Wholes, potentials: Wholes, tree: Wholes, index_bits: int, rows: int, columns: int
) -> None:
    """Make a first tree: row after row ships what fits to its best column, round after round.

    Each arc finishes either its row or its column, which becomes a child of the other; only the last finishes both.
    """
    _price_by_means(costs, potentials, index_bits, rows, columns)
    count = 0
    while True:
        for i in range(rows):
            if masses[i] == 0:
                continue
            column = rows + (_cheapest(costs, i, potentials, rows, columns) & ((1 << index_bits) - 1))
            mass = min(masses[i], masses[column])
            masses[i] -= mass
            masses[column] -= mass
            node, other = (i, column) if masses[i] == 0 else (column, i)
            tree[node, PARENT], tree[node, FLOW], tree[count, ORDER] = other, mass, node
            count += 1
            if masses[column] == 0:
                potentials[column] = -FAR
                if masses[i] == 0:
                    tree[other, PARENT], tree[other, FLOW], tree[count, ORDER] = -1, 0, other
                    return


@compiled(inline="always")
def _hang(tree: Wholes, node: int, parent: int, flow: int) -> None:
    """Make a node the first child of another one."""
    eldest = tree[parent, FIRST]
    tree[node, PARENT], tree[node, FLOW] = parent, flow
    tree[node, FOLLOWING], tree[node, PRECEDING] = eldest, -1
    if eldest >= 0:
        tree[eldest, PRECEDING] = node
    tree[parent, FIRST] = node


@compiled(inline="always")
def _take_down(tree: Wholes, node: int) -> None:
    """Take a node out of its parent's children."""
    before, after = tree[node, PRECEDING], tree[node, FOLLOWING]
    if before >= 0:
        tree[before, FOLLOWING] = after
    else:
        tree[tree[node, PARENT], FIRST] = after
    if after >= 0:
        tree[after, PRECEDING] = before


@compiled()
def _plant(costs: Wholes, potentials: Wholes, tree: Wholes, rows: int, columns: int) -> None:
    """Fill depths, children and potentials of the first tree, from the root on."""
    nodes = rows + columns
    for node in range(nodes):
        tree[node, FIRST] = -1
    root = tree[nodes - 1, ORDER]
    tree[root, DEPTH] = 0
    potentials[root] = 0
    for k in range(nodes - 2, -1, -1):
        node = tree[k, ORDER]
        parent = tree[node, PARENT]
        tree[node, DEPTH] = tree[parent, DEPTH] + 1
        _hang(tree, node, parent, tree[node, FLOW])
        i, j = min(node, parent), max(node, parent) - rows
        potentials[node] = costs[i, j] - j - potentials[parent]


@compiled(inline="always")
def _leaving(tree: Wholes, row: int, column: int, rows: int) -> tuple[int, int, bool]:
    """Return the node above which the cycle runs empty first, the cycle's top, and whether it is on the row's side.

    Shipping more from the row to the column takes flow from the arcs above rows on the row's side, and from those
    above columns on the column's side.
    """
    least, leaving, on_row_side = np.int64(2 * FAR - 1), row, True
    a, b = row, column
    while a != b:
        if tree[a, DEPTH] >= tree[b, DEPTH]:
            if a < rows and tree[a, FLOW] < least:
                least, leaving, on_row_side = tree[a, FLOW], a, True
            a = tree[a, PARENT]
        else:
            if b >= rows and tree[b, FLOW] < least:
                least, leaving, on_row_side = tree[b, FLOW], b, False
            b = tree[b, PARENT]
    return leaving, a, on_row_side


@compiled(inline="always")
def _ship(tree: Wholes, row: int, column: int, top: int, mass: int, rows: int) -> None:
    """Send a mass round the cycle that an arc from a row to a column closes below a node."""
    node = row
    while node != top:
        tree[node, FLOW] += -mass if node < rows else mass
        node = tree[node, PARENT]
    node = column
    while node != top:
        tree[node, FLOW] += mass if node < rows else -mass
        node = tree[node, PARENT]


@compiled(inline="always")
def _shift(tree: Wholes, potentials: Wholes, top: int, change: int, rows: int) -> None:
    """Fill the depths from a node down anew; add a change to the potentials of rows there, take it from columns."""
    node = top
    while True:
        tree[node, DEPTH] = tree[tree[node, PARENT], DEPTH] + 1
        potentials[node] += change if node < rows else -change
        if tree[node, FIRST] >= 0:
            node = tree[node, FIRST]
            continue
        while node != top and tree[node, FOLLOWING] < 0:
            node = tree[node, PARENT]
        if node == top:
            return
        node = tree[node, FOLLOWING]


@compiled(inline="always")
def _pivot(tree: Wholes, potentials: Wholes, row: int, column: int, reduced: int, rows: int) -> None:
    """Bring in the arc from a row to a column, both given as nodes, whose reduced cost is negative."""
    leaving, top, on_row_side = _leaving(tree, row, column, rows)
    mass = tree[leaving, FLOW]
    _ship(tree, row, column, top, mass, rows)
    # What hung below the arc that leaves is hung up by the arc that enters, all the way between turned round.
    below, above = (row, column) if on_row_side else (column, row)
    node, parent, flow = below, above, mass
    while True:
        old_parent, old_flow = tree[node, PARENT], tree[node, FLOW]
        _take_down(tree, node)
        _hang(tree, node, parent, flow)
        if node == leaving:
            break
        node, parent, flow = old_parent, node, old_flow
    _shift(tree, potentials, below, reduced if on_row_side else -reduced, rows)


@compiled()
def solve(
    costs: Wholes, masses: Wholes, potentials: Wholes, tree: Wholes, scale: Units, rows: int, columns: int, limit: int
) -> int:
    """Find an optimal tree within `limit` pivots, else leave a worse one; return how many it took.

    The flow of a node's arc to its parent, over 2^mass_bits and rounded, is a flow for the masses without perturbation.
    """
    for i in range(rows):
        masses[i] += 1
    masses[rows + columns - 1] += rows
    _start(costs, masses, potentials, tree, scale.index_bits, rows, columns)
    _plant(costs, potentials, tree, rows, columns)
    column_mask = (1 << scale.index_bits) - 1
    pivots, row, idle = 0, 0, 0
    while idle < rows and pivots < limit:
        least, entering, partner = np.int64(0), 0, 0
        searched, idle = 0, 0
        while searched < ROWS_PER_SEARCH and idle < rows:
            key = _cheapest(costs, row, potentials, rows, columns)
            reduced = (key & ~column_mask) - potentials[row]
            if reduced < least:
                least, entering, partner = reduced, row, key & column_mask
            # Rows without a candidate are counted only until the first with one.
            if least < 0:
                searched += 1
            else:
                idle += 1
            row = row + 1 if row + 1 < rows else 0
        if least < 0:
            _pivot(tree, potentials, entering, rows + partner, least, rows)
            pivots += 1
    return pivots
