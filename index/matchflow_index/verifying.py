"""Verify a gallery: its truth, and its caches against the truth. Nothing is changed, and a server may be running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matchflow_index.findings import Verification
from matchflow_index.restoring import stored_gallery
from matchflow_index.verifying_caches import verify_caches
from matchflow_index.verifying_truth import verify_truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.opening import StorePlace
    from matchflow_index.truth import Truth


def verify(
    truth: Truth,
    gallery_id: str,
    place: StorePlace | None,
    *,
    generation: int = 0,
    progress: Callable[[str, int], object] = lambda *_: None,
) -> Verification:
    """Return everything that is wrong with a generation, 0: the active one, and its caches at a place.

    Without a place they are not looked at. `progress` hears how many images, or slots, were looked at.
    Raises GalleryNotFoundError, GenerationNotFoundError, StoreUnavailableError.
    """
    gallery = stored_gallery(truth, gallery_id)
    if generation:
        gallery = truth.generations(gallery_id).numbered(generation)
    report = Verification(gallery_id=gallery_id, generation=gallery.spec.generation)
    verify_truth(truth, gallery, report, lambda count: progress("images", count))
    directory = None if place is None else place.caches_of(gallery.uuid)
    if directory is not None:
        verify_caches(directory, truth, gallery, report, lambda count: progress("slots", count))
    return report


def verify_all(
    truth: Truth, gallery_id: str, place: StorePlace | None, *, progress: Callable[[str, int], object] = lambda *_: None
) -> list[Verification]:
    """Return what `verify` finds in each generation of a gallery, the active one first."""
    stored_gallery(truth, gallery_id)
    return [
        verify(truth, gallery_id, place, generation=each.spec.generation, progress=progress)
        for each in truth.generations(gallery_id)
    ]
