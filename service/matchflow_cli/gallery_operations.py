"""`matchflow gallery backup, restore, verify, compact, stats, duplicates`: work on a store itself, without a server.

All but restore and compact only read, and may run beside a server. Heavy parts are imported by the command that runs.
"""

import enum
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from matchflow_cli.failures import CommandError
from matchflow_cli.operation_reports import (
    print_duplicates,
    print_stats,
    print_verification,
    size,
    write_duplicates_csv,
)
from matchflow_cli.options import MISUSE, JsonOption
from matchflow_cli.output import as_json, console, counted, progress_console, text

if TYPE_CHECKING:
    from matchflow_index.opening import StorePlace

# As the contract has it; the service says so too.
GALLERY_ID = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)

GalleryArgument = Annotated[str, typer.Argument(help="The gallery.")]
StoreOption = Annotated[
    str,
    typer.Option(envvar="MATCHFLOW_STORE", help="Folder of the galleries, or redis://host:port/db."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(envvar="MATCHFLOW_CACHE", help="Folder of one server's caches, for a store on Redis."),
]


class DuplicatesFormat(enum.StrEnum):
    """How duplicates are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def add_to(group: typer.Typer) -> None:
    """Add the commands to `matchflow gallery`."""
    for command in (backup, restore, verify, compact, stats, duplicates):
        group.command(command.__name__)(command)


def backup(
    *,
    gallery: GalleryArgument,
    store: StoreOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the backup.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a gallery into one file, as it is at one moment, while others search and write."""
    if output.exists() and not overwrite:
        raise CommandError(f"{output} is there already; to replace it add --overwrite", exit_code=MISUSE)
    place = _place(store)
    from matchflow_index.backup import back_up  # noqa: PLC0415 - brings numpy
    from matchflow_index.opening import opened_truth  # noqa: PLC0415
    from matchflow_index.restoring import stored_gallery  # noqa: PLC0415

    with opened_truth(place, read_only=True) as truth, _shown("backing up") as show:
        stored = stored_gallery(truth, gallery)
        header = back_up(truth, stored, output, progress=lambda count: show(counted(count, "image")))
    console().print(
        f"backed up {text(gallery)} with {counted(header.images, 'image')} as of change {header.sequence:,} "
        f"to {text(output)}, {size(output.stat().st_size)}"
    )


def restore(
    *,
    file: Annotated[Path, typer.Argument(help="File of the backup.")],
    store: StoreOption,
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", help="Id of the restored gallery. Default: that of the backup.")
    ] = None,
) -> None:
    """Make a gallery from a backup, in this store or another; nothing is left of it when that fails.

    A store in a folder must not be open in a server meanwhile.
    """
    _check_id(gallery)
    place = _place(store)
    from matchflow_index import restoring  # noqa: PLC0415
    from matchflow_index.opening import opened_truth  # noqa: PLC0415

    header = restoring.read_header(file)
    with opened_truth(place, read_only=False) as truth, _shown("restoring") as show:
        stored = restoring.restore(
            file, truth, gallery_id=gallery, progress=lambda done, total: show(f"{done:,} of {total:,} images")
        )
    console().print(
        f"restored {text(stored.spec.gallery_id)} with {counted(header.images, 'image')}: "
        f"{text(header.spec.gallery_id)} as of change {header.sequence:,}"
    )


def verify(
    *, gallery: GalleryArgument, store: StoreOption, cache: CacheOption = None, json: JsonOption = False
) -> None:
    """Look at everything that a gallery has, in all of its generations, and list what is wrong.

    The exit status is 1 if anything is. As JSON it is a list with one report for each generation.
    """
    place = _place(store, cache)
    from matchflow_index import verifying  # noqa: PLC0415
    from matchflow_index.opening import opened_truth  # noqa: PLC0415

    with opened_truth(place, read_only=True) as truth, _shown("verifying") as show:
        reports = verifying.verify_all(truth, gallery, place, progress=lambda what, count: show(f"{count:,} {what}"))
    if json:
        typer.echo(as_json(reports))
    else:
        for report in reports:
            print_verification(report)
    if any(report.findings for report in reports):
        raise typer.Exit(1)


def compact(
    *,
    store: StoreOption,
    cache: CacheOption = None,
    keep_changes: Annotated[
        int, typer.Option(min=1, help="Entries of each log that stay, for caches elsewhere that are behind.")
    ] = 10_000,
    json: JsonOption = False,
) -> None:
    """Give disk back: dead slots, old entries of the logs, unused pages. No server may have the folder open."""
    place = _place(store, cache)
    from matchflow_index import compaction  # noqa: PLC0415

    with _shown("compacting") as show:
        done = compaction.compact(place, keep_changes=keep_changes, progress=lambda what: show(text(what)))
    if json:
        typer.echo(as_json(done))
        return
    console().print(
        f"{size(done.bytes_before)} before, {size(done.bytes_after)} after: dropped "
        f"{counted(done.dead_slots, 'dead slot')} and {counted(done.changes, 'log entry')}"
    )


def stats(
    *,
    gallery: Annotated[str | None, typer.Argument(help="Only this gallery. Default: all.")] = None,
    store: StoreOption,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a store holds, what that takes on disk, and how its galleries are searched."""
    place = _place(store, cache)
    from matchflow_index import GalleryNotFoundError  # noqa: PLC0415
    from matchflow_index.gallery_stats import store_stats  # noqa: PLC0415

    found = store_stats(place, gallery)
    if gallery is not None and not found.galleries:
        raise GalleryNotFoundError(gallery)
    if json:
        typer.echo(as_json(found))
        return
    print_stats(found)


def duplicates(
    *,
    gallery: GalleryArgument,
    store: StoreOption,
    distance: Annotated[
        int, typer.Option(min=0, max=32, help="In how many of 64 bits images that look alike may differ.")
    ] = 4,
    form: Annotated[DuplicatesFormat, typer.Option("--format", help="How to print them.")] = DuplicatesFormat.TABLE,
) -> None:
    """List images that are there more than once: the same content, or thumbnails that look alike."""
    place = _place(store)
    from matchflow_index.duplicates import find_duplicates  # noqa: PLC0415
    from matchflow_index.opening import opened_truth  # noqa: PLC0415
    from matchflow_index.restoring import stored_gallery  # noqa: PLC0415

    with opened_truth(place, read_only=True) as truth, _shown("looking") as show:
        report = find_duplicates(
            truth,
            stored_gallery(truth, gallery),
            distance=distance,
            progress=lambda count: show(counted(count, "image")),
        )
    if form is DuplicatesFormat.JSON:
        typer.echo(as_json(report))
    elif form is DuplicatesFormat.CSV:
        write_duplicates_csv(report)
    else:
        print_duplicates(report)


def _place(store: str, cache: Path | None = None) -> "StorePlace":
    from matchflow_index.opening import StorePlace  # noqa: PLC0415 - brings lmdb

    return StorePlace.parse(store, cache)


def _check_id(gallery: str | None) -> None:
    if gallery is not None and not GALLERY_ID.fullmatch(gallery):
        raise CommandError(
            f"the id of a gallery has 1-63 characters of a-z, 0-9 and -, a letter first; got {gallery!r}",
            exit_code=MISUSE,
        )


@contextmanager
def _shown(what: str) -> Iterator[Callable[[str], None]]:
    """Show how far a command is; gives what to call with that."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda state: progress.update(task, description=f"{what}: {state}")
