"""`matchflow explain`: why one stored image matches a query, flow by flow."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import matchflow
from matchflow_cli.failures import CommandError
from matchflow_cli.options import (
    DEFAULT_SERVER,
    GalleryOption,
    GenerationOption,
    JsonOption,
    ServerOption,
    TimeoutOption,
    query_of,
)
from matchflow_cli.output import WIDE, as_json, console, labels, percent_box, place, score, table, text
from matchflow_cli.scoring import (
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


def explain(
    *,
    gallery: GalleryOption,
    hit: Annotated[str, typer.Option(help="Id of the stored image to explain.")],
    image: Annotated[str | None, typer.Argument(help="Image file to ask with.")] = None,
    image_id: Annotated[str | None, typer.Option(help="Ask with this image of the gallery instead.")] = None,
    mode: ModeOption = None,
    global_weight: GlobalWeightOption = None,
    marginals: MarginalsOption = None,
    spatial_weight: SpatialWeightOption = None,
    matched_mass: MatchedMassOption = None,
    epsilon: EpsilonOption = None,
    tolerance: ToleranceOption = None,
    max_iterations: IterationsOption = None,
    generation: GenerationOption = None,
    flows: Annotated[int, typer.Option(min=0, help="Flows to list; all are checked.")] = 12,
    overlay: Annotated[Path | None, typer.Option(help="File for the picture of both, parts joined (PNG).")] = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Explain why a stored image matches a query: its flows with their places, the solver's certificate, the sums.

    The exit status is 1 if contributions and residual do not add up to the structural score.
    """
    query, stored = query_of(image, image_id, gallery), matchflow.ImageRef(gallery, hit)
    tuning = matchflow.Tuning(
        global_weight=global_weight,
        marginals=marginals,
        spatial_weight=spatial_weight,
        matched_mass=matched_mass,
        epsilon=epsilon,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    with matchflow.Client(server, timeout_s=timeout) as client:
        explanation = client.explain(query, stored, mode=mode, tuning=tuning, generation=generation or 0)
        if json:
            typer.echo(as_json(explanation))
        else:
            report(console(), explanation, flows)
        if overlay is not None:
            # Of the same generation, even if the gallery was switched to another meanwhile.
            drawn = explanation.generation or generation or 0
            overlay.write_bytes(client.render_match(query, stored, mode=mode, tuning=tuning, generation=drawn))
            if not json:
                console().print(f"overlay {text(overlay)}")
    if not explanation.verify():
        raise CommandError(
            f"contributions and residual miss the structural score by {explanation.additivity_gap:.2g}; "
            "the server's answer can't be trusted, report this"
        )


def report(out: Console, explanation: matchflow.Explanation, count: int) -> None:
    """Print scores, the certificate, the `count` first flows and, unless nothing was re-ranked, the sums."""
    image = explanation.image
    out.print(f"image        {text(image.id)}  {labels(image.labels)}")
    out.print(
        f"final        {score(explanation.score)}   structural {score(explanation.structural_score)}   "
        f"coarse {score(explanation.coarse_score)}"
    )
    out.print(f"scored by    {in_words(explanation.rerank_settings)}")
    if explanation.generation:
        out.print(f"generation   {explanation.generation}")
    out.print(f"certificate  {_certificate(explanation.certificate)}")
    listed = explanation.flows[:count]
    if listed:
        out.print(_flow_table(explanation, listed, wide=out.width >= WIDE))
    if explanation.structural_score is None:
        return
    total = sum(flow.contribution for flow in explanation.flows)
    out.print(
        f"sums         {len(explanation.flows):,} contributions {total:.6f} + residual {explanation.residual:.6f} = "
        f"{total + explanation.residual:.6f}, structural score {score(explanation.structural_score)}, "
        f"{'adds up' if explanation.verify() else 'DOES NOT ADD UP'} (gap {explanation.additivity_gap:.1e})"
    )


def _flow_table(explanation: matchflow.Explanation, flows: tuple[matchflow.Flow, ...], *, wide: bool) -> Table:
    """Return a row per flow; a narrow window has no room for places in words beside those in numbers."""
    sides = ("query part", "query box", "image part", "image box") if wide else ("query box", "image box")
    # Only where distance costs something; elsewhere a column of zeros would tell nothing.
    penalised = any(flow.penalty for flow in explanation.flows)
    numbers = ("mass", "cosine", *(("penalty",) if penalised else ()), "contribution")
    listed = table(
        *("#", *sides, *numbers),
        right=("#", *numbers),
        title=f"the {len(flows)} best supported of {len(explanation.flows)} flows, {explanation.grid.rows} x "
        f"{explanation.grid.columns} cells",
    )
    for rank, flow in enumerate(flows, start=1):
        listed.add_row(
            str(rank),
            *_where(flow.query_box, wide=wide),
            *_where(flow.image_box, wide=wide),
            f"{flow.mass:.4f}",
            f"{flow.similarity:.4f}",
            *((f"{flow.penalty:.4f}",) if penalised else ()),
            f"{flow.contribution:.4f}",
        )
    return listed


def _where(box: matchflow.Box, *, wide: bool) -> tuple[str, ...]:
    return (place(box), percent_box(box)) if wide else (percent_box(box),)


def _certificate(certificate: matchflow.Certificate | None) -> str:
    if certificate is None:
        return "none: this mode solves nothing"
    uniform = [
        side
        for side, is_uniform in (
            ("query", certificate.query_marginal_is_uniform),
            ("image", certificate.image_marginal_is_uniform),
        )
        if is_uniform
    ]
    gap = "" if certificate.duality_gap is None else f", duality gap {certificate.duality_gap:.1e}"
    return (
        f"{'converged' if certificate.converged else 'NOT converged'} after {certificate.iterations} iterations, "
        f"marginal error {certificate.marginal_error:.1e}{gap}"
        + (f", uniform weights on the {' and '.join(uniform)} side" if uniform else "")
    )
