"""The images below a folder as samples to import: which files, under which ids, with which labels.

The id of a file is its path below the folder, made safe by `image_id_of`. Hidden files are left out, folders that are
links are not followed, and files come in the order of their paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matchflow_cli.bulk_samples import IMAGE_SUFFIXES, FileContent, Reason, Rejection, Sample, image_id_of
from matchflow_cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImages:
    """The images below `folder`, in the order of their paths.

    level_labels: names for the folders between `folder` and a file, as in `folder_labels`.
    """

    folder: Path
    level_labels: Sequence[str] = ()

    def extent(self) -> int:
        """Return how many images there are, without keeping them."""
        return sum(1 for _ in _walk(self.folder))

    def samples(self) -> Iterator[Sample | Rejection]:
        """Give one image after the other; files are not opened here. A folder that can't be read is a rejection."""
        for position, (relative, problem) in enumerate(_walk(self.folder), start=1):
            if problem is not None:
                message = problem.strerror or str(problem)
                yield Rejection(
                    place=printable(relative), reason=Reason.FILE_UNREADABLE, message=message, position=position
                )
                continue
            yield Sample(
                image_id=image_id_of(relative),
                place=printable(relative),
                labels=folder_labels(relative, self.level_labels),
                content=FileContent(self.folder / relative),
                position=position,
            )


def folder_labels(relative: str, level_labels: Sequence[str]) -> dict[str, str]:
    """Return the labels that the folders of a path give, outermost first.

    Folders deeper than there are names give no label, and a file in fewer folders gets fewer labels.

    >>> folder_labels("noto/1f600/a.png", ("designer", "class"))
    {'designer': 'noto', 'class': '1f600'}
    """
    return dict(zip(level_labels, relative.split("/")[:-1], strict=False))


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, OSError | None]]:
    """Give the relative paths of images, and those of folders that can't be read with the error."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        yield below, error
        return
    for entry in ordered:
        relative = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{relative}/")
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir():
            yield relative, None
