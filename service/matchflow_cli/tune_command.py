"""`matchflow tune`: choose how a labelled gallery is matched, and make that its default."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

import matchflow
from matchflow_cli.evaluate_command import asked_values, label_values
from matchflow_cli.failures import CommandError, one_line
from matchflow_cli.options import DEFAULT_SERVER, MISUSE, ServerOption
from matchflow_cli.output import console, progress_console, text
from matchflow_cli.scoring import in_words

if TYPE_CHECKING:
    from matchflow_index import GallerySpec, LabelledImages, MatchDefaults
    from matchflow_index.tuning import TuningReport

MAX_DEPTH = 10_000


def tune(
    *,
    gallery: Annotated[str, typer.Argument(help="The gallery.")],
    store: Annotated[Path, typer.Option(envvar="MATCHFLOW_STORE", help="Folder of the galleries.")],
    class_field: Annotated[str, typer.Option(help="Label that says which images belong together.")] = "class",
    query_field: Annotated[
        str | None,
        typer.Option(help="Label whose values ask in turn, each against all others. Default: every image asks."),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(help="Only this value of the query field asks; again for more.")
    ] = None,
    mode: Annotated[
        list[matchflow.RerankMode] | None,
        typer.Option(help="Choose only among this and other modes named so. Default: all but the exact ones."),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Try the exact modes too: earth_mover and partial.")
    ] = False,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=0, max=MAX_DEPTH, help="Try only this depth, 0 for all images; again for more."),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries in each half at most, drawn by hash.")] = 500,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="File for a PNG of quality against time.")] = None,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Choose how a labelled gallery is matched, on half of its classes, and make that its default.

    The half that a class is in follows from its name. Chosen is the cheapest way within one standard error of the
    highest MAP@R on the tuning half; the other half says how good it is. Reads the store itself, and writes the choice
    there too, or through the server when one has the store open.
    """
    if query and query_field is None:
        raise CommandError("--query names values of a label; say which label with --query-field", exit_code=MISUSE)
    from matchflow_cli import tune_report, tune_storing  # noqa: PLC0415 - these bring faiss and Pillow

    images, spec, present = _read(store, gallery)
    if not dry_run:
        # Before minutes of work: can it be stored at all?
        tune_storing.find_keeper(store, server, spec)
    report = _choose(
        images,
        class_field=class_field,
        query_field=query_field,
        query_values=query or [],
        modes=mode or [],
        thorough=thorough,
        depths=depth or [],
        queries=queries,
        present=present,
    )
    out = console()
    tune_report.show(out, report)
    if json_file is not None:
        figures = {"gallery": gallery, "class_field": class_field, "query_field": query_field, "dry_run": dry_run}
        figures |= tune_report.as_figures(report)
        json_file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        out.print(f"figures written to {text(json_file)}")
    if plot is not None:
        plot.write_bytes(tune_report.plot(report, gallery))
        out.print(f"plot written to {text(plot)}")
    if dry_run:
        by_hand = tune_storing.set_default_command(gallery, report.chosen.way)
        out.print(f"nothing stored; to make it the default of {text(gallery)}: {text(by_hand)}", soft_wrap=True)
        return
    chosen = tune_storing.as_rerank(report.chosen.way)
    keeper = tune_storing.keep(store, server, spec, report.chosen.way)
    out.print(f"{keeper}: {text(gallery)} is scored by {text(in_words(chosen))}", soft_wrap=True)
    if present is not None and present != report.chosen.way:
        undo = tune_storing.set_default_command(gallery, present)
        out.print(f"to go back, with the server running: {text(undo)}", soft_wrap=True)


def _read(store: Path, gallery: str) -> tuple["LabelledImages", "GallerySpec", "MatchDefaults | None"]:
    """Return the gallery's images, what it is and its defaults; None for defaults that can't be read."""
    from matchflow_index import GalleryStore, StoreUnavailableError  # noqa: PLC0415

    with GalleryStore.open(store, read_only=True) as opened:
        found = opened.gallery(gallery)
        try:
            present = found.match_defaults
        except StoreUnavailableError as error:
            progress_console().print(f"not compared with the present default: {text(one_line(error))}")
            present = None
        return found.labelled_images(), found.spec, present


def _choose(
    images: "LabelledImages",
    *,
    class_field: str,
    query_field: str | None,
    query_values: list[str],
    modes: list[matchflow.RerankMode],
    thorough: bool,
    depths: list[int],
    queries: int,
    present: "MatchDefaults | None",
) -> "TuningReport":
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    from matchflow_cli.tune_storing import match_mode  # noqa: PLC0415
    from matchflow_index.tuning import tune as tune_gallery  # noqa: PLC0415
    from matchflow_index.tuning_grid import EXACT_MODES, PLAIN_MODES  # noqa: PLC0415
    from matchflow_index.tuning_halves import TuningTask  # noqa: PLC0415

    label_values(images, class_field)
    if query_field is not None:
        asked_values(label_values(images, query_field), query_field, query_values)
    every = PLAIN_MODES | (EXACT_MODES if thorough else frozenset())
    task = TuningTask(
        class_field=class_field, query_field=query_field, query_values=frozenset(query_values), queries=queries
    )
    count = len(images.image_ids)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # As the server does: one request, one thread.
    with (
        threadpool_limits(limits=1, user_api="blas"),
        Progress(*columns, console=progress_console(), transient=True) as progress,
    ):
        tasks: dict[str, TaskID] = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done, total=total)

        return tune_gallery(
            images,
            task,
            modes={match_mode(each) for each in modes} or every,
            depths=sorted({each or min(count, MAX_DEPTH) for each in depths}),
            present=present,
            progress=tell,
        )
