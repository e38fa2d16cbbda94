"""Filling in the background: one gallery that can't be filled keeps no other from it, and is let rest."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from index_samples import gallery_spec

from matchflow_index import GalleryStore, StoreUnavailableError, generation_filler
from matchflow_index.errors import FillingPausedError
from matchflow_index.generation_filler import Filler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("bad", "good")


class Desk:
    """Stands where a gallery's generations do; says how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0

    def fill(self, _: Any) -> bool:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    """A store with two galleries of two generations each."""
    with GalleryStore.open(tmp_path) as store:
        for name in NAMES:
            store.create(gallery_spec(name))
            store.generations_of(name).add(replace(gallery_spec(name), model="other", bundle_digest="sha256:other"))
        yield store


def filler(store: GalleryStore, desks: dict[str, Any]) -> Filler:
    return Filler(store._truth, desks.__getitem__, threading.Event())


def test_one_gallery_that_fails_keeps_no_other_from_being_filled_and_is_let_rest(
    store: GalleryStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    desks = {"bad": Desk(StoreUnavailableError("no room")), "good": Desk()}
    filling = filler(store, desks)
    for _ in range(3):
        assert filling.round()
    assert (desks["bad"].asked, desks["good"].asked) == (1, 3)
    monkeypatch.setattr(generation_filler, "REST_S", 0.0)
    filling._resting_until_s.clear()
    for _ in range(3):
        filling.round()
    assert desks["bad"].asked == 4
    # Said once.
    assert caplog.text.count("the other generation of gallery bad is not filled: no room") == 1
    desks["bad"].error = None
    filling.round()
    desks["bad"].error = StoreUnavailableError("no room")
    filling.round()
    assert caplog.text.count("is not filled: no room") == 2


def test_a_gallery_that_waits_for_its_model_is_no_trouble(
    store: GalleryStore, caplog: pytest.LogCaptureFixture
) -> None:
    desks = {"bad": Desk(FillingPausedError("the server is stopping")), "good": Desk()}
    filling = filler(store, desks)
    for _ in range(3):
        filling.round()
    assert (desks["bad"].asked, desks["good"].asked) == (3, 3)
    assert caplog.text == ""
