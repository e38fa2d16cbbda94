"""`make demo`: the whole product on the sample images, through a real server, with pictures to look at.

Exports a model, starts `matchflow serve`, ingests three designers' emoji, asks with those of a fourth that the gallery
has never seen, and shows why each hit was found. Everything goes to build/demo/; a second run reuses model and gallery.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from local_server import local_server
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import matchflow
from matchflow_service.contact_sheet import SheetHit, SheetRow, render_contact_sheet

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "emoji"
OUT = ROOT / "build" / "demo"
GALLERY = "demo"
GALLERY_DESIGNERS = ("twemoji", "noto", "emojione")
QUERY_DESIGNER = "fluent"
QUERIES = 16
OVERLAYS = 8

# A log file or pipe has no width of its own; the table needs this much.
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample image and its labels."""

    path: Path
    klass: str
    designer: str
    name: str

    @property
    def image_id(self) -> str:
        """The id in the gallery."""
        return f"{self.designer}-{self.klass}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels in the gallery."""
        return {"class": self.klass, "designer": self.designer, "name": self.name}


def samples(*designers: str) -> list[Sample]:
    """Return the sample images of these designers, in the order of index.csv."""
    with (SAMPLES / "index.csv").open(newline="") as file:
        return [
            Sample(path=SAMPLES / row["path"], klass=row["class"], designer=row["designer"], name=row["name"])
            for row in csv.DictReader(file)
            if row["designer"] in designers
        ]


def export_model(gallery: list[Sample]) -> Path:
    """Export the model once; its head is fitted on the gallery's images, without labels and without the queries."""
    content = hashlib.sha256(b"".join(sample.path.read_bytes() for sample in gallery)).hexdigest()
    bundle, stamp = OUT / "model", OUT / "model.sha256"
    shown = bundle.relative_to(ROOT)
    if bundle.exists() and stamp.exists() and stamp.read_text() == content:
        console.print(f"model     {shown} (exported by an earlier run)")
        return bundle
    images = OUT / "head-images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for sample in gallery:
        shutil.copy(sample.path, images / f"{sample.image_id}.png")
    matchflow_command("export", "--name", "emoji", "--head-images", str(images), "--output", str(shown), "--overwrite")
    stamp.write_text(content)
    shutil.rmtree(images)
    return bundle


def matchflow_command(*arguments: str) -> None:
    """Run the command line as a user would."""
    subprocess.run([Path(sys.executable).with_name("matchflow"), *arguments], check=True, cwd=ROOT)


def fill_gallery(client: matchflow.Client, gallery: list[Sample]) -> None:
    """Create the gallery and ingest the images; what is there already is skipped by the server."""
    try:
        client.create_gallery(GALLERY)
    except matchflow.GalleryExistsError:
        digest = client.models()[0].bundle_digest
        if client.get_gallery(GALLERY).bundle_digest != digest:
            client.delete_gallery(GALLERY)
            client.create_gallery(GALLERY)
    items = (matchflow.IngestItem(id=s.image_id, image=s.path, labels=s.labels) for s in gallery)
    columns = (TextColumn("ingest   "), BarColumn(), MofNCompleteColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("ingest", total=len(gallery))
        summary = client.ingest(GALLERY, items, on_result=lambda _: progress.advance(task))
    seconds = time.perf_counter() - start
    console.print(
        f"gallery   {len(gallery)} images of {', '.join(GALLERY_DESIGNERS)}: {summary.created} created, "
        f"{summary.unchanged} unchanged in {seconds:.1f} s ({len(gallery) / seconds:.0f} images/s)"
    )


def ask(client: matchflow.Client, queries: list[Sample]) -> list[matchflow.SearchResult[matchflow.Hit]]:
    """Search with every query, print the table and return the answers."""
    answers = [client.search(query.path, gallery=GALLERY, top_k=5) for query in queries]
    table = Table(title=f"{len(queries)} queries drawn by {QUERY_DESIGNER}, a designer that the gallery has not seen")
    for heading in ("query", "best hit", ""):
        table.add_column(heading)
    for heading in ("coarse", "structural", "final", "was", "encode ms", "search ms", "total ms"):
        table.add_column(heading, justify="right")
    for query, answer in zip(queries, answers, strict=True):
        best, timings = answer.hits[0], answer.timings
        right = best.labels["class"] == query.klass
        search_ms = timings.coarse_ms + timings.gather_ms + timings.match_ms + timings.explain_ms
        table.add_row(
            query.name,
            f"{best.labels['name']} ({best.labels['designer']})",
            "[green]right[/]" if right else "[red]wrong[/]",
            f"{best.coarse_score:.3f}",
            f"{best.structural_score:.3f}",
            f"{best.score:.3f}",
            f"#{best.coarse_rank + 1}",
            f"{timings.encode_ms:.1f}",
            f"{search_ms:.1f}",
            f"{timings.total_ms:.1f}",
        )
    console.print(table)
    first = sum(a.hits[0].labels["class"] == q.klass for q, a in zip(queries, answers, strict=True))
    coarse = sum(
        min(a.hits, key=lambda hit: hit.coarse_rank).labels["class"] == q.klass
        for q, a in zip(queries, answers, strict=True)
    )
    console.print(
        f"right first: {first} of {len(queries)}; by the global vector alone {coarse} of {len(queries)}. "
        "`was` is the hit's place in the coarse order. Measured properly: make bench-accuracy"
    )
    return answers


def draw(queries: list[Sample], answers: list[matchflow.SearchResult[matchflow.Hit]]) -> None:
    """Write the overlays and the contact sheet."""
    for query, answer in list(zip(queries, answers, strict=True))[:OVERLAYS]:
        answer.hits[0].save_overlay(OUT / f"match-{query.klass}.png")
    by_id = {sample.image_id: sample for sample in samples(*GALLERY_DESIGNERS)}
    rows = [
        SheetRow(
            query=query.path.read_bytes(),
            title=query.name,
            hits=[
                SheetHit(
                    image=by_id[hit.image_id].path.read_bytes(),
                    title=str(hit.labels["designer"]),
                    score=hit.score,
                    correct=hit.labels["class"] == query.klass,
                )
                for hit in answer
            ],
        )
        for query, answer in zip(queries, answers, strict=True)
    ]
    (OUT / "contact-sheet.png").write_bytes(render_contact_sheet(rows))


def main() -> None:
    """Run the demo."""
    OUT.mkdir(parents=True, exist_ok=True)
    gallery, held_out = samples(*GALLERY_DESIGNERS), samples(QUERY_DESIGNER)
    queries = held_out[:: max(1, len(held_out) // QUERIES)][:QUERIES]
    bundle = export_model(gallery)
    log = OUT / "server.log"
    with (
        local_server(bundle=bundle, store=OUT / "store", log=log) as target,
        matchflow.Client(target) as client,
    ):
        console.print(f"server    {target}, log in {log.relative_to(ROOT)}")
        fill_gallery(client, gallery)
        answers = ask(client, queries)
        draw(queries, answers)
    shown = OUT.relative_to(ROOT)
    console.print(f"pictures  {shown}/contact-sheet.png, {OVERLAYS} overlays {shown}/match-*.png")
    commands = (
        f"serve --store {shown}/store --bundle {bundle.relative_to(ROOT)}",
        f"search {queries[0].path.relative_to(ROOT)} --gallery {GALLERY} --overlays build/overlays",
        f"eval {GALLERY} --store {shown}/store --query-field designer",
    )
    console.print("\nTry next; the demo's own server has stopped, so serve in a terminal of its own:")
    for command in commands:
        console.print(f"  .venv/bin/matchflow {command}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
