"""Where a chosen default goes: into the store itself, or through the server that has the store open."""

from __future__ import annotations

import enum
import shlex
from typing import TYPE_CHECKING

import matchflow
from matchflow_cli.failures import CommandError, one_line
from matchflow_cli.scoring import ENTROPIC, SPATIAL, WEIGHTED
from matchflow_index import GalleryStore, StoreUnavailableError
from matchflow_index.locking import WriterLock
from matchflow_matching import MatchMode, MatchSettings

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_index import GallerySpec, MatchDefaults

PAPER_DEPTH = 100
# Times on the wire are rounded to microseconds on their way to a client.
SAME_TIME_S = 1e-3


class Keeper(enum.StrEnum):
    """Who writes the default down, in words."""

    STORE = "written to the store"
    SERVER = "set through the server"


def find_keeper(store: Path, server: str, spec: GallerySpec) -> Keeper:
    """Return who can write the default of this gallery.

    Raises CommandError when the store is open elsewhere and the server does not answer for it.
    """
    try:
        WriterLock(store / "writer.lock").release()
    except StoreUnavailableError as error:
        _check_server(server, spec, str(error))
        return Keeper.SERVER
    return Keeper.STORE


def keep(store: Path, server: str, spec: GallerySpec, way: MatchDefaults) -> Keeper:
    """Write the gallery's default and return who did; CommandError with what to do by hand when that fails."""
    try:
        keeper = find_keeper(store, server, spec)
        if keeper is Keeper.SERVER:
            chosen = as_rerank(way)
            with matchflow.Client(server) as client:
                client.set_default_rerank(spec.gallery_id, mode=chosen.mode, depth=chosen.depth, tuning=chosen.tuning)
        else:
            with GalleryStore.open(store) as opened:
                opened.gallery(spec.gallery_id).set_match_defaults(way)
    except (CommandError, matchflow.MatchflowError, StoreUnavailableError) as error:
        by_hand = set_default_command(spec.gallery_id, way)
        raise CommandError(f"the choice was not stored: {one_line(error)}; by hand: {by_hand}") from error
    return keeper


def _check_server(server: str, spec: GallerySpec, why: str) -> None:
    try:
        with matchflow.Client(server) as client:
            found = client.get_gallery(spec.gallery_id)
    except matchflow.MatchflowError as error:
        raise CommandError(
            f"{why}; its server could store the choice, but {one_line(error)}; --dry-run stores nothing"
        ) from error
    if abs(found.create_time.timestamp() - spec.create_time_s) > SAME_TIME_S:
        raise CommandError(
            f"{why}; the server at {server} has another gallery {spec.gallery_id!r} than this store; name the server "
            f"that has the store open with --server, or store nothing with --dry-run"
        )


def match_mode(mode: matchflow.RerankMode) -> MatchMode:
    """Return the mode as the matcher knows it."""
    return MatchMode.COSINE if mode is matchflow.RerankMode.NONE else MatchMode(mode)


def rerank_mode(mode: MatchMode) -> matchflow.RerankMode:
    """Return the mode as the client knows it."""
    return matchflow.RerankMode.NONE if mode is MatchMode.COSINE else matchflow.RerankMode(mode)


def as_rerank(way: MatchDefaults) -> matchflow.RerankSettings:
    """Return the defaults as the client has them, with every setting."""
    settings = way.settings
    return matchflow.RerankSettings(
        mode=rerank_mode(settings.mode),
        depth=way.depth,
        tuning=matchflow.Tuning(
            global_weight=settings.global_weight,
            marginals=matchflow.Marginals(settings.marginals),
            epsilon=settings.epsilon,
            tolerance=settings.tolerance,
            max_iterations=settings.max_iterations,
            spatial_weight=settings.spatial_weight,
            matched_mass=settings.matched_mass,
        ),
    )


def set_default_command(gallery: str, way: MatchDefaults) -> str:
    """Return the command that makes this the gallery's default: what it says and what is recommended for the mode."""
    settings, usual = way.settings, MatchSettings.of(way.settings.mode)
    mode = rerank_mode(settings.mode)
    options: dict[str, object] = {"--mode": mode}
    used = {"global_weight"} if mode is not matchflow.RerankMode.NONE else set()
    if used and way.depth != PAPER_DEPTH:
        options["--depth"] = way.depth
    if mode in WEIGHTED:
        used.add("marginals")
    if mode in SPATIAL:
        used.add("spatial_weight")
    if mode in ENTROPIC:
        used |= {"epsilon", "tolerance", "max_iterations"}
    if mode is matchflow.RerankMode.PARTIAL:
        used.add("matched_mass")
    for name in MatchSettings.__slots__:
        if name in used and getattr(settings, name) != getattr(usual, name):
            options[f"--{name.replace('_', '-')}"] = getattr(settings, name)
    words = [part for name, value in options.items() for part in (name, str(value).removesuffix(".0"))]
    return shlex.join(["matchflow", "gallery", "set-default", gallery, *words])
