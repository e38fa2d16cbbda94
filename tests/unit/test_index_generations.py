"""Two generations of a gallery: one follows the other, is compared, switched to, and switched back from."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features
from redis_server import running_redis

from matchflow_index import (
    FeaturesRejectedError,
    GalleryStore,
    GenerationActiveError,
    GenerationDroppedError,
    GenerationExistsError,
    GenerationMovedError,
    GenerationNotFoundError,
    GenerationNotReadyError,
    MatchDefaults,
    PutOutcome,
    SearchQuery,
    SequenceNotReachedError,
    StoreUnavailableError,
    following,
    generation_progress,
)
from matchflow_index.backup import back_up
from matchflow_index.compaction import compact
from matchflow_index.comparing import ComparisonQuery, ScoreShift, compare
from matchflow_index.gallery_stats import store_stats
from matchflow_index.generation_progress import GenerationState
from matchflow_index.opening import StorePlace
from matchflow_index.records import GENERATION_STRIDE
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth
from matchflow_index.restoring import restore
from matchflow_index.verifying import verify_all
from matchflow_matching import CellGrid, MatchSettings
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_index import Gallery, NewImage
    from matchflow_index.generations import GalleryGenerations
    from matchflow_matching.features import Features

GRID, DIM = CellGrid(rows=3, columns=2), 12
OTHER = replace(gallery_spec(), model="other", bundle_digest="sha256:other", grid=GRID, embedding_dim=DIM)
UNREADABLE = b"no picture"


def other_features(picture: bytes) -> Features:
    """Return what the other model makes of a picture."""
    seed = int.from_bytes(hashlib.sha256(picture).digest()[:4], "big")
    return random_batch(np.random.default_rng(seed), 1, GRID.size, DIM)[0]


class Model:
    """Computes features as the other model, and counts the pictures."""

    def __init__(self) -> None:
        self.pictures: list[bytes] = []
        self.loaded = True

    def of(self, digest: str) -> Callable[[Sequence[bytes]], list[Features | None]] | None:
        """Return what computes under a digest: that of the second generation, or again of the first."""
        if not self.loaded:
            return None
        return self.embed if digest == "sha256:other" else self.embed_again

    def embed(self, pictures: Sequence[bytes]) -> list[Features | None]:
        self.pictures += pictures
        return [None if picture == UNREADABLE else other_features(picture) for picture in pictures]

    def embed_again(self, pictures: Sequence[bytes]) -> list[Features | None]:
        self.pictures += pictures
        return [sample_features(1, seed=len(picture))[0] for picture in pictures]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["lmdb", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], GalleryStore]:
    """Return a function that opens the store, with caches in a folder of a name."""
    if request.param == "lmdb":
        return lambda _: GalleryStore.open(tmp_path / "store")
    server: RedisServer = request.getfixturevalue("redis_server")
    address = RedisAddress(url=server.url, prefix=request.node.name.replace("[", " "))
    return lambda name: GalleryStore.open(tmp_path / name, truth=RedisTruth(address))


@pytest.fixture
def store(opened: Callable[[str], GalleryStore]) -> Iterator[GalleryStore]:
    with opened("a") as store:
        yield store


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def gallery(store: GalleryStore) -> Gallery:
    gallery = store.create(gallery_spec())
    gallery.put(new_images(10))
    return gallery


@pytest.fixture
def desk(store: GalleryStore, gallery: Gallery, model: Model) -> GalleryGenerations:
    """The gallery's generations, of which nothing is filled but by `filled`."""
    store._embed_of = model.of
    assert gallery
    return store.generations_of("demo")


def filled(desk: GalleryGenerations) -> None:
    while desk.fill(lambda: False):
        pass


def names(gallery: Gallery) -> list[str]:
    return sorted(gallery.image_ids())


def picture(image: NewImage) -> bytes:
    assert image.thumbnail is not None
    return image.thumbnail


def test_a_generation_is_filled_from_thumbnails_with_features_of_its_own_model(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations, model: Model
) -> None:
    begun = desk.add(OTHER)
    assert (begun.state, begun.missing, begun.gallery.count) == (GenerationState.FILLING, 10, 0)
    filled(desk)
    found = desk.status(2)
    assert (found.state, found.missing, found.pending) == (GenerationState.READY, 0, 0)
    assert names(found.gallery) == names(gallery)
    for image in new_images(10):
        ours, theirs = found.gallery.get(image.image_id), gallery.get(image.image_id)
        kept = {"labels", "content_hash", "width_px", "height_px", "update_time_s", "expire_time_s"}
        assert all(getattr(ours, name) == getattr(theirs, name) for name in kept)
        features = found.gallery.features(image.image_id)
        np.testing.assert_array_equal(features.cells, other_features(picture(image)).cells)
        assert found.gallery.thumbnail(image.image_id) == picture(image)
    assert len(model.pictures) == 10
    assert store.gallery("demo") is gallery
    assert verified(store) == []


