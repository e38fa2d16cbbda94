"""Any history of a gallery, with restarts and crashes in it, against a plain dictionary."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from index_samples import gallery_spec, naive_search, new_image, sample_features

from matchflow_index import (
    Gallery,
    GalleryStore,
    ImageFilter,
    LabelCondition,
    MatchDefaults,
    NewImage,
    PutOutcome,
    SearchQuery,
    evaluate,
    upkeep,
)
from matchflow_index.limits import longest_cell
from matchflow_matching import MatchMode, MatchSettings

CONTENTS = sample_features(6, seed=42)
# Ready-made features may have cells of any length.
CONTENTS.scales[3] *= np.float16(1.5)
names = st.sampled_from(["a", "b", "c", "ü", "z" * 256])
contents = st.integers(0, len(CONTENTS) - 1)
labels = st.dictionaries(st.sampled_from(["colour", "shape"]), st.sampled_from(["red", "round", "blue"]), max_size=2)
RED = ImageFilter(conditions=(LabelCondition(field="colour", any_of=frozenset({"red"})),))


class GalleryHistory(RuleBasedStateMachine):
    """Puts, relabels, deletes, saves, restarts and crashes in any order."""

    store: GalleryStore
    gallery: Gallery

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.images: dict[str, NewImage] = {}
        self.rows: dict[str, int] = {}
        self.row_ids: set[int] = set()
        self.sequence = 0
        self.defaults = MatchDefaults()

    @initialize()
    def create(self) -> None:
        self.store = GalleryStore.open(self.folder / "store")
        self.gallery = self.store.create(gallery_spec())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder)

    @rule(items=st.lists(st.tuples(names, contents, labels), max_size=4))
    def put(self, items: list[tuple[str, int, dict[str, str]]]) -> None:
        images = [new_image(name, CONTENTS[content], labels) for name, content, labels in items]
        for image, result in zip(images, self.gallery.put(images), strict=True):
            old = self.images.get(image.image_id)
            if old is None or old.content_hash != image.content_hash:
                assert result.outcome is (PutOutcome.UPDATED if old else PutOutcome.CREATED)
                assert result.row_id not in self.row_ids
                self.row_ids.add(result.row_id)
            else:
                assert result.outcome is (PutOutcome.UNCHANGED if old.labels == image.labels else PutOutcome.UPDATED)
                assert result.row_id == self.rows[image.image_id]
            self.sequence += result.outcome is not PutOutcome.UNCHANGED
            assert result.sequence == self.sequence
            self.images[image.image_id] = image
            self.rows[image.image_id] = result.row_id

    @precondition(lambda self: self.images)
    @rule(data=st.data(), labels=labels)
    def relabel(self, data: st.DataObject, labels: dict[str, str]) -> None:
        name = data.draw(st.sampled_from(sorted(self.images)))
        self.sequence += labels != self.images[name].labels
        assert self.gallery.update(name, labels=labels).labels == labels
        self.images[name] = replace(self.images[name], labels=labels)

    @rule(doomed=st.frozensets(names))
    def delete(self, doomed: frozenset[str]) -> None:
        present = doomed & self.images.keys()
        assert self.gallery.delete(doomed) == (len(present), len(doomed - present))
        self.sequence += len(present)
        for name in present:
            del self.images[name], self.rows[name]

    @rule(depth=st.none() | st.integers(1, 1000), mode=st.sampled_from(MatchMode))
    def set_defaults(self, depth: int | None, mode: MatchMode) -> None:
        chosen = None if depth is None else MatchDefaults(settings=MatchSettings.of(mode), depth=depth)
        self.gallery.set_match_defaults(chosen)
        self.defaults = chosen or MatchDefaults()

    @rule()
    def save(self) -> None:
        self.gallery.save()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.reopen()

    @rule()
    def crash(self) -> None:
        """What a kill leaves behind: the truth as it is, the caches as they were last saved."""
        caches, aside = self.folder / "store" / "caches", self.folder / "aside"
        shutil.copytree(caches, aside)
        self.store.close()
        shutil.rmtree(caches)
        aside.rename(caches)
        self.reopen()

    @rule()
    def maintain(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upkeep, "LEAST_COMPACTED", 1)
            patch.setattr(upkeep, "MOST_DEAD", 0)
            self.gallery.maintain()
        assert self.gallery._shelf.size == len(self.images)

    @rule(keep=st.integers(1, 6))
    def trim_log(self, keep: int) -> None:
        self.gallery._truth.trim_log(self.gallery.stored, keep)

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A bit of a cache is flipped while nobody has the store open."""
        self.store.close()
        files = sorted(path for path in (self.folder / "store" / "caches").rglob("*") if path.is_file())
        if files:
            path = data.draw(st.sampled_from(files))
            content = bytearray(path.read_bytes())
            # Most of a small slab is room for more.
            content[data.draw(st.integers(0, min(len(content), 6_000) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
        self.reopen()

    @invariant()
    def removed_features_are_not_in_the_slab(self) -> None:
        if hasattr(self, "gallery"):
            shelf = self.gallery._shelf
            dead = np.setdiff1d(np.arange(shelf.size), shelf.live_slots)
            assert not shelf.slab.stored(dead).any()

    def reopen(self) -> None:
        self.store = GalleryStore.open(self.folder / "store")
        self.gallery = self.store.gallery("demo")

    @invariant()
    def everything_is_as_the_dictionary_says(self) -> None:
        if not hasattr(self, "gallery"):
            return
        assert (self.gallery.count, self.gallery.sequence) == (len(self.images), self.sequence)
        page = self.gallery.page(None, 100)
        assert [record.image_id for record in page] == sorted(self.images)
        for record in page:
            image = self.images[record.image_id]
            assert record == self.gallery.get(record.image_id)
            assert (record.row_id, record.labels) == (self.rows[record.image_id], image.labels)
            assert self.gallery.thumbnail(record.image_id) == image.thumbnail
            np.testing.assert_array_equal(self.gallery.features(record.image_id).cells, image.features.cells)

    @invariant()
    def searches_find_what_the_dictionary_holds(self) -> None:
        if not hasattr(self, "gallery"):
            return
        for image_filter in (ImageFilter(), RED, ImageFilter(exclude=frozenset({"a"}))):
            query = SearchQuery(
                features=CONTENTS[0],
                top_k=4,
                depth=3,
                settings=MatchSettings(mode=MatchMode.MAX_SIM),
                max_flows=0,
                filter=image_filter,
            )
            hits = [(hit.record.image_id, hit.score) for hit in self.gallery.search(query).hits]
            assert hits == naive_search(list(self.images.values()), query)

    @invariant()
    def exhaustive_searches_prove_what_the_dictionary_holds(self) -> None:
        if not hasattr(self, "gallery"):
            return
        for mode in (MatchMode.STRUCTURAL, MatchMode.EARTH_MOVER):
            query = SearchQuery(
                features=CONTENTS[1],
                top_k=2,
                depth=1,
                settings=MatchSettings.of(mode),
                max_flows=0,
                filter=ImageFilter(exclude=frozenset({"b"})),
                exhaustive=True,
            )
            answer = self.gallery.search(query)
            hits = [(hit.record.image_id, hit.score) for hit in answer.hits]
            assert hits == naive_search(list(self.images.values()), query, exhaustive=True)
            assert answer.exact
            assert answer.depth_done + answer.proved_below == len(self.images.keys() - {"b"})

    @invariant()
    def the_longest_cell_and_the_defaults_are_those_of_what_is_there(self) -> None:
        if not hasattr(self, "gallery"):
            return
        lengths = [longest_cell(image.features) for image in self.images.values()]
        assert math.isclose(self.gallery._shelf.longest_cell, max(lengths, default=0.0), rel_tol=1e-6)
        assert self.gallery.match_defaults == self.defaults

    @precondition(lambda self: len(self.images) > 1)
    @rule()
    def evaluate(self) -> None:
        report = evaluate(self.gallery.labelled_images(), class_field="colour")
        assert report.queries + report.skipped == len(self.images)


GalleryHistory.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
test_any_history_leaves_what_a_dictionary_would_hold = GalleryHistory.TestCase
