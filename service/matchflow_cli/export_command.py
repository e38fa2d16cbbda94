"""`matchflow export`: a trained model becomes a bundle."""

import enum
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from matchflow_cli.options import parse_size
from matchflow_cli.output import console, progress_console, text


class Policy(enum.StrEnum):
    """The names of matchflow_bundle.ResizePolicy, known without importing it."""

    STRETCH = "stretch"
    CENTER_CROP = "center_crop"
    PAD = "pad"


def export(
    *,
    name: Annotated[str, typer.Option(help="The model's name, as galleries will know it.")],
    head_images: Annotated[Path, typer.Option(help="Folder of images to fit the projection head on.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle. Default: ./NAME.")] = None,
    architecture: Annotated[str, typer.Option(help="The backbone.")] = "efficientnet-lite0",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the backbone. Default: those it comes with.")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the model, for people.")] = "1",
    size: Annotated[str, typer.Option(help="Input size, HEIGHTxWIDTH in pixels.")] = "128x128",
    grid: Annotated[str, typer.Option(help="Cells, ROWSxCOLUMNS.")] = "4x4",
    dim: Annotated[int, typer.Option(help="Numbers per cell and per image, D.")] = 128,
    power: Annotated[float, typer.Option(help="Whitening power of the head: 0 none, 0.5 full.")] = 0.25,
    policy: Annotated[Policy, typer.Option(help="How an image of another shape becomes the input.")] = Policy.STRETCH,
    max_head_images: Annotated[int, typer.Option(help="Images of the folder to use at most.")] = 500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Export a trained model to a bundle that `matchflow serve` runs.

    Nothing is written unless ONNX Runtime agrees with the source model.
    """
    height_px, width_px = parse_size(size, "--size")
    rows, columns = parse_size(grid, "--grid")
    # torch takes seconds to import: only now, once the flags are known to make sense.
    from matchflow_bundle import ResizePolicy  # noqa: PLC0415
    from matchflow_exporter import ExportSettings, export_bundle  # noqa: PLC0415
    from matchflow_matching import CellGrid  # noqa: PLC0415

    settings = ExportSettings(
        name=name,
        head_images=head_images,
        version=version,
        architecture=architecture,
        checkpoint=checkpoint,
        height_px=height_px,
        width_px=width_px,
        policy=ResizePolicy(policy),
        grid=CellGrid(rows=rows, columns=columns),
        embedding_dim=dim,
        power=power,
        max_head_images=max_head_images,
    )
    destination = output or Path(name)
    with _Stages() as stages:
        bundle = export_bundle(settings, destination, overwrite=overwrite, progress=stages.show)
    out = console()
    out.print(f"bundle   {text(destination)}  ({name} version {version}, digest {bundle.digest[:12]})")
    parity = bundle.manifest.parity
    out.print(
        f"parity   on {parity.images} images at batch sizes {', '.join(map(str, parity.batch_sizes))}: "
        f"embedding within {parity.max_abs_embedding:.1e}, cells within {parity.max_abs_cells:.1e} "
        f"(allowed {parity.tolerance:.0e})"
    )
    out.print(f"next     matchflow serve --store store --bundle {text(destination)}")


class _Stages:
    """A progress bar per stage of the export."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=progress_console())
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
