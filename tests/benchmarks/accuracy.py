"""How accurate the ranking is: the same emoji by six designers, on classes that the model's head has never seen.

The classes that all designers have drawn are split in two halves by the hash of their code points. The bundle's head is
fitted on one half, without labels. On some classes of that half the settings of position-aware transport are chosen.
The other half is scored: every designer's emoji are the queries, as they are and displaced (shrunk to 0.6-0.9 and
shifted), and the originals of the other designers are the gallery, which each method ranks as a whole. A gain is a
method's P@1 less the cosine's, in percentage points, the mean over designers and both framings; its standard error is a
bootstrap over classes. What re-ranking the best 100 by cosine gives, the product's default, stands in the details, with
the exact solvers, too slow for the whole gallery.

Needs npm for the emoji (9 MB, once). `--classes 40 --designers 3` is a look in seconds.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emoji
import numpy as np
from accuracy_images import DISPLACED, FRAMINGS, ORIGINAL, asked, embedded, fitted_bundle, split
from report import BENCH, usable_cores, write_report
from rich import box
from rich.console import Console
from rich.table import Table

from matchflow_index.evaluation import EXACT_METHODS, METHODS, Measurements, Method, Metrics, measure_queries
from matchflow_matching import Marginals, MatchMode, MatchSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from matchflow_index.evaluation import LabelledImages

PRODUCT_DEPTH = 100
CHOOSING_CLASSES = 200
RESAMPLES = 1000
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
CANDIDATES = tuple(
    Method(
        name=f"{marginals}, w {spatial_weight:g}, cosine {global_weight:g}",
        settings=MatchSettings(
            mode=MatchMode.POSITION_AWARE,
            marginals=marginals,
            spatial_weight=spatial_weight,
            global_weight=global_weight,
        ),
    )
    for marginals in Marginals
    for spatial_weight in (0.25, 0.5, 1.0, 2.0)
    for global_weight in (0.0, 0.25)
)
# The figures that have bars, and the methods that they are of.
GAINS = {
    "gain_position_aware": "position_aware",
    "gain_same_cell_control": "same_cell",
    "gain_paper": "structural_plus_cosine",
    "gain_max_sim": "max_sim",
}

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What every query of every designer gave, by framing and designer; all ask for the same classes in one order."""

    methods: tuple[str, ...]
    measured: dict[str, dict[str, Measurements]]

    @classmethod
    def of(cls, images: LabelledImages, designers: Sequence[str], methods: Sequence[Method], depth: int) -> Results:
        """Ask with each designer's emoji in each framing in the gallery of the others, on every core."""

        def measure(framing: str, designer: str) -> Measurements:
            return measure_queries(
                asked(images, designer, framing),
                class_field="class",
                query_field="designer",
                query_values=frozenset({designer}),
                methods=methods,
                depth=depth,
            )

        with ThreadPoolExecutor(usable_cores()) as pool:
            pending = {
                framing: {designer: pool.submit(measure, framing, designer) for designer in designers}
                for framing in FRAMINGS
            }
            measured = {
                framing: {designer: each.result() for designer, each in row.items()} for framing, row in pending.items()
            }
        return cls(methods=tuple(method.name for method in methods), measured=measured)

    def by_class(self, method: str, framings: Sequence[str] = FRAMINGS) -> NDArray[np.float64]:
        """Return P@1, R-Precision and MAP@R of each class [classes, 3], the mean over framings and designers."""
        column = self.methods.index(method)
        values = [each.values[:, column] for framing in framings for each in self.measured[framing].values()]
        mean: NDArray[np.float64] = np.stack(values).mean(axis=0)
        return mean

    def mean(self, method: str, framings: Sequence[str] = FRAMINGS) -> Metrics:
        """Return a method's metrics, the mean over framings, designers and classes."""
        p_at_1, r_precision, map_at_r = self.by_class(method, framings).mean(axis=0).tolist()
        return Metrics(p_at_1=p_at_1, r_precision=r_precision, map_at_r=map_at_r)

    def gain(self, method: str, over: str = "cosine", framings: Sequence[str] = FRAMINGS) -> tuple[float, float]:
        """Return by how many percentage points of P@1 a method is better than another, and the standard error."""
        gains = 100 * (self.by_class(method, framings) - self.by_class(over, framings))[:, 0]
        return float(gains.mean()), bootstrap_error(gains)

    def figures(self, framings: Sequence[str]) -> dict[str, float]:
        """Return the means of every method."""
        means = {method: self.mean(method, framings) for method in self.methods}
        return {f"mean_p_at_1_{method}": m.p_at_1 for method, m in means.items()} | {
            f"mean_map_at_r_{method}": m.map_at_r for method, m in means.items()
        }

    def entries(self, framing: str) -> dict[str, Any]:
        """Return each query designer's counts and each method's metrics by its name."""
        found = {}
        for designer, each in self.measured[framing].items():
            report = each.report().as_dict()
            found[designer] = {key: value for key, value in report.items() if key not in ("skipped", "depth")}
        return found

    def details(self) -> dict[str, Any]:
        """Return the table of each framing and every method's gains, with their standard errors."""

        def gains(method: str) -> dict[str, Any]:
            found = {}
            for ending, base in (("", "cosine"), ("_over_control", "same_cell")):
                for name, framings in {"both": FRAMINGS, ORIGINAL: (ORIGINAL,), DISPLACED: (DISPLACED,)}.items():
                    points, error = self.gain(method, base, framings)
                    found[f"{name}{ending}"] = {"points": points, "standard_error": error}
            return found

        tables = {framing: self.entries(framing) | {"figures": self.figures((framing,))} for framing in FRAMINGS}
        return tables | {"gains": {method: gains(method) for method in self.methods}}


