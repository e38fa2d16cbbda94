"""A process that writes to a gallery, fills its other generation and switches between the two, until it is killed.

Arguments: folder of the store, address of a Redis server or "", a seed. Prints a line for each acknowledged write:
"put NAME SEED" or "delete NAME"; and "switch N" for each switch.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from index_samples import GRID, new_image, sample_features

from matchflow_index import FillingPausedError, GalleryStore, GenerationNotReadyError, NewImage
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth
from matchflow_matching import CellGrid
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matchflow_index import Gallery
    from matchflow_matching.features import Features

OTHER_GRID, OTHER_DIM = CellGrid(rows=3, columns=2), 12
NAMES = [f"image-{k}" for k in range(20)]


def picture(name: str, seed: int) -> bytes:
    """Return the thumbnail that says which content an image has."""
    return f"{name} {seed}".encode()


def features_of(picture: bytes, generation: int) -> Features:
    """Return what the model of a generation makes of a picture; odd ones are of the first model."""
    seed = int.from_bytes(picture, "big") % 2**32
    if generation % 2:
        return sample_features(1, seed=seed)[0]
    return random_batch(np.random.default_rng(seed), 1, OTHER_GRID.size, OTHER_DIM)[0]


def an_image(name: str, seed: int, generation: int) -> NewImage:
    """Return the image of a name and a seed under the model of a generation."""
    shown = picture(name, seed)
    image = new_image(name, features_of(shown, generation), {"seed": str(seed)})
    return NewImage(
        image_id=name,
        content_hash=shown.hex(),
        labels=image.labels,
        width_px=1,
        height_px=1,
        features=image.features,
        thumbnail=shown,
    )


def embed_of(digest: str) -> Callable[[Sequence[bytes]], list[Features | None]]:
    """Return what computes features under a digest."""
    generation = 1 if digest == "sha256:tiny" else 2
    return lambda pictures: [features_of(each, generation) for each in pictures]


def opened(folder: Path, address: str) -> GalleryStore:
    """Open the store."""
    return GalleryStore.open(folder, truth=RedisTruth(RedisAddress(url=address)) if address else None)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write(store: GalleryStore, rng: random.Random) -> None:
    """Put and delete without end."""
    while True:
        name, seed = rng.choice(NAMES), rng.randrange(10**6)
        if rng.random() < 0.3:
            store.delete_images("demo", [name])
            say(f"delete {name}")
            continue

        def put(gallery: Gallery, name: str = name, seed: int = seed) -> object:
            return gallery.put([an_image(name, seed, gallery.spec.generation)])

        store.on_active("demo", put)
        say(f"put {name} {seed}")


def switch(store: GalleryStore, rng: random.Random) -> None:
    """Switch without end, as soon as that can be done."""
    desk = store.generations_of("demo")
    while True:
        active = store.generations("demo").active.spec.generation
        try:
            desk.activate(3 - active, timeout_s=rng.uniform(0, 0.5))
            say(f"switch {3 - active}")
        except (GenerationNotReadyError, FillingPausedError):
            continue


def main() -> None:
    """Run until somebody kills this process."""
    folder, address, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    store = opened(folder, address)
    store.fill(embed_of)
    threading.Thread(target=switch, args=(store, random.Random(f"switch {seed}")), daemon=True).start()
    say("ready")
    write(store, random.Random(f"write {seed}"))


if __name__ == "__main__":
    assert GRID.size
    main()