def verified(store: GalleryStore) -> list[object]:
    """Return what is wrong with the truth of any generation; no thumbnail here is a picture."""
    found = [finding for report in verify_all(store._truth, "demo", None) for finding in report.findings]
    return [finding for finding in found if finding.part != "thumbnails"]


def test_it_follows_what_is_put_relabelled_and_removed(
    gallery: Gallery, desk: GalleryGenerations, model: Model
) -> None:
    desk.add(OTHER)
    filled(desk)
    model.pictures.clear()
    other = desk.status(2).gallery
    new = new_image("new", sample_features(1, seed=5)[0], {"colour": "red"})
    changed = replace(new_images(1, seed=9)[0], thumbnail=b"another picture")
    gallery.put([new, changed])
    gallery.update("image-001", labels={"colour": "blue"}, expire_time_s=4e9)
    gallery.delete(["image-002"])
    assert desk.status(2).state is GenerationState.FILLING
    assert desk.status(2).pending == 4
    filled(desk)
    assert desk.status(2).state is GenerationState.READY
    assert names(other) == names(gallery)
    assert other.get("image-001").labels == {"colour": "blue"}
    assert other.get("image-001").expire_time_s == 4e9
    assert other.get("image-000").content_hash == changed.content_hash
    np.testing.assert_array_equal(other.features("image-000").cells, other_features(b"another picture").cells)
    assert sorted(model.pictures) == [b"another picture", b"picture of new"]


def test_what_was_computed_is_not_computed_again_after_a_restart(
    opened: Callable[[str], GalleryStore], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "COMPUTED", 3)
    with opened("a") as store:
        store._embed_of = model.of
        store.create(gallery_spec()).put(new_images(10))
        desk = store.generations_of("demo")
        desk.add(OTHER)
        looks = iter([False, False, True])
        desk.fill(lambda: next(looks))
        assert desk.status(2).gallery.count == 6
        assert desk.status(2).state is GenerationState.FILLING
    with opened("a") as store:
        store._embed_of = model.of
        filled(store.generations_of("demo"))
        assert store.generations_of("demo").status(2).state is GenerationState.READY
    assert len(model.pictures) == 10
    with opened("a") as store:
        store._embed_of = model.of
        assert not store.generations_of("demo").fill(lambda: False)


def test_what_is_not_the_picture_that_was_ingested_is_marked_until_it_is_sent_again(
    gallery: Gallery, desk: GalleryGenerations
) -> None:
    whole = b"a small image is its own thumbnail"
    small = replace(new_images(1, prefix="small")[0], thumbnail=whole, content_hash=hashlib.sha256(whole).hexdigest())
    gallery.put([small])
    desk.add(OTHER)
    filled(desk)
    other = desk.status(2).gallery
    assert not other.get("small-000").from_thumbnail
    assert other.get("image-000").from_thumbnail
    with pytest.raises(GenerationMovedError):
        other.holding("small-000", small.content_hash)
    desk.activate(2)
    assert other.holding("small-000", small.content_hash) is not None
    # Sending it again is not in vain.
    assert other.holding("image-000", new_images(1)[0].content_hash) is None
    better = replace(new_images(1)[0], features=random_batch(np.random.default_rng(3), 1, GRID.size, DIM)[0])
    assert other.put([better])[0].outcome is PutOutcome.UPDATED
    assert not other.get("image-000").from_thumbnail
    np.testing.assert_array_equal(other.features("image-000").cells, better.features.cells)
    assert other.put([better])[0].outcome is PutOutcome.UNCHANGED
    # The earlier generation has had its content all the time.
    filled(desk)
    assert desk.status(1).state is GenerationState.READY
    np.testing.assert_array_equal(gallery.features("image-000").cells, new_images(1)[0].features.cells)


