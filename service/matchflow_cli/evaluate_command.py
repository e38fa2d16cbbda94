"""`matchflow eval`: how well each method ranks a labelled gallery."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE
from matchflow_cli.output import console, counted, progress_console, table, text

if TYPE_CHECKING:
    from matchflow_index import EvaluationReport, LabelledImages, Method

EVERY_IMAGE = "all"


def evaluate(
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
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this method; again for more. Default: all but earth_mover and partial, which are slow."
        ),
    ] = None,
    depth: Annotated[int, typer.Option(min=0, help="Coarse candidates that are re-ranked; 0 means all.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure P@1, R-Precision and MAP@R of each method on a labelled gallery.

    Reads the store itself, beside a running server if there is one, and changes nothing.
    """
    if query and query_field is None:
        raise CommandError("--query names values of a label; say which label with --query-field", exit_code=MISUSE)
    from matchflow_index import GalleryStore  # noqa: PLC0415 - brings faiss

    methods = _chosen(method or [])
    with GalleryStore.open(store, read_only=True) as opened:
        images = opened.gallery(gallery).labelled_images()
    reports = dict(
        _measure(
            images,
            class_field=class_field,
            query_field=query_field,
            queries=query or [],
            methods=methods,
            depth=depth,
        )
    )
    _print(reports)
    if json_file is not None:
        figures = {name: report.as_dict() for name, report in reports.items()}
        json_file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        console().print(f"written to {text(json_file)}")


def _chosen(names: list[str]) -> tuple["Method", ...]:
    from matchflow_index.evaluation import EXACT_METHODS, METHODS  # noqa: PLC0415

    known = {method.name: method for method in METHODS + EXACT_METHODS}
    for name in names:
        if name not in known:
            raise CommandError(f"--method must be one of {', '.join(known)}; got {name!r}", exit_code=MISUSE)
    return tuple(known[name] for name in names) or tuple(METHODS)


def _measure(
    images: "LabelledImages",
    *,
    class_field: str,
    query_field: str | None,
    queries: list[str],
    methods: tuple["Method", ...],
    depth: int,
) -> Iterable[tuple[str, "EvaluationReport"]]:
    from matchflow_index import evaluate as evaluate_gallery  # noqa: PLC0415

    label_values(images, class_field)
    values = (
        [EVERY_IMAGE] if query_field is None else asked_values(label_values(images, query_field), query_field, queries)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        for value in values:
            task = progress.add_task(text(value), total=None)
            yield (
                value,
                evaluate_gallery(
                    images,
                    class_field=class_field,
                    query_field=query_field,
                    query_values=frozenset([value]),
                    methods=methods,
                    depth=depth,
                    progress=lambda done, total, task=task: progress.update(task, completed=done, total=total),  # type: ignore[misc]
                ),
            )


def asked_values(values: list[str], query_field: str, queries: list[str]) -> list[str]:
    """Return the values that ask: all, or those of --query, which must be among them."""
    for query in queries:
        if query not in values:
            raise CommandError(f"no image has {query_field}={query}; there are {', '.join(values)}", exit_code=MISUSE)
    return queries or values


def label_values(images: "LabelledImages", field: str) -> list[str]:
    """Return the values of a label in order; raise CommandError where no image has it."""
    values = sorted({labels[field] for labels in images.labels if field in labels})
    if not values:
        known = sorted({name for labels in images.labels for name in labels})
        raise CommandError(
            f"no image has a label {field!r}; the gallery's labels are {', '.join(known) or 'none'}",
            exit_code=MISUSE,
        )
    return values


def _print(reports: dict[str, "EvaluationReport"]) -> None:
    listed = table(
        *("query", "asked", "classes", "images", "method", "P@1", "R-Prec", "MAP@R"),
        right=("asked", "classes", "images", "P@1", "R-Prec", "MAP@R"),
    )
    for value, report in reports.items():
        head = [text(value), f"{report.queries:,}", f"{report.classes:,}", f"{report.gallery:,}"]
        for name, metrics in report.methods.items():
            listed.add_row(*head, name, *_per_cent(metrics.p_at_1, metrics.r_precision, metrics.map_at_r))
            head = [""] * len(head)
        listed.add_section()
    if len(reports) > 1:
        head = ["mean", "", "", ""]
        for name in next(iter(reports.values())).methods:
            measured = [report.methods[name] for report in reports.values()]
            means = (
                fmean(m.p_at_1 for m in measured),
                fmean(m.r_precision for m in measured),
                fmean(m.map_at_r for m in measured),
            )
            listed.add_row(*head, name, *_per_cent(*means))
            head = [""] * len(head)
    out = console()
    out.print(listed)
    skipped = sum(report.skipped for report in reports.values())
    if skipped:
        out.print(f"left out: {counted(skipped, 'query')} without a class, or without another image of it to find")


def _per_cent(*shares: float) -> list[str]:
    return [f"{100 * share:.1f}" for share in shares]
