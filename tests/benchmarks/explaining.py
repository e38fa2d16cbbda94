"""What the explanations are worth: deletion, localisation, and how many flows to show.

Deletion: pairs of one emoji by two designers; the query's cells that an explanation names are painted over, a quarter
of them, the query is embedded and scored again, and the drop is compared with that of as many random cells. The order
of cells was compared on one half of the classes and the other half is reported, but that half had been looked at before
the order by shares was settled on, so only `--unseen` is free of choice. Localisation: copies of an image of which the
true place of every cell is known. Everything goes through the real model on the sample images.

`--classes 12` is a look in seconds. `--unseen 80` takes emoji that are no sample images: no class of them had a part in
the model's head or in any choice (needs npm, 9 MB, once).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emoji
import numpy as np
from bench_features import SAMPLES, sample_bundle, sample_files
from blanking import BlankedFeatures, Fill, encoded
from deleting import (
    NO_CELLS,
    MatchScorer,
    Pair,
    contributions,
    curve,
    drops,
    embed_blankings,
    first,
    flows_by_contribution,
    orders,
    random_cells,
    ratio,
    ratio_error,
)
from localising import copies, localisation
from report import BENCH, write_report
from rich.console import Console
from rich.table import Table

from matchflow_bundle import Encoder, decode_image
from matchflow_matching import Marginals, MatchMode, MatchSettings, top_flows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from matchflow_matching import CellGrid, Flow, MatchingFlow

# What curves and copies are made of: every fifth pair, one of each class.
EVERY = 5
SIDE_PX = 128
SHARE_BLANKED = 0.25
DRAWS = 4
SHOWN_FLOWS = 8
HALVES = ("chosen_on", "reported")
CURVE_ORDERS = ("shares", "flows_by_support", "flows_by_contribution")
CURVE_SEEDS = (101, 102)
PARTS = ("image", "pixels")
# The matchers whose localisation stands among the figures; the details have all.
FIGURED = ("position_aware", "position_aware_w_0.3", "structural", "max_sim", "partial", "same_cell")
HEADLINE = "position_aware"
FLOW_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32)
# The recommended matcher first: its deletion ratio, by shares and under the mean colour, is the headline.
SCORED = {
    "position_aware": MatchSettings.of(MatchMode.POSITION_AWARE),
    "structural": MatchSettings.of(MatchMode.STRUCTURAL),
}
LOCALISED = SCORED | {
    "position_aware_w_0.3": MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=0.3),
    "position_aware_uniform": MatchSettings.of(MatchMode.POSITION_AWARE, marginals=Marginals.UNIFORM),
    "position_aware_w_0.1": MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=0.1),
    "max_sim": MatchSettings.of(MatchMode.MAX_SIM),
    "chamfer": MatchSettings.of(MatchMode.CHAMFER),
    "earth_mover": MatchSettings.of(MatchMode.EARTH_MOVER),
    "earth_mover_w_0.3": MatchSettings.of(MatchMode.EARTH_MOVER, spatial_weight=0.3),
    "partial": MatchSettings.of(MatchMode.PARTIAL),
    "partial_w_0.3": MatchSettings.of(MatchMode.PARTIAL, spatial_weight=0.3),
    "same_cell": MatchSettings.of(MatchMode.SAME_CELL),
}

console = Console()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parsed(arguments)
    start_s = time.monotonic()
    bundle = sample_bundle()
    drawn = unseen_images(options.unseen) if options.unseen else sample_images()
    features = BlankedFeatures(
        encoder=Encoder.open(bundle, threads=os.cpu_count() or 1),
        images={name: bundle.manifest.preprocessing.apply(pixels) for name, pixels in drawn.items()},
    )
    pairs = pairs_of(classes_of(list(drawn), None if options.unseen else options.half)[: options.classes])
    deletion = {name: deleted(features, pairs, settings) for name, settings in SCORED.items()}
    show_deletion(deletion)
    curves = {name: curves_of(features, pairs[::EVERY], settings) for name, settings in SCORED.items()}
    places = localised(features, pairs[::EVERY])
    show_localisation(places)
    write_report(
        "explain",
        figures=figures(deletion, places) | shown_figures(curves[HEADLINE]),
        details={
            "half": "unseen" if options.unseen else options.half,
            "pairs": len(pairs),
            "classes": len({pair.label for pair in pairs}),
            "bundle": bundle.digest,
            "cells_blanked": blanked_cells(features.grid),
            "random_draws": DRAWS,
            "deletion": deletion,
            "curves": {name: each["curve"] for name, each in curves.items()},
            "flows": {name: each["flows"] for name, each in curves.items()},
            "localisation": places,
            "images_embedded": len(features.known),
            "seconds": round(time.monotonic() - start_s, 1),
        },
        command=options.command,
        folder=options.folder,
    )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `command` is what repeats the run."""
    parser = argparse.ArgumentParser(description="Deletion and localisation of explanations.")
    parser.add_argument("--classes", type=int, help="classes of the half (all)")
    parser.add_argument("--half", choices=HALVES, default="reported", help="half of the classes")
    parser.add_argument("--unseen", type=int, help="so many classes that are no samples, in place of the half")
    parser.add_argument("--folder", type=Path, default=BENCH, help="for the report")
    options = parser.parse_args(arguments)
    for count in (options.classes, options.unseen):
        if count is not None and count < 2:
            parser.error(f"expected at least 2 classes, one to control the other; got {count}")
    given = f" --classes {options.classes}" if options.classes else ""
    given += f" --half {options.half}" if options.half != "reported" else ""
    given += f" --unseen {options.unseen}" if options.unseen else ""
    options.command = f"python tests/benchmarks/explaining.py{given}" if given else "make bench-explain"
    return options