def test_images_without_a_picture_that_can_be_read_are_missing(
    gallery: Gallery, desk: GalleryGenerations, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.put([replace(image, thumbnail=None) for image in new_images(2, prefix="features")])
    gallery.put([replace(new_images(1, prefix="broken")[0], thumbnail=UNREADABLE)])
    desk.add(OTHER)
    assert len(pages(desk, 2)) == 13
    filled(desk)
    found = desk.status(2)
    assert (found.state, found.missing, found.pending) == (GenerationState.INCOMPLETE, 3, 0)
    assert pages(desk, 2) == ["broken-000", "features-000", "features-001"]
    monkeypatch.setattr(generation_progress, "PAGE_LOOKS", 2)
    assert pages(desk, 2) == ["broken-000", "features-000", "features-001"]
    assert pages(desk, 1) == []


def pages(desk: GalleryGenerations, generation: int) -> list[str]:
    found, after = [], None
    while True:
        some, after = desk.missing(generation, after, 2)
        found += some
        if after is None:
            return found


def test_an_image_whose_new_content_has_no_picture_is_not_kept_with_the_old_one(
    gallery: Gallery, desk: GalleryGenerations
) -> None:
    desk.add(OTHER)
    filled(desk)
    gallery.put([replace(new_images(1, seed=9)[0], thumbnail=None)])
    filled(desk)
    assert pages(desk, 2) == ["image-000"]
    assert desk.status(2).missing == 1
    assert "image-000" not in names(desk.status(2).gallery)


def test_without_the_model_it_goes_as_far_as_nothing_has_to_be_computed(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations, model: Model
) -> None:
    desk.add(OTHER)
    filled(desk)
    model.loaded = False
    model.pictures.clear()
    gallery.update("image-001", labels={"colour": "blue"})
    filled(desk)
    assert desk.status(2).state is GenerationState.READY
    gallery.put([new_image("new", sample_features(1, seed=5)[0])])
    gallery.update("image-002", labels={"colour": "green"})
    filled(desk)
    other = desk.status(2).gallery
    assert (desk.status(2).state, desk.status(2).pending) == (GenerationState.WAITING_FOR_MODEL, 2)
    assert other.get("image-001").labels == {"colour": "blue"}
    # What is deleted does not wait.
    store.delete_images("demo", ["image-003"])
    assert names(other) == sorted({*names(gallery)} - {"new"})
    with pytest.raises(GenerationNotReadyError, match="3 changes behind"):
        desk.activate(2)
    model.loaded = True
    filled(desk)
    assert desk.status(2).state is GenerationState.READY
    assert names(other) == names(gallery)
    assert other.get("image-002").labels == {"colour": "green"}
    # Nothing that was there was walked through again.
    assert model.pictures == [b"picture of new"]


def test_a_gallery_without_pictures_needs_no_model_to_know_what_is_missing(store: GalleryStore, model: Model) -> None:
    model.loaded = False
    store._embed_of = model.of
    store.create(gallery_spec("bare", keep_thumbnails=False)).put(new_images(4))
    desk = store.generations_of("bare")
    desk.add(replace(OTHER, gallery_id="bare", keep_thumbnails=False))
    filled(desk)
    assert (desk.status(2).state, desk.status(2).missing) == (GenerationState.INCOMPLETE, 4)


def test_a_switch_is_for_whoever_comes_after_it(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations
) -> None:
    desk.add(OTHER)
    filled(desk)
    pinned = store.gallery("demo")
    desk.activate(2)
    active = store.gallery("demo")
    assert (active.spec.generation, active.spec.bundle_digest) == (2, "sha256:other")
    assert [spec.generation for spec in store.list()] == [2]
    # What has begun goes on with what it began with.
    query = SearchQuery(features=new_images(1)[0].features, top_k=10)
    assert pinned is gallery
    assert len(pinned.search(query).hits) == 10
    with pytest.raises(GenerationMovedError):
        pinned.put(new_images(1, seed=4))
    with pytest.raises(GenerationMovedError):
        pinned.delete(["image-000"])
    with pytest.raises(GenerationMovedError):
        pinned.update("image-000", labels={})
    assert store.on_active("demo", lambda found: found.update("image-000", labels={})).sequence > GENERATION_STRIDE
    desk.activate(2)


def test_sequences_go_on_beyond_a_switch(gallery: Gallery, desk: GalleryGenerations, store: GalleryStore) -> None:
    desk.add(OTHER)
    filled(desk)
    before = gallery.sequence
    desk.activate(2)
    assert store.gallery("demo").sequence > before


def test_the_way_back_has_what_happened_since(store: GalleryStore, gallery: Gallery, desk: GalleryGenerations) -> None:
    desk.add(OTHER)
    filled(desk)
    desk.activate(2)
    active = store.gallery("demo")
    features = random_batch(np.random.default_rng(3), 1, GRID.size, DIM)[0]
    new = replace(new_image("new", features), thumbnail=b"new picture")
    active.put([new])
    store.delete_images("demo", ["image-003"])
    active.update("image-004", labels={"colour": "green"})
    assert "image-003" not in names(gallery)
    filled(desk)
    desk.activate(1)
    assert store.gallery("demo") is gallery
    assert names(gallery) == sorted({*(image.image_id for image in new_images(10)), "new"} - {"image-003"})
    assert gallery.get("image-004").labels == {"colour": "green"}
    # Nothing that was there already was computed again.
    np.testing.assert_array_equal(gallery.features("image-005").cells, new_images(10)[5].features.cells)
    gallery.put(new_images(1, prefix="again"))
    filled(desk)
    assert names(active) == names(gallery)
    assert verified(store) == []


def test_no_switch_to_what_is_not_ready(gallery: Gallery, desk: GalleryGenerations, store: GalleryStore) -> None:
    desk.add(OTHER)
    with pytest.raises(GenerationNotReadyError, match="lacks 10 images") as caught:
        desk.activate(2, timeout_s=0.1)
    assert caught.value.missing == 10
    gallery.put([replace(new_images(1, prefix="features")[0], thumbnail=None)])
    filled(desk)
    with pytest.raises(GenerationNotReadyError, match="lacks 1 images"):
        desk.activate(2)
    assert store.gallery("demo") is gallery


def test_a_switch_that_leaves_images_behind_keeps_them_for_the_way_back(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore
) -> None:
    lonely = [replace(image, thumbnail=None) for image in new_images(3, prefix="features")]
    gallery.put(lonely)
    desk.add(OTHER)
    filled(desk)
    desk.activate(2, allow_missing=True)
    active = store.gallery("demo")
    assert active.count == 10
    filled(desk)
    assert desk.status(1).state is GenerationState.READY
    assert gallery.count == 13
    # One is sent again, one is deleted: it is not in the active generation, and yet it must not come back.
    features = random_batch(np.random.default_rng(3), 1, GRID.size, DIM)[0]
    active.put([replace(lonely[0], features=features)])
    assert store.delete_images("demo", ["features-001"]) == (0, 1)
    filled(desk)
    assert desk.status(1).missing == 0
    desk.activate(1)
    assert names(store.gallery("demo")) == sorted(
        [image.image_id for image in new_images(10)] + ["features-000", "features-002"]
    )
    filled(desk)
    assert pages(desk, 2) == ["features-002"]


def test_writers_wait_for_a_switch_and_none_of_their_images_is_lost(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore, model: Model
) -> None:
    desk.add(OTHER)
    filled(desk)
    stored: list[str] = []
    done = threading.Event()

    def write() -> None:
        for k in range(80):
            image = replace(new_image(f"late-{k}", sample_features(1, seed=k)[0]), thumbnail=f"late {k}".encode())

            def put(found: Gallery, image: NewImage = image) -> object:
                if found.spec.generation == 2:
                    image = replace(image, features=other_features(picture(image)))
                return found.put([image])

            store.on_active("demo", put)
            stored.append(image.image_id)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    switches = 0
    while not done.is_set():
        wanted = 2 if store.generations("demo").active.spec.generation == 1 else 1
        desk.activate(wanted, timeout_s=30)
        switches += 1
        time.sleep(0.02)
    writer.join(60)
    filled(desk)
    assert switches
    assert set(stored) <= {*names(gallery)}
    assert names(desk.status(2).gallery) == names(gallery)
    assert model.pictures


def test_what_is_removed_while_it_is_computed_does_not_stay(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore, model: Model
) -> None:
    desk.add(OTHER)

    def slow(pictures: Sequence[bytes]) -> list[Features | None]:
        store.delete_images("demo", ["image-004"])
        gallery.update("image-005", labels={"new": "label"})
        return model.embed(pictures)

    store._embed_of = lambda _: slow
    desk.fill(lambda: False)
    other = desk.status(2).gallery
    assert "image-004" not in names(other)
    store._embed_of = model.of
    filled(desk)
    assert names(other) == names(gallery)
    assert other.get("image-005").labels == {"new": "label"}


def test_a_model_that_fails_loses_nothing(gallery: Gallery, desk: GalleryGenerations, store: GalleryStore) -> None:
    desk.add(OTHER)

    def broken(_: Sequence[bytes]) -> list[Features | None]:
        raise RuntimeError("the encoder is out of order")

    store._embed_of = lambda _: broken
    with pytest.raises(RuntimeError):
        desk.fill(lambda: False)
    assert desk.status(2).state is GenerationState.FILLING
    gallery.put(new_images(1, prefix="more"))


def test_features_of_another_shape_are_refused(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore, model: Model
) -> None:
    desk.add(OTHER)
    store._embed_of = lambda _: model.embed_again
    with pytest.raises(FeaturesRejectedError, match="image 'image-000'"):
        desk.fill(lambda: False)
    assert gallery.count == 10
    assert desk.status(2).gallery.count == 0


def test_one_image_that_the_model_can_not_cope_with_is_missing_and_keeps_nobody_waiting(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore, model: Model
) -> None:
    desk.add(OTHER)

    def spoiled(pictures: Sequence[bytes]) -> list[Features | None]:
        features = model.embed(pictures)
        for k, picture in enumerate(pictures):
            if picture == b"picture of image-004":
                found = features[k]
                assert found is not None
                features[k] = replace(found, embedding=np.full(DIM, np.nan, np.float32))
        return features

    store._embed_of = lambda _: spoiled
    filled(desk)
    assert (desk.status(2).state, desk.status(2).missing) == (GenerationState.INCOMPLETE, 1)
    assert pages(desk, 2) == ["image-004"]
    assert len(model.pictures) == gallery.count


def test_what_was_read_before_somebody_followed_further_is_not_given_to_a_generation(
    gallery: Gallery, desk: GalleryGenerations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with several servers: one computes from what it read, another follows the next content meanwhile."""
    desk.add(OTHER)
    filled(desk)
    follower = desk._follower(desk._store.generations("demo"))
    other = desk.status(2).gallery
    supplied = replace(new_images(1)[0], features=other_features(b"whatever"))
    take_over = type(other).take_over

    def late(self: Gallery, work: Any) -> Any:
        monkeypatch.undo()
        gallery.put([replace(new_images(1, seed=9)[0], thumbnail=b"another picture")])
        second = following.Follower(gallery, other)
        while second.step(Model().embed):
            pass
        return take_over(self, work)

    monkeypatch.setattr(type(other), "take_over", late)
    (result,) = follower.supply([supplied])
    assert result.outcome is PutOutcome.MISSING
    assert other.get("image-000").content_hash == new_images(1, seed=9)[0].content_hash
    np.testing.assert_array_equal(other.features("image-000").cells, other_features(b"another picture").cells)


def test_all_who_ask_share_one_follower(desk: GalleryGenerations, store: GalleryStore) -> None:
    desk.add(OTHER)
    there = store.generations("demo")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(desk._follower(there))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    filled(desk)
    desk.activate(2)
    filled(desk)
    desk.activate(1)
    found.append(desk._follower(store.generations("demo")))
    assert len(set(map(id, found))) == 1


def test_what_was_begun_anew_and_cut_off_is_begun_anew_again(
    gallery: Gallery, desk: GalleryGenerations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted images must not stay because somebody died before they were found to be."""
    desk.add(OTHER)
    filled(desk)
    gallery.delete(["image-001"])
    gallery.put(new_images(3, prefix="more"))
    gallery._truth.trim_log(gallery.stored, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(gallery), "erase", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            desk.fill(lambda: False)
    filled(desk)
    assert names(desk.status(2).gallery) == names(gallery)
    desk.activate(2)


def test_a_deletion_that_meets_a_switch_reaches_both_generations(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.put([replace(new_images(1, prefix="features")[0], thumbnail=None)])
    desk.add(OTHER)
    filled(desk)
    desk.activate(2, allow_missing=True)
    filled(desk)
    erase = type(gallery).erase

    def overtaken(self: Gallery, image_ids: Any) -> None:
        monkeypatch.undo()
        filled(desk)
        desk.activate(1)
        erase(self, image_ids)

    monkeypatch.setattr(type(gallery), "erase", overtaken)
    store.delete_images("demo", ["features-000", "image-001"])
    assert store.gallery("demo") is gallery
    assert "features-000" not in names(gallery)
    assert "image-001" not in names(gallery)


def test_a_deletion_that_meets_a_drop_is_done(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.add(OTHER)
    filled(desk)
    erase = type(gallery).erase

    def overtaken(self: Gallery, image_ids: Any) -> None:
        monkeypatch.undo()
        desk.drop(2)
        erase(self, image_ids)

    monkeypatch.setattr(type(gallery), "erase", overtaken)
    assert store.delete_images("demo", ["image-001"]) == (1, 0)
    assert "image-001" not in names(gallery)


def test_whoever_still_holds_a_dropped_generation_goes_on_with_the_active_one(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations
) -> None:
    desk.add(OTHER)
    filled(desk)
    truth = store._truth
    other = store.generations("demo").other
    assert other is not None
    # As another server does it, of which this one has not heard.
    assert truth.switch(gallery.stored, gallery.sequence)
    truth.drop_generation(gallery.stored)
    with pytest.raises(GenerationDroppedError):
        gallery.get("image-001")
    record = store.on_active("demo", lambda found: found.update("image-001", labels={"by": "somebody"}))
    assert record.labels == {"by": "somebody"}
    assert store.gallery("demo").stored == other


def test_sequences_of_generations_that_are_gone_are_reached(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations
) -> None:
    desk.add(OTHER)
    filled(desk)
    desk.activate(2)
    image = replace(new_images(1, seed=3, prefix="late")[0], features=other_features(b"x"))
    sequence = store.gallery("demo").put([image])[0].sequence
    filled(desk)
    desk.activate(1)
    desk.drop(2)
    assert desk.seen(0, sequence, 0.0) is gallery
    with pytest.raises(SequenceNotReachedError):
        desk.seen(0, sequence + GENERATION_STRIDE, 0.0)


def test_writers_do_not_wait_for_what_is_being_filled(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore, model: Model
) -> None:
    """A switch waits for whoever fills before it makes anybody wait."""
    desk.add(OTHER)
    filled(desk)
    gate, entered = threading.Event(), threading.Event()

    def slow(pictures: Sequence[bytes]) -> list[Features | None]:
        entered.set()
        assert gate.wait(60)
        return model.embed(pictures)

    store._embed_of = lambda _: slow
    gallery.put(new_images(2, prefix="more"))
    filling = threading.Thread(target=lambda: desk.fill(lambda: False))
    filling.start()
    assert entered.wait(60)
    switching = threading.Thread(target=lambda: desk.activate(2, timeout_s=60))
    switching.start()
    follower = desk._follower(store.generations("demo"))
    wait_until(lambda: follower.is_waited_for)
    gallery.put(new_images(1, prefix="meanwhile"))
    gate.set()
    for thread in (filling, switching):
        thread.join(60)
        assert not thread.is_alive()
    assert store.gallery("demo").spec.generation == 2
    assert "meanwhile-000" in names(store.gallery("demo"))


def test_two_generations_are_the_most_and_the_active_one_stays(
    store: GalleryStore, gallery: Gallery, desk: GalleryGenerations
) -> None:
    desk.add(OTHER)
    filled(desk)
    with pytest.raises(GenerationExistsError):
        desk.add(OTHER)
    with pytest.raises(GenerationActiveError):
        desk.drop(1)
    with pytest.raises(GenerationNotFoundError):
        desk.drop(3)
    other = desk.status(2).gallery
    desk.drop(2)
    with pytest.raises(GenerationNotFoundError):
        store.gallery("demo", 2)
    with pytest.raises(GenerationNotFoundError):
        desk.status(2)
    assert not store._caches_of(other.stored).exists()
    assert not desk.fill(lambda: False)
    assert desk.add(OTHER).spec.generation == 3
    assert gallery.count == 10


def test_a_deleted_gallery_leaves_no_generation(store: GalleryStore, desk: GalleryGenerations) -> None:
    desk.add(OTHER)
    filled(desk)
    folders = [store._caches_of(stored) for stored in store.generations("demo")]
    for each in (1, 2):
        store.gallery("demo", each).save()
    assert all(folder.exists() for folder in folders)
    store.delete("demo")
    assert not any(folder.exists() for folder in folders)
    assert store._truth.others() == []


def test_a_generation_is_scored_as_the_gallery_until_it_is_told_otherwise(
    gallery: Gallery, desk: GalleryGenerations
) -> None:
    gallery.set_match_defaults(MatchDefaults(settings=MatchSettings(global_weight=0.25), depth=7))
    other = desk.add(OTHER).gallery
    assert other.match_defaults == gallery.match_defaults
    other.set_match_defaults(MatchDefaults(depth=3))
    assert gallery.match_defaults.depth == 7


def test_both_generations_are_there_after_a_restart(opened: Callable[[str], GalleryStore], model: Model) -> None:
    with opened("a") as store:
        store._embed_of = model.of
        store.create(gallery_spec()).put(new_images(5))
        desk = store.generations_of("demo")
        desk.add(OTHER)
        filled(desk)
        desk.activate(2)
    with opened("a") as store:
        assert store.gallery("demo").spec.generation == 2
        assert store.gallery("demo", 2) is store.gallery("demo")
        assert store.gallery("demo", 1).count == store.gallery("demo").count == 5
        assert {folder.name for folder in (store._path / "caches").iterdir()} == {
            stored.uuid for stored in store.generations("demo")
        }
        assert verified(store) == []


@pytest.mark.parametrize("opened", ["lmdb"], indirect=True)
def test_caches_of_another_generation_are_not_believed(
    opened: Callable[[str], GalleryStore], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    same_shape = replace(gallery_spec(), model="other", bundle_digest="sha256:again")
    with opened("a") as store:
        store._embed_of = model.of
        store.create(gallery_spec()).put(new_images(5))
        desk = store.generations_of("demo")
        desk.add(same_shape)
        filled(desk)
        folders = [store._caches_of(stored) for stored in store.generations("demo")]
        expected = [store.gallery("demo", number).features("image-001").cells for number in (1, 2)]
    assert (expected[0] != expected[1]).any()
    away = folders[0].with_name("away")
    folders[0].rename(away)
    folders[1].rename(folders[0])
    away.rename(folders[1])
    with opened("a") as store:
        for number in (1, 2):
            np.testing.assert_array_equal(
                store.gallery("demo", number).features("image-001").cells, expected[number - 1]
            )
    assert caplog.text.count("slots.cache belongs to something else") == 2


def test_a_generation_whose_log_was_cut_off_begins_anew_without_what_was_removed(
    gallery: Gallery, desk: GalleryGenerations, model: Model
) -> None:
    desk.add(OTHER)
    filled(desk)
    model.pictures.clear()
    gallery.delete(["image-001"])
    gallery.put(new_images(3, prefix="more"))
    gallery._truth.trim_log(gallery.stored, 1)
    filled(desk)
    assert names(desk.status(2).gallery) == names(gallery)
    assert len(model.pictures) == 3


@pytest.mark.parametrize("opened", ["lmdb"], indirect=True)
def test_what_works_on_a_store_itself_sees_both_and_keeps_what_is_not_followed(
    opened: Callable[[str], GalleryStore], model: Model, tmp_path: Path
) -> None:
    with opened("a") as store:
        store._embed_of = model.of
        gallery = store.create(gallery_spec())
        gallery.put(new_images(5))
        desk = store.generations_of("demo")
        desk.add(OTHER)
        filled(desk)
        gallery.put(new_images(3, prefix="more"))
        gallery.delete(["image-001"])
    place = StorePlace.parse(str(tmp_path / "store"))
    found = store_stats(place, "demo").galleries
    assert [(each.generation, each.active, each.images) for each in found] == [(1, True, 7), (2, False, 5)]
    done = compact(place, keep_changes=1)
    # Of 9 changes of the first, 4 are to be followed yet; of 5 of the second, nobody needs more than one.
    assert done.changes == 5 + 4
    assert done.dead_slots == 1
    with opened("a") as store:
        store._embed_of = model.of
        filled(store.generations_of("demo"))
        assert names(store.gallery("demo", 2)) == names(store.gallery("demo"))
        assert verified(store) == []
        for active in (1, 2):
            store.generations_of("demo").activate(active)
            back_up(store._truth, store.gallery("demo").stored, tmp_path / "backup")
            copy = restore(tmp_path / "backup", store._truth, gallery_id=f"copy-{active}")
            assert (copy.spec.generation, copy.lineage) == (1, copy.uuid)
            assert copy.spec.bundle_digest == store.gallery("demo").spec.bundle_digest
            assert store.gallery(f"copy-{active}").count == 7
    # Nothing was computed twice.
    assert len(model.pictures) == 8


def test_one_that_has_more_than_the_active_one_does_not_guess_what_was_removed(
    gallery: Gallery, desk: GalleryGenerations, store: GalleryStore
) -> None:
    gallery.put([replace(new_images(1, prefix="features")[0], thumbnail=None)])
    desk.add(OTHER)
    filled(desk)
    desk.activate(2, allow_missing=True)
    active = store.gallery("demo")
    for name in ("image-001", "image-002"):
        active.delete([name])
    store._truth.trim_log(active.stored, 1)
    with pytest.raises(StoreUnavailableError, match="generation 1 of gallery demo can't follow any more"):
        desk.fill(lambda: False)
    with pytest.raises(StoreUnavailableError):
        desk.activate(1)


def test_the_store_fills_in_the_background(store: GalleryStore, gallery: Gallery, model: Model) -> None:
    desk = store.generations_of("demo")
    store.fill(model.of)
    desk.add(OTHER)
    deadline = time.monotonic() + 30
    while desk.status(2).state is not GenerationState.READY and time.monotonic() < deadline:
        time.sleep(0.02)
    assert names(desk.status(2).gallery) == names(gallery)
    gallery.put(new_images(2, prefix="more"))
    desk.activate(2, timeout_s=30)
    assert names(store.gallery("demo")) == names(gallery)


@pytest.mark.parametrize("opened", ["redis"], indirect=True)
def test_another_server_notices_a_switch_and_who_fills_is_one_of_them(
    opened: Callable[[str], GalleryStore], store: GalleryStore, gallery: Gallery, desk: GalleryGenerations, model: Model
) -> None:
    with opened("b") as second:
        second._embed_of = model.of
        there = second.gallery("demo")
        desk.add(OTHER)
        filled(desk)
        gallery.put(new_images(1, prefix="only-one-computes"))
        assert not second.generations_of("demo").fill(lambda: False)
        # One that has not the model keeps nobody who has it from computing, and follows what needs none.
        model.loaded = False
        assert not second.generations_of("demo").fill(lambda: False)
        model.loaded = True
        filled(desk)
        assert len(model.pictures) == 11
        gallery.update("image-002", labels={"by": "first"})
        model.loaded = False
        assert second.generations_of("demo").fill(lambda: False)
        model.loaded = True
        assert second.gallery("demo", 2).get("image-002").labels == {"by": "first"}
        second.generations_of("demo").activate(2, timeout_s=10)
        with pytest.raises(GenerationMovedError):
            gallery.put(new_images(1, prefix="more"))
        wait_until(lambda: store.gallery("demo").spec.generation == 2)
        # Those who did not hear of it yet write to the right one all the same.
        assert second.on_active("demo", lambda found: found.update("image-001", labels={"by": "second"}))
        record = store.on_active("demo", lambda found: found.get("image-001"))
        assert record.labels == {"by": "second"}
        assert there.spec.generation == 1


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_generation_agrees_with_itself_in_a_comparison(gallery: Gallery) -> None:
    found = compare(gallery, gallery, ComparisonQuery(queries=6, top_k=4, label="parity"))
    assert (found.queries, found.top_k, found.labelled) == (6, 4, 6)
    assert found.overlap == found.same_first == 1.0
    assert found.score_shift == ScoreShift(pairs=24)
    assert found.active_precision == found.precision is not None
    assert found.disagreements == []


def test_a_comparison_says_how_far_answers_and_scores_differ(gallery: Gallery, desk: GalleryGenerations) -> None:
    desk.add(OTHER)
    filled(desk)
    query = ComparisonQuery(queries=10, top_k=3, label="parity")
    found = desk.compare(2, query)
    other = desk.status(2).gallery
    overlaps, shifts, right = [], [], [0, 0]
    for name in names(gallery):
        answers = [brute(each, name, 3) for each in (gallery, other)]
        overlaps.append(len(answers[0].keys() & answers[1].keys()) / 3)
        shifts += [answers[1][hit] - answers[0][hit] for hit in answers[0].keys() & answers[1].keys()]
        parity = gallery.get(name).labels["parity"]
        for k in (0, 1):
            right[k] += gallery.get(next(iter(answers[k]))).labels["parity"] == parity
    assert found.queries == found.labelled == 10
    assert found.overlap == pytest.approx(np.mean(overlaps))
    assert found.score_shift.pairs == len(shifts)
    assert found.score_shift.mean == pytest.approx(np.mean(shifts))
    assert found.score_shift.median == pytest.approx(np.median(shifts))
    assert [found.active_precision, found.precision] == [count / 10 for count in right]
    assert (found.active_generation, found.generation) == (1, 2)
    worst = [overlap for _, overlap in found.disagreements]
    assert worst == sorted(worst)
    assert len(worst) == sum(overlap < 1 for overlap in overlaps)
    assert desk.compare(2, query) == found
    with pytest.raises(GenerationActiveError):
        desk.compare(1, query)


def brute(gallery: Gallery, image_id: str, top_k: int) -> dict[str, float]:
    """Return the best other images with their scores, best first."""
    hits = gallery.search(SearchQuery(features=gallery.features(image_id), top_k=top_k + 1)).hits
    kept = [(hit.record.image_id, hit.score) for hit in hits if hit.record.image_id != image_id]
    return dict(kept[:top_k])


def test_a_comparison_ends_when_time_is_up(gallery: Gallery) -> None:
    late = ComparisonQuery(queries=10, deadline=time.monotonic() - 1)
    assert compare(gallery, gallery, late).queries == 0
    soon = ComparisonQuery(queries=10, deadline=time.monotonic() + 60)
    assert compare(gallery, gallery, soon).queries == 10


def test_a_comparison_asks_with_images_that_both_have(gallery: Gallery, desk: GalleryGenerations) -> None:
    desk.add(OTHER)
    filled(desk)
    gallery.put([replace(image, thumbnail=None) for image in new_images(10, prefix="features")])
    filled(desk)
    found = desk.compare(2, ComparisonQuery(queries=100, top_k=3, label="no such label"))
    assert (found.queries, found.labelled, found.precision) == (10, 0, None)
    # Another seed asks with others.
    few = [desk.compare(2, ComparisonQuery(queries=1, seed=seed)).disagreements[0][0] for seed in range(10)]
    assert len(set(few)) > 1
