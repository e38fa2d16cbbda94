"""The ways of matching that tuning tries, and what each costs by a fixed scale."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from matchflow_index.match_defaults import MatchDefaults
from matchflow_matching import Marginals, MatchMode, MatchSettings
from matchflow_matching.matchers import FLOAT32_EPSILONS
from matchflow_matching.settings import TRANSPORT_MODES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

GLOBAL_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
SPATIAL_WEIGHTS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
ASSIGNMENT_SPATIAL_WEIGHTS = (0.0, 1.0, 4.0)
EXACT_SPATIAL_WEIGHTS = (0.25, 1.0, 4.0)
MATCHED_MASSES = (0.5, 0.75)
# Its global weight gives a pair its cosine as score.
NO_SECOND_STAGE = MatchDefaults(settings=MatchSettings.of(MatchMode.COSINE))
DEPTHS = (20, 50, 100, 200, 500, 1_000)

EXACT_MODES = frozenset({MatchMode.EARTH_MOVER, MatchMode.PARTIAL})
PLAIN_MODES = frozenset(MatchMode) - EXACT_MODES
# Modes whose score depends on the weights of the cells.
WEIGHTED_MODES = TRANSPORT_MODES | {MatchMode.MAX_SIM, MatchMode.CHAMFER}

# What a pair costs, in the time of its similarities: orders of magnitude, from measurements at 4 x 4 cells of 128.
ASSIGNMENT_COST = 1.0
ENTROPIC_COST = 2.0
EXACT_COST = 6.0
LOG_DOMAIN_COST = 250.0


def solver_settings(modes: Iterable[MatchMode]) -> list[MatchSettings]:
    """Return what the solvers are run with, all with a global weight of 0: any other is had from the same run."""
    return [settings for mode in MatchMode if mode in set(modes) for settings in _of_mode(mode)]


def _of_mode(mode: MatchMode) -> Iterator[MatchSettings]:
    if mode is MatchMode.STRUCTURAL:
        for marginals in Marginals:
            yield MatchSettings(mode=mode, global_weight=0.0, marginals=marginals)
    elif mode is MatchMode.POSITION_AWARE:
        for weight, marginals in itertools.product(SPATIAL_WEIGHTS, Marginals):
            yield MatchSettings(
                mode=mode, global_weight=0.0, marginals=marginals, spatial_weight=weight, epsilon=_epsilon(weight)
            )
    elif mode in {MatchMode.MAX_SIM, MatchMode.CHAMFER}:
        for weight, marginals in itertools.product(ASSIGNMENT_SPATIAL_WEIGHTS, Marginals):
            yield MatchSettings(mode=mode, global_weight=0.0, marginals=marginals, spatial_weight=weight)
    elif mode in EXACT_MODES:
        masses = MATCHED_MASSES if mode is MatchMode.PARTIAL else (1.0,)
        sides = (MatchSettings.of(mode).marginals, Marginals.UNIFORM)
        for weight, mass, side in itertools.product(EXACT_SPATIAL_WEIGHTS, masses, sides):
            yield MatchSettings(mode=mode, global_weight=0.0, marginals=side, spatial_weight=weight, matched_mass=mass)
    else:
        yield MatchSettings.of(mode, global_weight=0.0)


def _epsilon(spatial_weight: float) -> float:
    """Return the paper's epsilon, or the least in hundredths with which a pair stays in the fast float32 kernels."""
    return max(MatchSettings().epsilon, math.ceil(100 * (2 + spatial_weight) / FLOAT32_EPSILONS) / 100)


def candidates(modes: Iterable[MatchMode], depths: Sequence[int]) -> list[MatchDefaults]:
    """Return every way of matching: solver settings x global weights x depths; a single one for MatchMode.COSINE."""
    found = []
    for settings in solver_settings(modes):
        if settings.mode is MatchMode.COSINE:
            found.append(NO_SECOND_STAGE)
            continue
        for weight, depth in itertools.product(GLOBAL_WEIGHTS, depths):
            found.append(MatchDefaults(settings=replace(settings, global_weight=weight), depth=depth))
    return found


def depths_for(count: int, deepest: int = DEPTHS[-1]) -> tuple[int, ...]:
    """Return the depths to try in a gallery of `count` images: the usual ones, and all when that is not deeper.

    >>> depths_for(300), depths_for(5000)
    ((20, 50, 100, 200, 300), (20, 50, 100, 200, 500, 1000))
    """
    usual = tuple(depth for depth in DEPTHS if depth < min(count, deepest + 1))
    return (*usual, count) if count <= deepest else usual


def relative_cost(way: MatchDefaults) -> float:
    """Return what a query costs beyond the coarse stage, by a fixed scale: pairs times the cost of one.

    Measured times would be nearer to the truth, but no choice should depend on how busy a machine is.
    """
    settings = way.settings
    if settings.mode is MatchMode.COSINE:
        return 0.0
    if settings.mode in EXACT_MODES:
        cost = EXACT_COST
    elif settings.mode not in TRANSPORT_MODES:
        cost = ASSIGNMENT_COST
    elif (2 + settings.spatial_weight) / settings.epsilon > FLOAT32_EPSILONS:
        cost = LOG_DOMAIN_COST
    else:
        cost = ENTROPIC_COST
    return cost * way.depth


def terms(settings: MatchSettings) -> int:
    """Return how many things beside the similarities of cells the score depends on, 0 to 4: the fewer, the simpler."""
    return (
        (settings.spatial_weight > 0)
        + (settings.global_weight > 0)
        + (settings.mode in WEIGHTED_MODES and settings.marginals is not Marginals.UNIFORM)
        + (settings.matched_mass < 1)
    )
