"""How accurate the ranking is: the same emoji by six designers, on classes that the model's head has never seen.

The classes that all designers have drawn are split in two halves by the hash of their code points. The bundle's head is
fitted on one half; the other half is embedded and quantised as the service does it. Then every designer's emoji are
the queries and those of the others the gallery, which each method ranks as a whole. What re-ranking the best 100 by
cosine gives, the product's default, stands in the details, with uniform marginals beside it.

Needs npm for the emoji (9 MB, once). `--classes 40 --designers 3` is a look in seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emoji
import numpy as np
from report import BENCH, write_report
from rich.console import Console
from rich.table import Table

from matchflow_bundle import Encoder, Preprocessing
from matchflow_exporter import ExportSettings, export_bundle
from matchflow_index.evaluation import METHODS, EvaluationReport, LabelledImages, Method, Metrics, evaluate
from matchflow_matching import FeatureBatch, Marginals, MatchSettings, quantise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matchflow_bundle import Bundle

SIZE_PX = 128
BATCH = 32
PRODUCT_DEPTH = 100
UNIFORM = (
    Method(
        name="structural_uniform",
        settings=MatchSettings(marginals=Marginals.UNIFORM, global_weight=0.0),
    ),
    Method(
        name="structural_uniform_plus_cosine",
        settings=MatchSettings(marginals=Marginals.UNIFORM, global_weight=1.0),
    ),
)

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The classes that the head is fitted on, and those that are scored."""

    fitted: list[emoji.EmojiClass]
    scored: list[emoji.EmojiClass]


def split(classes: Sequence[emoji.EmojiClass], limit: int | None = None) -> Halves:
    """Split by the last bit of the code points' sha256; of each half keep `limit` classes, the first by that hash."""
    by_hash = sorted((hashlib.sha256(each.codepoint.encode()).digest(), each) for each in classes)
    halves: tuple[list[emoji.EmojiClass], ...] = ([], [])
    for digest, each in by_hash:
        halves[digest[-1] & 1].append(each)
    return Halves(fitted=halves[0][:limit], scored=halves[1][:limit])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parsed(arguments)
    start_s = time.monotonic()
    designers = emoji.DESIGNERS[: options.designers]
    sets = emoji.load_icon_sets(options.archives, designers)
    halves = split(emoji.shared_classes(sets, designers), options.classes)
    console.print(
        f"{len(designers)} designers; head fitted on {len(halves.fitted)} classes, {len(halves.scored)} scored"
    )
    bundle = fitted_bundle(sets, halves.fitted, designers, options.folder / "accuracy")
    images = embedded(bundle, sets, halves.scored, designers)
    console.print(f"embedded {len(images.image_ids):,} images after {time.monotonic() - start_s:.0f} s")
    whole = {designer: ranked(images, designer, METHODS, 0) for designer in designers}
    shortlist = {designer: ranked(images, designer, METHODS + UNIFORM, PRODUCT_DEPTH) for designer in designers}
    show(whole, METHODS, "P@1, whole gallery ranked")
    show(shortlist, METHODS, f"P@1, best {PRODUCT_DEPTH} by cosine re-ranked")
    show(shortlist, UNIFORM, f"P@1, best {PRODUCT_DEPTH} by cosine re-ranked, uniform marginals")
    write_report(
        "accuracy",
        figures=figures(whole),
        details={
            "classes_fitted": len(halves.fitted),
            "classes_scored": len(halves.scored),
            "designers": list(designers),
            "bundle": bundle.digest,
            "head": bundle.manifest.head.model_dump(mode="json"),
            "depth": "whole gallery",
            f"depth_{PRODUCT_DEPTH}": {designer: entry(report) for designer, report in shortlist.items()}
            | {"figures": figures(shortlist)},
            "standard_error_p_at_1": standard_error(whole),
            "seconds": round(time.monotonic() - start_s, 1),
        },
        command=options.command,
        entries={designer: entry(report) for designer, report in whole.items()},
        folder=options.folder,
    )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `command` is what repeats the run."""
    parser = argparse.ArgumentParser(description="Accuracy on the full emoji sets.")
    parser.add_argument("--classes", type=int, help="classes of each half (all)")
    parser.add_argument("--designers", type=int, default=len(emoji.DESIGNERS), help="designers, the first so many")
    parser.add_argument("--archives", type=Path, default=BENCH.parent / "emoji", help="where the emoji packages lie")
    parser.add_argument("--folder", type=Path, default=BENCH, help="where report and bundle go")
    options = parser.parse_args(arguments)
    if options.designers < 2:
        parser.error(f"expected at least 2 designers, one to ask and one to find; got {options.designers}")
    if options.classes is not None and options.classes < 1:
        parser.error(f"expected at least 1 class; got {options.classes}")
    asked = f" --classes {options.classes}" if options.classes else ""
    some = f" --designers {options.designers}" if options.designers < len(emoji.DESIGNERS) else ""
    options.command = f"python tests/benchmarks/accuracy.py{asked}{some}" if asked or some else "make bench-accuracy"
    return options


def fitted_bundle(
    sets: dict[str, emoji.IconSet], classes: Sequence[emoji.EmojiClass], designers: Sequence[str], folder: Path
) -> Bundle:
    """Write the fitting half as files and export a bundle whose head is fitted on all of them and nothing else."""
    head_images = folder / "fit"
    shutil.rmtree(head_images, ignore_errors=True)
    for each in classes:
        for designer in designers:
            path = head_images / designer / f"{each.codepoint}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            emoji.rasterise(sets[designer].drawings[each.icons[designer]], SIZE_PX).save(path)
    settings = ExportSettings(
        name="accuracy",
        head_images=head_images,
        height_px=SIZE_PX,
        width_px=SIZE_PX,
        max_head_images=len(classes) * len(designers),
    )
    return export_bundle(settings, folder / "bundle", overwrite=True)


def embedded(
    bundle: Bundle, sets: dict[str, emoji.IconSet], classes: Sequence[emoji.EmojiClass], designers: Sequence[str]
) -> LabelledImages:
    """Return the scored half as the service would store it."""
    encoder = Encoder.open(bundle)
    manifest = bundle.manifest
    preprocessing = Preprocessing(height_px=manifest.height_px, width_px=manifest.width_px, policy=manifest.policy)
    drawn = [(each, designer) for designer in designers for each in classes]
    batches: list[FeatureBatch] = []
    for start in range(0, len(drawn), BATCH):
        pixels = [
            preprocessing.apply(np.asarray(emoji.rasterise(sets[designer].drawings[each.icons[designer]], SIZE_PX)))
            for each, designer in drawn[start : start + BATCH]
        ]
        batches.append(quantise(*encoder.encode(np.stack(pixels))))
    return LabelledImages(
        image_ids=tuple(f"{designer}-{each.codepoint}" for each, designer in drawn),
        labels=tuple({"class": each.codepoint, "designer": designer} for each, designer in drawn),
        features=FeatureBatch(
            embeddings=np.concatenate([batch.embeddings for batch in batches]),
            cells=np.concatenate([batch.cells for batch in batches]),
            scales=np.concatenate([batch.scales for batch in batches]),
        ),
    )


def ranked(images: LabelledImages, designer: str, methods: Sequence[Method], depth: int) -> EvaluationReport:
    """Ask with one designer's emoji in the gallery of the others."""
    return evaluate(
        images,
        class_field="class",
        query_field="designer",
        query_values=frozenset({designer}),
        methods=methods,
        depth=depth,
    )