def sample_images() -> dict[str, NDArray[np.uint8]]:
    """Return the sample images by DESIGNER/CLASS."""
    paths = {path.relative_to(SAMPLES).with_suffix("").as_posix(): path for path in sample_files()}
    return {name: decode_image(path.read_bytes()) for name, path in paths.items()}


def unseen_images(count: int) -> dict[str, NDArray[np.uint8]]:
    """Return `count` classes, the first by their hash, that no sample image shows, by the samples' designers."""
    designers = sorted({path.parent.name for path in sample_files()})
    known = {path.stem for path in sample_files()}
    sets = emoji.load_icon_sets(BENCH.parent / "emoji", designers)
    classes = [each for each in emoji.shared_classes(sets, designers) if each.codepoint not in known]
    classes.sort(key=lambda each: hashlib.sha256(each.codepoint.encode()).digest())
    return {
        f"{designer}/{each.codepoint}": np.asarray(
            emoji.rasterise(sets[designer].drawings[each.icons[designer]], SIDE_PX)
        )
        for each in classes[:count]
        for designer in designers
    }


def classes_of(names: Sequence[str], half: str | None) -> list[tuple[str, list[str]]]:
    """Return one half, every second class, of images named DESIGNER/CLASS: each class with its images; None: all."""
    by_class: dict[str, list[str]] = {}
    for name in sorted(names):
        by_class.setdefault(name.split("/")[1], []).append(name)
    ordered = sorted(by_class.items())
    return ordered if half is None else ordered[HALVES.index(half) :: 2]


def pairs_of(classes: Sequence[tuple[str, list[str]]]) -> list[Pair]:
    """Return one pair per image as the query; which designer it is compared with takes turns from class to class."""
    return [
        Pair(query=query, image=names[(place + 1 + index % (len(names) - 1)) % len(names)], label=label)
        for index, (label, names) in enumerate(classes)
        for place, query in enumerate(names)
    ]


def blanked_cells(grid: CellGrid) -> int:
    """Return how many cells a quarter of the grid is."""
    return max(1, round(grid.size * SHARE_BLANKED))