def bootstrap_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of `values`: its spread over samples of as many, drawn with repetition."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return float(values[draws].mean(axis=1).std())


def choose(images: LabelledImages, designers: Sequence[str]) -> tuple[MatchSettings, dict[str, dict[str, float]]]:
    """Return the candidate with the highest mean of P@1 and MAP@R, the first of equals, and what each one gave.

    The best 100 by cosine are re-ranked, as the product does.
    """
    results = Results.of(images, designers, CANDIDATES, PRODUCT_DEPTH)
    means = {method.name: results.mean(method.name) for method in CANDIDATES}
    best = max(CANDIDATES, key=lambda method: means[method.name].p_at_1 + means[method.name].map_at_r)
    return best.settings, {name: {"p_at_1": m.p_at_1, "map_at_r": m.map_at_r} for name, m in means.items()}


def with_chosen(methods: Sequence[Method], chosen: MatchSettings) -> tuple[Method, ...]:
    """Return the methods with position-aware transport as chosen; exact transport takes the same weights."""
    modes = (MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER, MatchMode.PARTIAL)
    weights = {name: getattr(chosen, name) for name in ("marginals", "spatial_weight", "global_weight")}
    return tuple(
        replace(method, settings=replace(method.settings, **weights)) if method.settings.mode in modes else method
        for method in methods
    )


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
    choosing = halves.fitted[:CHOOSING_CLASSES]
    chosen, choices = choose(embedded(bundle, sets, choosing, designers), designers)
    console.print(
        f"chosen on {len(choosing)} classes of the fitting half: {chosen.marginals} weights, "
        f"spatial weight {chosen.spatial_weight:g}, cosine {chosen.global_weight:g}; {since(start_s)}"
    )
    images = embedded(bundle, sets, halves.scored, designers)
    console.print(f"embedded {len(images.image_ids):,} images; {since(start_s)}")
    methods = with_chosen(METHODS, chosen)
    whole = Results.of(images, designers, methods, 0)
    console.print(f"ranked the whole gallery; {since(start_s)}")
    shortlist = Results.of(images, designers, methods + with_chosen(EXACT_METHODS, chosen) + UNIFORM, PRODUCT_DEPTH)
    show(whole, "whole gallery ranked")
    show(shortlist, f"best {PRODUCT_DEPTH} by cosine re-ranked")
    write_report(
        "accuracy",
        figures={name: whole.gain(method)[0] for name, method in GAINS.items()} | whole.figures((ORIGINAL,)),
        details={
            "classes_fitted": len(halves.fitted),
            "classes_chosen_on": len(choosing),
            "classes_scored": len(halves.scored),
            "designers": list(designers),
            "bundle": bundle.digest,
            "head": bundle.manifest.head.model_dump(mode="json"),
            "position_aware": asdict(chosen),
            "choices": choices,
            "depth": "whole gallery",
            **whole.details(),
            f"depth_{PRODUCT_DEPTH}": shortlist.entries(ORIGINAL)
            | {"figures": shortlist.figures((ORIGINAL,))}
            | {"displaced_figures": shortlist.figures((DISPLACED,)), "gains": shortlist.details()["gains"]},
            "standard_error_p_at_1": 0.01 * bootstrap_error(100 * whole.by_class("cosine", (ORIGINAL,))[:, 0]),
            "seconds": round(time.monotonic() - start_s, 1),
        },
        command=options.command,
        entries=whole.entries(ORIGINAL),
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


def since(start_s: float) -> str:
    """Return how long ago the run began, for people."""
    return f"{time.monotonic() - start_s:.0f} s so far"


def show(results: Results, title: str) -> None:
    """Print P@1 in percent of each method for both framings, and what it gains on the cosine and on same cell."""
    table = Table(title=f"P@1, {title}", title_justify="left", box=box.SIMPLE)
    table.add_column("method", no_wrap=True)
    for name in (*FRAMINGS, "MAP@R", "gain", "on control"):
        table.add_column(name, justify="right", no_wrap=True)
    for method in results.methods:
        table.add_row(
            method.replace("_plus_", " + ").replace("_", " "),
            *(f"{100 * results.mean(method, (framing,)).p_at_1:.1f}" for framing in FRAMINGS),
            f"{100 * results.mean(method).map_at_r:.1f}",
            *("{:+.1f}±{:.1f}".format(*results.gain(method, over)) for over in ("cosine", "same_cell")),
        )
    console.print(table)


if __name__ == "__main__":
    main()
