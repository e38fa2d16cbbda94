"""Options that several commands share, and the texts that they are parsed from."""

import re
from collections.abc import Iterable
from typing import Annotated

import typer

import matchflow
from matchflow_cli.failures import CommandError

MISUSE = 2
SIZE = re.compile(r"([0-9]+)(?:[xX]([0-9]+))?")
LABEL_NAME = re.compile(r"[a-z0-9_]{1,64}")

ServerOption = Annotated[
    str, typer.Option("--server", envvar="MATCHFLOW_SERVER", help="host:port of the server.", show_default=True)
]
GalleryOption = Annotated[str, typer.Option("--gallery", "-g", help="The gallery.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")]
GenerationOption = Annotated[
    int | None,
    typer.Option("--generation", min=1, help="Generation to ask. Default: the active one.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

DEFAULT_SERVER = "localhost:50051"


def parse_size(text: str, what: str) -> tuple[int, int]:
    """Return (first, second) of "AxB"; one number means both. Raises CommandError."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise CommandError(f"{what} must be like 256x128, or 128 for both; got {text!r}", exit_code=MISUSE)
    return int(found[1]), int(found[2] or found[1])


def check_label_names(names: Iterable[str], origin: str) -> None:
    """Raise CommandError for a name that no label can have."""
    for name in names:
        if not LABEL_NAME.fullmatch(name):
            raise CommandError(
                f"{origin}: a label name has 1-64 characters of a-z, 0-9 and _; got {name!r}", exit_code=MISUSE
            )


def query_of(image: str | None, image_id: str | None, gallery: str) -> str | matchflow.ImageRef:
    """Return what is asked with: a file, or an image of the gallery. Raises CommandError unless it is exactly one."""
    if (image is None) == (image_id is None):
        raise CommandError("name one query: either a file, or --image-id with a stored image", exit_code=MISUSE)
    if image is not None:
        return image
    return matchflow.ImageRef(gallery, image_id or "")
