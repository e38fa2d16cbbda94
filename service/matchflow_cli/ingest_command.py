"""`matchflow ingest`: the images of a folder, a table or tar files go into a gallery."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import matchflow
from matchflow_cli.bulk_import import Import
from matchflow_cli.bulk_journal import Journal, can_not_be_made, default_path
from matchflow_cli.bulk_labels import LabelRules
from matchflow_cli.bulk_sources import SourceOptions, open_source
from matchflow_cli.bulk_tally import Tally
from matchflow_cli.failures import CommandError
from matchflow_cli.manifest import ID_COLUMN, PATH_COLUMN, ManifestColumns
from matchflow_cli.options import DEFAULT_SERVER, MISUSE, GalleryOption, ServerOption
from matchflow_cli.output import console, progress_console, text

SourceArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="A folder of images, with those below it; a table (.csv, .parquet) with their paths; or WebDataset tar "
        "files (.tar, .tar.gz), also as 'shard-{0000..0009}.tar' or with wildcards.",
    ),
]


def ingest(
    *,
    source: SourceArgument,
    gallery: GalleryOption,
    create: Annotated[bool, typer.Option("--create", help="Make the gallery unless it is there.")] = False,
    model: Annotated[str, typer.Option(help="Model of a new gallery. Default: the server's.")] = "",
    thumbnails: Annotated[bool, typer.Option(help="Whether a new gallery keeps pictures for overlays.")] = True,
    generation: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Compute the images for this generation, which lacks them; the gallery must hold the same bytes, and "
            "keeps its labels. Default: they go into the gallery.",
            show_default=False,
        ),
    ] = None,
    label_from_folders: Annotated[
        str,
        typer.Option(
            help="Labels from folder names, outermost first: 'designer,class' makes FOLDER/noto/1f600/a.png "
            "designer=noto, class=1f600. Deeper folders give no label."
        ),
    ] = "",
    labels_csv: Annotated[
        Path | None,
        typer.Option(
            help="Take of the folder what this table names: as the table for SOURCE, and the folder for --root."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that a table's paths are relative to. Default: the table's own.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="Column with the paths.")] = PATH_COLUMN,
    id_column: Annotated[str, typer.Option(help="Column with the ids; without it, ids are made of paths.")] = ID_COLUMN,
    label_column: Annotated[
        list[str] | None, typer.Option(help="Column, or label of a tar's samples, to take. Repeat it. Default: all.")
    ] = None,
    number_column: Annotated[
        list[str] | None, typer.Option(help="Label whose texts are numbers, for CSV and tar files. Repeat it.")
    ] = None,
    time_column: Annotated[
        list[str] | None, typer.Option(help="Label whose texts are times in ISO 8601; UTC without a zone. Repeat it.")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Take absolute paths, and paths that lead out of the root.")
    ] = False,
    rejected: Annotated[
        Path | None, typer.Option(help="CSV to write every rejected image to: place, id, reason, message.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="File that remembers what is done. Default: one per source, server, gallery and generation, in "
            "$XDG_STATE_HOME/matchflow/imports."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Put images into a gallery, with labels.

    An image's id is its path below the folder (or the key of its sample) with ':' for '/', or what the table's id
    column says. Of several with one id the first goes in. A rejected image stops nothing: it is listed with its reason,
    and the exit status is 1. Run it again at any time: it goes on where it stopped, and sends nothing that the gallery
    holds.
    """
    rules = LabelRules(
        names=frozenset(label_column) if label_column else None,
        numbers=frozenset(number_column or ()),
        times=frozenset(time_column or ()),
    )
    levels = [name.strip() for name in label_from_folders.split(",")] if label_from_folders else []
    options = SourceOptions(
        columns=ManifestColumns(path=path_column, image_id=id_column, rules=rules),
        level_labels=levels,
        labels_csv=labels_csv,
        root=root,
        allow_outside=allow_outside,
    )
    opened = open_source(source, options)
    extent = opened.extent()
    if not extent:
        raise CommandError(f"there are no images in {' '.join(source)}; name a source with some", exit_code=MISUSE)
    with matchflow.Client(server) as client:
        if create:
            with contextlib.suppress(matchflow.GalleryExistsError):
                client.create_gallery(gallery, model=model, thumbnails=thumbnails)
        # What goes into the active one goes into the gallery itself.
        other = generation if generation and generation != client.get_gallery(gallery).generation else 0
        with _journal(journal, default_path(source, server, gallery, other)) as kept:
            tally = Tally(extent, rejected, generation=other)
            with _reported(tally, kept), tally:
                Import(opened, gallery, kept, tally, other).run(client)
    if not tally.total:
        raise CommandError(f"there are no images in {' '.join(source)}; name a source with some", exit_code=MISUSE)
    if tally.rejected:
        raise typer.Exit(1)


def _journal(named: Path | None, default: Path) -> Journal:
    if named is not None:
        return Journal(named)
    try:
        return Journal(default)
    except CommandError as error:
        if can_not_be_made(error):
            progress_console().print(f"no journal: {text(default)} can't be written; name one with --journal")
            return Journal(None)
        raise


@contextlib.contextmanager
def _reported(tally: Tally, journal: Journal) -> Iterator[None]:
    """Print what happened, and when it ends early also how to go on."""
    try:
        yield
    except BaseException:
        if tally.total:
            tally.report(console())
        if tally.stored and journal.path is not None:
            console().print(f"stopped early; run the same again to go on: {text(journal.path)} has what is done")
        raise
    if tally.total:
        tally.report(console())
