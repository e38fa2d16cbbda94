"""`matchflow generation`: put a gallery under another model, look at what that changes, switch, and switch back."""

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import matchflow
from matchflow import GenerationState
from matchflow_cli.confirming import confirmed
from matchflow_cli.failures import CommandError
from matchflow_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from matchflow_cli.output import as_json, console, counted, printable, progress_console, table, text
from matchflow_cli.scoring import in_words

GalleryArgument = Annotated[str, typer.Argument(help="The gallery.")]
NumberArgument = Annotated[
    int, typer.Argument(metavar="N", min=1, help="Number of the generation; `matchflow generation list` shows it.")
]
# Filling takes minutes to hours; asking costs the server next to nothing.
POLL_S = 0.5


def application() -> typer.Typer:
    """Return the group of commands."""
    group = typer.Typer(
        help="Build a gallery under another model beside the one that answers, compare, switch, switch back.",
        no_args_is_help=True,
    )
    group.command("list")(list_)
    for command in (create, show, missing, compare, activate, delete):
        group.command(command.__name__)(command)
    return group


def list_(*, gallery: GalleryArgument, json: JsonOption = False, server: ServerOption = DEFAULT_SERVER) -> None:
    """List the generations of a gallery, the active one first."""
    with matchflow.Client(server) as client:
        found = client.list_generations(gallery)
    if json:
        typer.echo(as_json(found))
        return
    right = ("N", "D", "images", "missing", "pending")
    listed = table("N", "state", "model", "bundle", "cells", *right[1:], "created", right=right)
    for each in found:
        listed.add_row(
            str(each.number),
            _state(each),
            text(each.model),
            each.bundle_digest[:12],
            f"{each.grid.rows} x {each.grid.columns}",
            str(each.embedding_dim),
            f"{each.image_count:,}",
            f"{each.missing_count:,}",
            f"{each.pending_changes:,}",
            f"{each.create_time:%Y-%m-%d %H:%M}",
        )
    console().print(listed)


