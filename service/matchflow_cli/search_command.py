"""`matchflow search`: ask with an image, see hits and why they match."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import matchflow
from matchflow_cli.conditions import parse_where
from matchflow_cli.options import (
    DEFAULT_SERVER,
    GalleryOption,
    GenerationOption,
    JsonOption,
    ServerOption,
    TimeoutOption,
    query_of,
)
from matchflow_cli.output import (
    WIDE,
    as_json,
    console,
    counted,
    labels,
    parts,
    printable,
    progress_console,
    score,
    table,
    text,
)
from matchflow_cli.scoring import (
    DepthOption,
    EpsilonOption,
    GlobalWeightOption,
    IterationsOption,
    MarginalsOption,
    MatchedMassOption,
    ModeOption,
    SpatialWeightOption,
    ToleranceOption,
    in_words,
)

PARTS_SHOWN = 3
MAX_NAME_BYTES = 200


def search(
    *,
    gallery: GalleryOption,
    image: Annotated[str | None, typer.Argument(help="Image file to ask with.")] = None,
    image_id: Annotated[str | None, typer.Option(help="Ask with this image of the gallery instead.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Hits wanted.")] = 10,
    depth: DepthOption = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Match beyond the depth until the answer is proved, or time is up.")
    ] = False,
    mode: ModeOption = None,
    global_weight: GlobalWeightOption = None,
    marginals: MarginalsOption = None,
    spatial_weight: SpatialWeightOption = None,
    matched_mass: MatchedMassOption = None,
    epsilon: EpsilonOption = None,
    tolerance: ToleranceOption = None,
    max_iterations: IterationsOption = None,
    max_flows: Annotated[int, typer.Option(help="Matched parts per hit.")] = 8,
    where: Annotated[
        list[str] | None, typer.Option(help="What hits have: label=text, label!=text, 'age>=18'; again for more.")
    ] = None,
    where_not: Annotated[list[str] | None, typer.Option(help="What hits don't have, written the same way.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Image id that may be a hit; none: all may.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Image id that is never a hit.")] = None,
    exclude_same: Annotated[
        list[str] | None, typer.Option(help="Label in which hits differ from --image-id, such as camera.")
    ] = None,
    group_by: Annotated[str, typer.Option(help="Label of whose values each has a few hits only.")] = "",
    group_limit: Annotated[
        int | None, typer.Option(help="Hits for each value of --group-by. Default: 1.", show_default=False)
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Final score that hits have at least.")] = None,
    generation: GenerationOption = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for pictures of query and hit, parts joined.")] = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Find the images of a gallery that match best, and say which parts match which.

    Labels: label=text twice allows either text; all else must hold. 'age>=18', 'age<65', 'age==30' and
    'taken<2026-01-01' compare numbers and times, which are UTC unless they say otherwise.
    """
    query = query_of(image, image_id, gallery)
    with matchflow.Client(server, timeout_s=timeout) as client:
        result = client.search(
            query,
            gallery=gallery,
            top_k=top_k,
            depth=depth,
            mode=mode,
            tuning=matchflow.Tuning(
                global_weight=global_weight,
                marginals=marginals,
                spatial_weight=spatial_weight,
                matched_mass=matched_mass,
                epsilon=epsilon,
                tolerance=tolerance,
                max_iterations=max_iterations,
            ),
            max_flows=max_flows,
            where=parse_where(where or [], where_not or []),
            images=only,
            exclude=exclude or [],
            exclude_same=exclude_same or [],
            group_by=group_by,
            group_limit=group_limit,
            min_score=min_score,
            exhaustive=exhaustive,
            generation=generation or 0,
        )
        if result.store_unreachable:
            progress_console().print(
                "the server can't reach its store: these hits are what it knew last, as of change "
                f"{result.sequence:,}; images may have changed since",
                soft_wrap=True,
            )
        if json:
            typer.echo(as_json(result))
        else:
            report(console(), result, exhaustive=exhaustive)
        if overlays is not None:
            _save_overlays(result, overlays, quiet=json)


def report(out: Console, result: matchflow.SearchResult[matchflow.Hit], *, exhaustive: bool = False) -> None:
    """Print the hits, how they were scored, how far the re-ranking went, what is proved and what took how long."""
    out.print(_hit_table(result, wide=out.width >= WIDE) if len(result) else "no hits")
    timings = result.timings
    state = result.rerank.replace("_", " ")
    out.print(
        f"server {timings.total_ms:.1f} ms: decode {timings.decode_ms:.1f}, encode {timings.encode_ms:.1f}, "
        f"coarse {timings.coarse_ms:.1f}, gather {timings.gather_ms:.1f}, match {timings.match_ms:.1f}, "
        f"explain {timings.explain_ms:.1f}; re-ranking {state} ({result.depth_done:,} matched)"
        + (f"; generation {result.generation}" if result.generation else "")
    )
    out.print(f"scored by {in_words(result.rerank_settings)}")
    if result.exact:
        below = (
            f"; bounds put {counted(result.proved_below, 'image')} below without matching"
            if result.proved_below
            else ""
        )
        out.print(f"exact: proved to be what matching every image gives{below}")
    elif exhaustive:
        out.print("not proved exact before time was up; allow more with --timeout")
    wrong = [hit.image_id for hit in result if not hit.verify()]
    if wrong:
        out.print(f"[red]contributions and residual do not add up for {text(', '.join(wrong))}[/]")
    elif any(hit.structural_score is not None for hit in result):
        out.print("checked: every hit's contributions and residual add up to its structural score")


def _hit_table(result: matchflow.SearchResult[matchflow.Hit], *, wide: bool) -> Table:
    """Return a row per hit; in a narrow window what describes it stands in one column, line by line."""
    described = ("image", "labels", "query part → image part")
    scores = ("coarse", "structural", "final", "coarse place")
    columns = described if wide else (", ".join(described),)
    hits = table("#", *columns, *scores, right=("#", *scores))
    for rank, hit in enumerate(result, start=1):
        matched = parts(hit.flows, hit.structural_score, PARTS_SHOWN)
        name = (text(hit.image_id), labels(hit.labels))
        description = (*name, ", ".join(matched) or "-") if wide else ("\n".join((*name, *matched)),)
        hits.add_row(
            str(rank),
            *description,
            score(hit.coarse_score),
            score(hit.structural_score),
            score(hit.score),
            str(hit.coarse_rank + 1),
        )
    return hits


def _save_overlays(result: matchflow.SearchResult[matchflow.Hit], folder: Path, *, quiet: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for rank, hit in enumerate(result, start=1):
        # Ids hold no '/', but the server may be anybody's; and a file system takes names of 255 bytes.
        name = printable(hit.image_id).replace("/", "_").encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        saved = hit.save_overlay(folder / f"{rank:02}-{name}.png")
        if not quiet:
            console().print(f"overlay {text(saved)}")
