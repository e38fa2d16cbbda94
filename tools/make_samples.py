"""Write samples/emoji: the same emoji by five designers, small enough for the repository.

Only sets under licences that ask for attribution and nothing more are taken (see NOTICE); OpenMoji is share-alike and
stays out. The classes are chosen by the hash of their code points, in turn from each kind, so that a run on another
machine or day writes the same bytes.

    python tools/make_samples.py
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import shutil
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import emoji

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

DESIGNERS = ("twemoji", "noto", "fluent", "emojione", "noto-v1")
CLASS_COUNT = 168
SIZE_PX = 128
SIZE_LIMIT_BYTES = 8_000_000
INDEX_COLUMNS = ("path", "class", "designer", "name")
ROOT = Path(__file__).resolve().parent.parent


def choose_classes(classes: Sequence[emoji.EmojiClass], count: int) -> list[emoji.EmojiClass]:
    """Return `count` classes in code point order, taken in turn from each kind in the order of their hashes."""
    queues: dict[str, list[emoji.EmojiClass]] = defaultdict(list)
    for emoji_class in sorted(classes, key=lambda c: class_hash(c.codepoint), reverse=True):
        queues[emoji_class.kind].append(emoji_class)
    chosen: list[emoji.EmojiClass] = []
    while queues and len(chosen) < count:
        for kind in sorted(queues):
            chosen.append(queues[kind].pop())
            if not queues[kind]:
                del queues[kind]
    return sorted(chosen[:count], key=lambda c: c.codepoint)


def class_hash(codepoint: str) -> str:
    """Return the sha256 by which classes are chosen and split."""
    return hashlib.sha256(codepoint.encode()).hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """Return the smallest PNG that Pillow writes, without any chunk that tells time or place."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_samples(archives: Path, destination: Path, *, class_count: int = CLASS_COUNT) -> int:
    """Replace `destination` by the samples, their index.csv and SHA256SUMS; return the size of all in bytes.

    Raises EmojiError when an archive is missing or another, or when the samples would pass the size limit.
    """
    sets = emoji.load_icon_sets(archives, DESIGNERS)
    files: dict[str, bytes] = {}
    rows: list[tuple[str, ...]] = []
    for chosen in choose_classes(emoji.shared_classes(sets, DESIGNERS), class_count):
        for designer in DESIGNERS:
            path = f"{designer}/{chosen.codepoint}.png"
            document = sets[designer].drawings[chosen.icons[designer]]
            files[path] = png_bytes(emoji.rasterise(document, SIZE_PX))
            rows.append((path, chosen.codepoint, designer, chosen.name))
    files["index.csv"] = _csv_bytes(sorted(rows))
    files["SHA256SUMS"] = _sums_bytes(files)
    size_bytes = sum(map(len, files.values()))
    if size_bytes > SIZE_LIMIT_BYTES:
        raise emoji.EmojiError(f"expected samples of at most {SIZE_LIMIT_BYTES} bytes; got {size_bytes}")
    _replace_folder(destination, files)
    return size_bytes


def _csv_bytes(rows: Sequence[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def _sums_bytes(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items())).encode()


def _replace_folder(destination: Path, files: dict[str, bytes]) -> None:
    if destination.exists():
        shutil.rmtree(destination)
    for path, data in files.items():
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the samples and say what came of it."""
    parser = argparse.ArgumentParser(description="Write samples/emoji from the emoji packages.")
    parser.add_argument("--archives", type=Path, default=ROOT / "build" / "emoji", help="where the packages lie")
    parser.add_argument("--destination", type=Path, default=ROOT / "samples" / "emoji")
    parser.add_argument("--classes", type=int, default=CLASS_COUNT)
    options = parser.parse_args(arguments)
    size_bytes = write_samples(options.archives, options.destination, class_count=options.classes)
    print(f"{options.classes} classes x {len(DESIGNERS)} designers, {size_bytes:,} bytes, in {options.destination}")


if __name__ == "__main__":
    main()