def create(
    *,
    gallery: GalleryArgument,
    model: Annotated[str, typer.Option(help="Model of the new generation. Default: the server's.")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it is filled; the exit status is 1 unless it has every image.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Begin a second generation of a gallery under another model; the active one goes on answering.

    It is filled in the background from the thumbnails that the gallery keeps, whether somebody waits or not.
    """
    out = console()
    with matchflow.Client(server) as client:
        made = client.create_generation(gallery, model=model)
        out.print(
            f"began generation {made.number} of {text(gallery)} for model {text(made.model)} "
            f"(bundle {made.bundle_digest[:12]})"
        )
        if wait:
            made = _filled(client, made)
    if not wait:
        out.print(f"it is filled in the background: matchflow generation show {text(gallery)} {made.number}")
        return
    out.print(_what_now(made), soft_wrap=True)
    if made.state not in {GenerationState.READY, GenerationState.ACTIVE}:
        raise typer.Exit(1)


def show(
    *, gallery: GalleryArgument, number: NumberArgument, json: JsonOption = False, server: ServerOption = DEFAULT_SERVER
) -> None:
    """Show one generation, and what can be done with it next."""
    with matchflow.Client(server) as client:
        found = client.get_generation(gallery, number)
    if json:
        typer.echo(as_json(found))
        return
    out = console()
    for name, value in {
        "generation": f"{found.number} of {found.gallery}",
        "state": _state(found),
        "model": found.model,
        "bundle": found.bundle_digest,
        "cells": f"{found.grid.rows} x {found.grid.columns} of {found.embedding_dim}",
        "images": f"{found.image_count:,}",
        "missing": f"{found.missing_count:,}",
        "pending": counted(found.pending_changes, "change"),
        "last change": f"{found.sequence:,}",
        "created": f"{found.create_time:%Y-%m-%d %H:%M:%S} UTC",
        "scored by": in_words(found.default_rerank),
    }.items():
        out.print(f"{name:<11} {text(value)}")
    out.print(_what_now(found), soft_wrap=True)


def missing(
    *, gallery: GalleryArgument, number: NumberArgument, json: JsonOption = False, server: ServerOption = DEFAULT_SERVER
) -> None:
    """List the ids of the images that a generation lacks, one per line."""
    with matchflow.Client(server) as client:
        found = client.missing_images(gallery, number)
        if json:
            typer.echo(as_json(list(found)))
            return
        for image_id in found:
            typer.echo(printable(image_id))


def compare(
    *,
    gallery: GalleryArgument,
    number: NumberArgument,
    queries: Annotated[int, typer.Option(min=1, max=1000, help="Stored images to ask with.")] = 200,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=100, help="Hits for each of them.")] = 10,
    label: Annotated[str, typer.Option(help="Label whose value right hits share with the query, such as class.")] = "",
    seed: Annotated[int, typer.Option(help="Another number asks with other images.")] = 0,
    json: JsonOption = False,
    timeout: TimeoutOption = 600.0,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Ask a generation and the active one the same, and say where they differ; nothing is changed."""
    with matchflow.Client(server, timeout_s=timeout) as client:
        compared = client.compare_generations(gallery, number, query_count=queries, top_k=top_k, label=label, seed=seed)
    if json:
        typer.echo(as_json(compared))
    else:
        report(compared)


def activate(
    *,
    gallery: GalleryArgument,
    number: NumberArgument,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Switch although images are missing; nobody finds those meanwhile.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Let a generation answer from now on; the one that did so far is kept, and follows."""
    with matchflow.Client(server) as client:
        before = client.get_gallery(gallery).generation
        active = client.activate_generation(gallery, number, allow_missing=allow_missing)
    out = console()
    if before == number:
        out.print(f"generation {number} of {text(gallery)} was active already")
        return
    lacking = f"; {counted(active.missing_count, 'image')} missing" if active.missing_count else ""
    out.print(f"generation {number} of {text(gallery)} is active: model {text(active.model)}{lacking}")
    if before:
        out.print(f"to go back: matchflow generation activate {text(gallery)} {before}", soft_wrap=True)


def delete(
    *,
    gallery: GalleryArgument,
    number: NumberArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Delete a generation that is not active, with everything computed for it."""
    with matchflow.Client(server) as client:
        found = client.get_generation(gallery, number)
        what = f"generation {number} of {gallery} and what was computed of its {counted(found.image_count, 'image')}"
        # The server refuses to delete the active one.
        if found.state is not GenerationState.ACTIVE and not yes and not confirmed(f"Delete {what} for good?"):
            raise CommandError(f"generation {number} was not deleted; to delete it without being asked add --yes")
        client.delete_generation(gallery, number)
    console().print(f"deleted generation {number} of {text(gallery)}")


def report(compared: matchflow.GenerationComparison) -> None:
    """Print how alike two generations answer, which is right more often, and where they differ most."""
    out = console()
    active, other = compared.active_generation, compared.generation
    out.print(
        f"generation {other} beside {active}, which is active: {counted(compared.query_count, 'image')} asked with, "
        f"{counted(compared.top_k, 'hit')} each"
    )
    if not compared.query_count:
        out.print("nothing to compare: the two have no images in common")
        return
    out.print(f"{'same first':<11} {compared.same_first:.1%} of the first hits")
    out.print(f"{'overlap':<11} {compared.overlap:.1%} of all hits")
    shift = compared.score_shift
    if shift.pairs:
        out.print(
            f"{'score':<11} {shift.mean:+.4f} in the mean, median {shift.median:+.4f}, 90 % from {shift.p5:+.4f} to "
            f"{shift.p95:+.4f}, over {counted(shift.pairs, 'hit')} that both have"
        )
    if compared.active_precision_at_1 is not None and compared.precision_at_1 is not None:
        out.print(
            f"{'right first':<11} {compared.precision_at_1:.1%}; active {compared.active_precision_at_1:.1%}, "
            f"of {counted(compared.labelled_queries, 'labelled image')}"
        )
    if compared.disagreements:
        out.print("they agree least on")
        listed = table("image", "overlap", right=("overlap",))
        for each in compared.disagreements:
            listed.add_row(text(each.image.image_id), f"{each.overlap:.1%}")
        out.print(listed)


def _filled(client: matchflow.Client, generation: matchflow.Generation) -> matchflow.Generation:
    """Return a generation once nothing more is computed for it, and show how far it is meanwhile."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=progress_console(), transient=True) as progress:
            task = progress.add_task("filling", total=None)
            while generation.state is GenerationState.FILLING:
                total = generation.image_count + generation.missing_count
                progress.update(task, completed=generation.image_count, total=total)
                time.sleep(POLL_S)
                generation = client.get_generation(generation.gallery, generation.number)
    except KeyboardInterrupt:
        progress_console().print(
            f"the server goes on filling it: matchflow generation show {text(generation.gallery)} {generation.number}",
            soft_wrap=True,
        )
        raise
    return generation


def _state(generation: matchflow.Generation) -> str:
    return generation.state.replace("_", " ")


def _what_now(generation: matchflow.Generation) -> str:
    """Return what its state means for whoever wants to switch to it."""
    which = f"{text(generation.gallery)} {generation.number}"
    match generation.state:
        case GenerationState.ACTIVE:
            return "it answers every search that names no other"
        case GenerationState.READY:
            return f"it has every image: matchflow generation compare {which}, matchflow generation activate {which}"
        case GenerationState.INCOMPLETE:
            return (
                f"{counted(generation.missing_count, 'image')} to be sent again: matchflow generation missing {which}, "
                f"then matchflow ingest SOURCE --gallery {text(generation.gallery)} --generation {generation.number}"
            )
        case GenerationState.WAITING_FOR_MODEL:
            return f"this server has not loaded model {text(generation.model)}: name its bundle to `matchflow serve`"
        case GenerationState.FILLING:
            return "it is being filled, and follows the active one"
        case _:
            return "the server says a state that this version does not know"
