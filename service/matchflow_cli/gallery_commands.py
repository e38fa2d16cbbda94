"""`matchflow gallery`: list, show, create, adjust and delete galleries, and what gallery_operations.py does offline."""

import itertools
from typing import Annotated

import typer

import matchflow
from matchflow_cli import gallery_operations
from matchflow_cli.confirming import confirmed
from matchflow_cli.failures import CommandError
from matchflow_cli.options import DEFAULT_SERVER, JsonOption, ServerOption
from matchflow_cli.output import as_json, console, counted, labels, table, text
from matchflow_cli.scoring import (
    DepthOption,
    EpsilonOption,
    GlobalWeightOption,
    IterationsOption,
    MarginalsOption,
    MatchedMassOption,
    SpatialWeightOption,
    ToleranceOption,
    in_words,
)

GalleryArgument = Annotated[str, typer.Argument(help="The gallery.")]


def application() -> typer.Typer:
    """Return the group of commands."""
    group = typer.Typer(help="List, show, create, adjust, delete, back up and check galleries.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("show")(show)
    group.command("create")(create)
    group.command("set-default")(set_default)
    group.command("delete")(delete)
    gallery_operations.add_to(group)
    return group


def list_(*, json: JsonOption = False, server: ServerOption = DEFAULT_SERVER) -> None:
    """List the galleries of the server."""
    with matchflow.Client(server) as client:
        galleries = list(client.list_galleries())
    if json:
        typer.echo(as_json(galleries))
        return
    listed = table("gallery", "model", "bundle", "cells", "D", "images", "created", right=("D", "images"))
    for each in galleries:
        listed.add_row(
            text(each.id),
            text(each.model),
            each.bundle_digest[:12],
            f"{each.grid.rows} x {each.grid.columns}",
            str(each.embedding_dim),
            f"{each.image_count:,}",
            f"{each.create_time:%Y-%m-%d %H:%M}",
        )
    console().print(listed if galleries else "no galleries; make one with `matchflow gallery create NAME`")


def show(
    *,
    gallery: GalleryArgument,
    images: Annotated[int, typer.Option(min=0, help="Also list this many images.")] = 0,
    json: JsonOption = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Show one gallery, and some of its images if asked."""
    with matchflow.Client(server) as client:
        found = client.get_gallery(gallery)
        first = list(itertools.islice(client.list_images(gallery), images))
    if json:
        typer.echo(as_json({"gallery": found, "images": first}))
        return
    out = console()
    for name, value in {
        "gallery": found.id,
        "model": found.model,
        "bundle": found.bundle_digest,
        "cells": f"{found.grid.rows} x {found.grid.columns} of {found.embedding_dim}",
        "images": f"{found.image_count:,}",
        "generation": f"{found.generation}" if found.generation else "the server does not say",
        "changes": f"{found.sequence:,}",
        "created": f"{found.create_time:%Y-%m-%d %H:%M:%S} UTC",
        "scored by": in_words(found.default_rerank),
        "thumbnails": "kept" if found.keeps_thumbnails else "not kept: no overlays",
    }.items():
        out.print(f"{name:<11} {text(value)}")
    if first:
        listed = table("image", "labels", "size", "updated", right=("size",))
        for image in first:
            size = f"{image.width_px} x {image.height_px}" if image.width_px else "features"
            updated = f"{image.update_time:%Y-%m-%d %H:%M}" if image.update_time else "-"
            listed.add_row(text(image.id), labels(image.labels), size, updated)
        out.print(listed)


def create(
    *,
    gallery: GalleryArgument,
    model: Annotated[str, typer.Option(help="Model that its images are computed with. Default: the server's.")] = "",
    thumbnails: Annotated[bool, typer.Option(help="Whether to keep pictures for overlays.")] = True,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Create an empty gallery."""
    with matchflow.Client(server) as client:
        made = client.create_gallery(gallery, model=model, thumbnails=thumbnails)
    console().print(f"created {text(made.id)} for model {text(made.model)} (bundle {made.bundle_digest[:12]})")


def set_default(
    *,
    gallery: GalleryArgument,
    mode: Annotated[
        matchflow.RerankMode | None, typer.Option("--mode", help="How pairs are scored. Default: as in the paper.")
    ] = None,
    depth: DepthOption = None,
    global_weight: GlobalWeightOption = None,
    marginals: MarginalsOption = None,
    spatial_weight: SpatialWeightOption = None,
    matched_mass: MatchedMassOption = None,
    epsilon: EpsilonOption = None,
    tolerance: ToleranceOption = None,
    max_iterations: IterationsOption = None,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Choose how a gallery's pairs are scored when nobody says how.

    What is not given here has the value that is recommended for the mode.
    """
    tuning = matchflow.Tuning(
        global_weight=global_weight,
        marginals=marginals,
        spatial_weight=spatial_weight,
        matched_mass=matched_mass,
        epsilon=epsilon,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    with matchflow.Client(server) as client:
        changed = client.set_default_rerank(gallery, mode=mode, depth=depth, tuning=tuning)
    console().print(f"{text(changed.id)} is scored by {in_words(changed.default_rerank)}")


def delete(
    *,
    gallery: GalleryArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Delete a gallery and every image in it."""
    with matchflow.Client(server) as client:
        found = client.get_gallery(gallery)
        what = f"Delete {found.id} and its {counted(found.image_count, 'image')} for good?"
        if not yes and not confirmed(what):
            raise CommandError(f"{gallery} was not deleted; to delete it without being asked add --yes")
        client.delete_gallery(gallery)
    console().print(f"deleted {text(gallery)} and its {counted(found.image_count, 'image')}")