def deleted(features: BlankedFeatures, pairs: Sequence[Pair], settings: MatchSettings) -> dict[str, Any]:
    """Return by fill: the mean score, the mean random drop, and each order's ratio with its standard error.

    All pairs are asked with the mean colour, every second one with the other fills.
    """
    scorer = MatchScorer(features=features, settings=settings)
    count, cells = blanked_cells(features.grid), features.grid.size
    ranked = orders([scorer.explained(pair) for pair in pairs], [pair.label for pair in pairs])
    table: dict[str, Any] = {}
    for fill in Fill:
        every = slice(None, None, 1 if fill is Fill.MEAN else 2)
        asked = pairs[every]
        labels = [pair.label for pair in asked]
        named = {name: first(order[every], count) for name, order in ranked.items()}
        draws = [random_cells(cells, count, len(pairs), seed)[every] for seed in range(DRAWS)]
        embed_blankings(features, asked, [*draws, *named.values()], fill)
        at_random = np.mean([drops(scorer, asked, chosen, fill) for chosen in draws], axis=0)
        results = {name: drops(scorer, asked, chosen, fill) for name, chosen in named.items()}
        table[fill.value] = {
            "pairs": len(asked),
            "score": float(np.mean([scorer(pair, NO_CELLS, fill) for pair in asked])),
            "random_drop": float(at_random.mean()),
            "ratios": {name: ratio(result, at_random) for name, result in results.items()},
            "standard_errors": {name: ratio_error(result, at_random, labels) for name, result in results.items()},
        }
    return table


