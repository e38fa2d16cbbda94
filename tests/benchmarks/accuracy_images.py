"""The images of the accuracy benchmark: classes in two halves, the bundle fitted on one, features of either.

A class goes to a half by the hash of its code points, so it stays there whatever other classes there are.
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import emoji
import numpy as np
from displacing import Displacement
from report import usable_cores

from matchflow_bundle import Encoder, Preprocessing
from matchflow_exporter import ExportSettings, export_bundle
from matchflow_index.evaluation import LabelledImages
from matchflow_matching import FeatureBatch, quantise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_bundle import Bundle

SIZE_PX = 128
BATCH = 32
ORIGINAL, DISPLACED = "original", "displaced"
FRAMINGS = (ORIGINAL, DISPLACED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The classes that the head is fitted on, and those that are scored."""

    fitted: list[emoji.EmojiClass]
    scored: list[emoji.EmojiClass]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One designer's emoji in one framing."""

    emoji_class: emoji.EmojiClass
    designer: str
    framing: str

    @property
    def image_id(self) -> str:
        """The designer and the code points, the same for both framings of an emoji, and the framing."""
        return f"{self.designer}-{self.emoji_class.codepoint}-{self.framing}"

    def pixels(self, sets: dict[str, emoji.IconSet]) -> NDArray[np.uint8]:
        """Return the picture, uint8 [SIZE_PX, SIZE_PX, 3]."""
        drawn = emoji.rasterise(sets[self.designer].drawings[self.emoji_class.icons[self.designer]], SIZE_PX)
        if self.framing == DISPLACED:
            drawn = Displacement.of(f"{self.designer}-{self.emoji_class.codepoint}").apply(drawn)
        return np.asarray(drawn)


def split(classes: Sequence[emoji.EmojiClass], limit: int | None = None) -> Halves:
    """Split by the last bit of the code points' sha256; of each half keep `limit` classes, the first by that hash."""
    by_hash = sorted((hashlib.sha256(each.codepoint.encode()).digest(), each) for each in classes)
    halves: tuple[list[emoji.EmojiClass], ...] = ([], [])
    for digest, each in by_hash:
        halves[digest[-1] & 1].append(each)
    return Halves(fitted=halves[0][:limit], scored=halves[1][:limit])


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
    """Return every emoji of `classes` in both framings as the service would store it.

    Ordered by framing, designer and class; labels: class, designer, framing.
    """
    encoder = Encoder.open(bundle)
    manifest = bundle.manifest
    preprocessing = Preprocessing(height_px=manifest.height_px, width_px=manifest.width_px, policy=manifest.policy)
    drawings = [
        Drawing(emoji_class=each, designer=designer, framing=framing)
        for framing in FRAMINGS
        for designer in designers
        for each in classes
    ]

    def features(start: int) -> FeatureBatch:
        pixels = [preprocessing.apply(each.pixels(sets)) for each in drawings[start : start + BATCH]]
        return quantise(*encoder.encode(np.stack(pixels)))

    with ThreadPoolExecutor(usable_cores()) as pool:
        batches = list(pool.map(features, range(0, len(drawings), BATCH)))
    return LabelledImages(
        image_ids=tuple(each.image_id for each in drawings),
        labels=tuple(
            {"class": each.emoji_class.codepoint, "designer": each.designer, "framing": each.framing}
            for each in drawings
        ),
        grid=manifest.grid,
        features=FeatureBatch(
            embeddings=np.concatenate([batch.embeddings for batch in batches]),
            cells=np.concatenate([batch.cells for batch in batches]),
            scales=np.concatenate([batch.scales for batch in batches]),
        ),
    )


def asked(images: LabelledImages, designer: str, framing: str) -> LabelledImages:
    """Return one designer's images in one framing, the queries, and the originals of all others, the gallery."""
    chosen = [
        place
        for place, labels in enumerate(images.labels)
        if labels["framing"] == (framing if labels["designer"] == designer else ORIGINAL)
    ]
    return LabelledImages(
        image_ids=tuple(images.image_ids[place] for place in chosen),
        labels=tuple(images.labels[place] for place in chosen),
        grid=images.grid,
        features=images.features.take(np.array(chosen, np.intp)),
    )