def entry(report: EvaluationReport) -> dict[str, Any]:
    """Return one query designer's entry: the counts, and each method's metrics by its name."""
    counts: dict[str, Any] = {"classes": report.classes, "gallery": report.gallery, "queries": report.queries}
    return counts | {
        name: {"p_at_1": m.p_at_1, "r_precision": m.r_precision, "map_at_r": m.map_at_r}
        for name, m in report.methods.items()
    }


def mean(reports: dict[str, EvaluationReport], method: str) -> Metrics:
    """Return a method's metrics, the mean over the query designers."""
    rows = [report.methods[method] for report in reports.values()]
    values = np.array([(m.p_at_1, m.r_precision, m.map_at_r) for m in rows]).mean(axis=0)
    return Metrics(p_at_1=float(values[0]), r_precision=float(values[1]), map_at_r=float(values[2]))


def figures(reports: dict[str, EvaluationReport]) -> dict[str, float]:
    """Return the means of every method."""
    methods = next(iter(reports.values())).methods
    means = {method: mean(reports, method) for method in methods}
    return {f"mean_p_at_1_{method}": m.p_at_1 for method, m in means.items()} | {
        f"mean_map_at_r_{method}": m.map_at_r for method, m in means.items()
    }


def standard_error(reports: dict[str, EvaluationReport]) -> float:
    """Return the standard error of the cosine's mean P@1, queries taken as independent."""
    queries = sum(report.queries for report in reports.values())
    share = mean(reports, "cosine").p_at_1
    return float(np.sqrt(share * (1 - share) / queries))


def show(reports: dict[str, EvaluationReport], methods: Sequence[Method], title: str) -> None:
    """Print P@1 in percent, a row per query designer and their mean."""
    table = Table(title=title, title_justify="left")
    table.add_column("query")
    for method in methods:
        table.add_column(method.name.replace("_plus_", " + ").replace("_", " "), justify="right")
    for designer, report in reports.items():
        table.add_row(designer, *(f"{100 * report.methods[method.name].p_at_1:.1f}" for method in methods))
    table.add_section()
    table.add_row("mean", *(f"{100 * mean(reports, method.name).p_at_1:.1f}" for method in methods))
    console.print(table)


if __name__ == "__main__":
    main()
