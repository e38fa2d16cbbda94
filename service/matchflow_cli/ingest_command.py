"""`matchflow ingest`: the images of a folder go into a gallery."""

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import matchflow
from matchflow_cli.failures import CommandError
from matchflow_cli.folder_images import FolderImages, read_labels_csv
from matchflow_cli.options import DEFAULT_SERVER, MISUSE, GalleryOption, ServerOption, check_label_names
from matchflow_cli.output import console, counted, progress_console, table, text

FAILURES_SHOWN = 100


def ingest(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of images; folders below it are searched too.")],
    gallery: GalleryOption,
    create: Annotated[bool, typer.Option("--create", help="Make the gallery unless it is there.")] = False,
    model: Annotated[str, typer.Option(help="Model of a new gallery. Default: the server's.")] = "",
    thumbnails: Annotated[bool, typer.Option(help="Whether a new gallery keeps pictures for overlays.")] = True,
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
            help="Table with a column 'path' (relative to FOLDER) and perhaps 'id'; every other column is a label. "
            "Only the images that it names are taken."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Put the images of a folder into a gallery.

    An image's id is its path below FOLDER with ':' for '/'. Run it again at any time: unchanged images are skipped, so
    an interrupted run goes on where it stopped. The exit status is 1 if an image failed.
    """
    images = _images(folder, label_from_folders, labels_csv)
    total = images.count()
    if not total:
        where = f"in {labels_csv}; name a table" if labels_csv else f"below {folder}; name a folder"
        raise CommandError(f"there are no images {where} with some", exit_code=MISUSE)
    with matchflow.Client(server) as client:
        if create:
            with contextlib.suppress(matchflow.GalleryExistsError):
                client.create_gallery(gallery, model=model, thumbnails=thumbnails)
        start = time.perf_counter()
        with _Bar(total) as bar:
            summary = client.ingest(gallery, images.items(), on_result=bar.show)
        report(console(), summary, time.perf_counter() - start)
    if summary.failures:
        raise typer.Exit(1)


def _images(folder: Path, label_from_folders: str, labels_csv: Path | None) -> FolderImages:
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder; name one with images", exit_code=MISUSE)
    levels = [name.strip() for name in label_from_folders.split(",")] if label_from_folders else []
    check_label_names(levels, "--label-from-folders")
    rows = read_labels_csv(labels_csv) if labels_csv else None
    return FolderImages(folder=folder, level_labels=levels, rows=rows)


def report(out: Console, summary: matchflow.IngestSummary, seconds: float) -> None:
    """Print what became of the images, and why some failed."""
    out.print(
        f"{counted(summary.total, 'image')} in {seconds:.1f} s ({summary.total / max(seconds, 1e-9):.0f}/s): "
        f"{summary.created:,} created, {summary.updated:,} updated, {summary.unchanged:,} unchanged, "
        f"{len(summary.failures):,} failed"
    )
    if not summary.failures:
        return
    listed = table("image", "reason", "what is wrong", title=f"{len(summary.failures):,} failed")
    for failure in summary.failures[:FAILURES_SHOWN]:
        listed.add_row(text(failure.image_id), failure.error.reason, text(failure.error.message))
    out.print(listed)
    left = summary.failures[FAILURES_SHOWN:]
    if left:
        reasons = Counter(failure.error.reason for failure in left)
        out.print(f"and {len(left):,} more: " + ", ".join(f"{count:,} {name}" for name, count in reasons.most_common()))


class _Bar:
    """How far the ingest is, how fast, and what happened so far."""

    def __init__(self, total: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=progress_console())
        self._task = self._progress.add_task("ingest", total=total, state="")
        self._outcomes: Counter[str] = Counter()
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, result: matchflow.IngestResult) -> None:
        """Count one more."""
        self._outcomes[result.outcome.value] += 1
        rate = self._outcomes.total() / max(time.perf_counter() - self._start, 1e-9)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        self._progress.update(self._task, advance=1, state=f"{rate:.0f}/s  {counts}")