def curves_of(features: BlankedFeatures, pairs: Sequence[Pair], settings: MatchSettings) -> dict[str, Any]:
    """Return the drop by the number of blanked cells, and what 1 to 32 shown flows carry and name."""
    scorer = MatchScorer(features=features, settings=settings)
    explained = [scorer.explained(pair) for pair in pairs]
    ranked = orders(explained, [pair.label for pair in pairs])
    cells = features.grid.size
    counts = range(1, cells // 2 + 1)
    sets = {name: [first(ranked[name], count) for count in counts] for name in CURVE_ORDERS}
    draws = [[random_cells(cells, count, len(pairs), seed) for count in counts] for seed in CURVE_SEEDS]
    embed_blankings(features, pairs, [each for line in (*sets.values(), *draws) for each in line], Fill.MEAN)
    at_random = np.mean([curve(scorer, pairs, line, Fill.MEAN) for line in draws], axis=0)
    flows = [pair.flow for pair in explained]
    return {
        "curve": {name: curve(scorer, pairs, line, Fill.MEAN) for name, line in sets.items()}
        | {"random": at_random.tolist(), "cells": list(counts)},
        "flows": {
            "by_support": carried([top_flows(flow, flow.plan.size) for flow in flows], flows),
            "by_contribution": carried([flows_by_contribution(flow) for flow in flows], flows),
        },
    }


def carried(shown: Sequence[Sequence[Flow]], flows: Sequence[MatchingFlow]) -> dict[str, dict[str, float]]:
    """Return by number of flows: their share of the score, and how many cells of either side they name; means."""
    scores = [float(contributions(flow).sum()) for flow in flows]
    return {
        str(count): {
            "share_of_score": float(
                np.mean([sum(f.contribution for f in each[:count]) / s for each, s in zip(shown, scores, strict=True)])
            ),
            "query_cells": float(np.mean([len({f.query_cell for f in each[:count]}) for each in shown])),
            "image_cells": float(np.mean([len({f.image_cell for f in each[:count]}) for each in shown])),
        }
        for count in FLOW_COUNTS
    }


def localised(features: BlankedFeatures, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return where mass and shown flows land in copies of the pairs' queries, by the order of the flows."""
    grid = features.grid
    made = copies([features.images[pair.query] for pair in pairs], grid)
    originals, changed = (encoded(features.encoder, [getattr(copy, part) for copy in made]) for part in PARTS)
    cases = list(zip(made, originals, changed, strict=True))
    return {
        "by_support": localisation(cases, LOCALISED, lambda flow, _: top_flows(flow, SHOWN_FLOWS), grid),
        "by_contribution": localisation(
            cases, LOCALISED, lambda flow, _: flows_by_contribution(flow)[:SHOWN_FLOWS], grid
        ),
        "chance": 1 / grid.size,
    }


def figures(deletion: dict[str, Any], places: dict[str, Any]) -> dict[str, float]:
    """Return what a reader looks at first; the details hold every fill, order and matcher."""
    table: dict[str, float] = {}
    for name, results in deletion.items():
        suffix = "" if name == HEADLINE else f"_{name}"
        mean = results[Fill.MEAN]
        table |= {
            f"deletion_ratio{suffix}": mean["ratios"]["shares"],
            f"deletion_ratio{suffix}_standard_error": mean["standard_errors"]["shares"],
            f"deletion_ratio{suffix}_support": mean["ratios"]["support"],
            f"deletion_ratio{suffix}_plain": mean["ratios"]["contribution"],
            f"deletion_ratio{suffix}_shown_flows": mean["ratios"]["flows_by_support"],
            f"deletion_ratio{suffix}_shown_flows_plain": mean["ratios"]["flows_by_contribution"],
            f"control{suffix}_another_pair": mean["ratios"]["shares_of_another_pair"],
            f"control{suffix}_another_pair_plain": mean["ratios"]["contribution_of_another_pair"],
            f"control{suffix}_fixed_order": mean["ratios"]["fixed"],
        }
        for fill in (Fill.BACKGROUND, Fill.GREY):
            table[f"deletion_ratio{suffix}_{fill}"] = results[fill]["ratios"]["shares"]
    for kind, by_matcher in places["by_support"].items():
        table[f"chance_{kind}"] = places["chance"]
        for name in FIGURED:
            table[f"localisation_{kind}_{name}"] = by_matcher[name]["mass"]
            table[f"localisation_{kind}_{name}_shown_flows"] = by_matcher[name]["flows"]
    return table


def shown_figures(result: dict[str, Any]) -> dict[str, float]:
    """Return what the shown flows carry, and after how many cells that they name further ones do as random ones do."""
    carried_by = result["flows"]["by_support"][str(SHOWN_FLOWS)]
    gains = np.subtract(result["curve"]["flows_by_support"], result["curve"]["random"])
    return {
        "shown_flows": SHOWN_FLOWS,
        "shown_flows_share_of_score": carried_by["share_of_score"],
        "shown_flows_query_cells": carried_by["query_cells"],
        "cells_of_greatest_gain_over_random": int(gains.argmax()) + 1,
    }


def show_deletion(deletion: dict[str, Any]) -> None:
    """Print the ratios, a row per matcher and fill."""
    names = list(next(iter(deletion.values()))[Fill.MEAN]["ratios"])
    table = Table(title="Drop over that of random cells, by the order of cells", title_justify="left")
    for heading in ("matcher", "fill", *(name.replace("_", " ") for name in names)):
        table.add_column(heading)
    for matcher, results in deletion.items():
        for fill, result in results.items():
            cells = (f"{result['ratios'][name]:.2f}+-{result['standard_errors'][name]:.2f}" for name in names)
            table.add_row(matcher, fill, *cells)
    console.print(table)


def show_localisation(places: dict[str, Any]) -> None:
    """Print where mass and shown flows land, a row per kind of copy and matcher."""
    headings = ("copy", "matcher", "mass on true cell", "within one", "flows by support", "by contribution")
    table = Table(title=f"Landing on the true cell; chance {places['chance']:.2f}", title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for kind, by_matcher in places["by_support"].items():
        for name, result in by_matcher.items():
            plain = places["by_contribution"][kind][name]
            values = (result["mass"], result["mass_near"], result["flows"], plain["flows"])
            table.add_row(kind, name, *(f"{value:.2f}" for value in values))
    console.print(table)


if __name__ == "__main__":
    main()
