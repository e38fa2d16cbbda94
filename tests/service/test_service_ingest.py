"""IngestImages through a real channel."""

from __future__ import annotations

import hashlib
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from service_harness import (
    LIMIT_S,
    Api,
    RunningServer,
    by_name,
    encoded,
    eventually,
    feature_item,
    gated,
    image_name,
    item,
    picture,
    png,
    random_features,
    read_status,
    refusal_of,
)

from matchflow.v1 import gallery_pb2, ingest_pb2, search_pb2, types_pb2
from matchflow_index import Gallery, ImageRejectedError, KnownImage, StoreUnavailableError
from matchflow_service import ingest_stream
from matchflow_service.images import ImageReader
from matchflow_service.ingest_stream import MAX_ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matchflow_bundle import Bundle
    from matchflow_index import NewImage, PutResult

CREATED, UPDATED, UNCHANGED = (
    ingest_pb2.INGEST_OUTCOME_CREATED,
    ingest_pb2.INGEST_OUTCOME_UPDATED,
    ingest_pb2.INGEST_OUTCOME_UNCHANGED,
)


def outcomes(answers: list[ingest_pb2.IngestImagesResponse]) -> list[int]:
    return [answer.outcome for answer in answers]


def image_of(api: Api, gallery: str, image: str) -> gallery_pb2.Image:
    return api.galleries.GetImage(gallery_pb2.GetImageRequest(name=image_name(gallery, image)))


def test_every_item_is_answered_with_its_row_and_sequence(api: Api, gallery: str) -> None:
    answers = api.put(item(gallery, f"image-{i:03}", png(i), item_id=i) for i in range(100))
    assert [answer.item_id for answer in answers] == list(range(100))
    assert set(outcomes(answers)) == {CREATED}
    assert len({answer.row_id for answer in answers}) == 100
    assert max(answer.sequence for answer in answers) == 100
    assert all(answer.name == image_name(gallery, f"image-{answer.item_id:03}") for answer in answers)


def test_an_acknowledged_image_is_found_at_once(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"one": png(1)})
    assert api.find(gallery, search_pb2.Query(image_bytes=png(1))).hits[0].image.name == image_name(gallery, "one")


def test_an_unchanged_image_is_not_embedded_again(api: Api, server: RunningServer, gallery: str) -> None:
    api.put_images(gallery, {"one": png(1)}, kind="x")
    row_id = image_of(api, gallery, "one").row_id
    embedded = server.queue.images_run
    (answer,) = api.put([item(gallery, "one", png(1), kind="x")])
    assert (answer.outcome, answer.row_id, answer.sequence) == (UNCHANGED, row_id, 1)
    assert server.queue.images_run == embedded


def test_other_labels_or_other_content_update_an_image(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"one": png(1)}, kind="x")
    first = image_of(api, gallery, "one")
    assert outcomes(api.put([item(gallery, "one", png(1), kind="y")])) == [UPDATED]
    relabelled = image_of(api, gallery, "one")
    assert (relabelled.row_id, dict(relabelled.labels.values)) == (first.row_id, {"kind": "y"})
    assert outcomes(api.put([item(gallery, "one", png(2), kind="y")])) == [UPDATED]
    replaced = image_of(api, gallery, "one")
    assert replaced.row_id > first.row_id
    assert replaced.content_hash == hashlib.sha256(png(2)).hexdigest()


def conditional(gallery: str, data: bytes, **fields: Any) -> ingest_pb2.IngestImagesRequest:
    return ingest_pb2.IngestImagesRequest(name=image_name(gallery, "one"), image_bytes=data, **fields)


def test_an_item_with_an_etag_is_put_only_where_that_is_still_the_images(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"one": png(1)})
    seen = image_of(api, gallery, "one")
    others = [item(gallery, f"other-{i}", png(10 + i), item_id=i) for i in range(2, 9)]
    current, *rest = api.put([conditional(gallery, png(2), etag=seen.etag, item_id=1), *others])
    assert current.outcome == UPDATED
    stale, *rest = api.put([conditional(gallery, png(3), etag=seen.etag, item_id=1), *others])
    refusal = read_status(stale.status)
    assert (refusal.code, refusal.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert refusal.metadata["actual_etag"] == image_of(api, gallery, "one").etag != seen.etag
    assert set(outcomes(rest)) == {UNCHANGED}
    (again,) = api.put([conditional(gallery, png(2), etag=seen.etag)])
    assert again.outcome == UNCHANGED, "an item that was sent again after its answer was lost"


def test_an_item_that_must_be_new_never_replaces_another(api: Api, gallery: str) -> None:
    assert outcomes(api.put([conditional(gallery, png(1), must_be_new=True)])) == [CREATED]
    assert outcomes(api.put([conditional(gallery, png(1), must_be_new=True)])) == [UNCHANGED]
    (other,) = api.put([conditional(gallery, png(2), must_be_new=True)])
    assert read_status(other.status).reason == "ETAG_MISMATCH"
    (both,) = api.put([conditional(gallery, png(1), must_be_new=True, etag='"1"')])
    assert read_status(both.status).violations == ["must_be_new"]


def test_an_item_says_when_its_image_ends_and_sent_without_that_it_stays(
    api: Api, server: RunningServer, gallery: str
) -> None:
    ends = Timestamp(seconds=int(time.time()) + 3600, nanos=123_456_000)
    assert outcomes(api.put([conditional(gallery, png(1), expire_time=ends)])) == [CREATED]
    embedded = server.queue.images_run
    first = image_of(api, gallery, "one")
    assert first.expire_time == ends
    assert outcomes(api.put([conditional(gallery, png(1), expire_time=ends)])) == [UNCHANGED]
    assert outcomes(api.put([conditional(gallery, png(1))])) == [UPDATED]
    kept = image_of(api, gallery, "one")
    assert not kept.HasField("expire_time")
    assert (kept.row_id, server.queue.images_run) == (first.row_id, embedded)
    (over,) = api.put([conditional(gallery, png(1), expire_time=Timestamp(seconds=1))])
    assert read_status(over.status).violations == ["expire_time"]


def test_other_labels_alone_decode_and_embed_nothing(
    api: Api, server: RunningServer, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {f"image-{i}": png(i) for i in range(20)}
    api.put_images(gallery, pictures, kind="x")
    row_ids = {image: image_of(api, gallery, image).row_id for image in pictures}
    batches = server.queue.batches_run

    def refuse_to_decode(*_: object, **__: object) -> NoReturn:
        raise AssertionError("decoded again")

    monkeypatch.setattr(ImageReader, "decode", refuse_to_decode)
    answers = api.put([item(gallery, image, data, kind="y") for image, data in pictures.items()])
    assert outcomes(answers) == [UPDATED] * 20
    assert server.queue.batches_run == batches
    for image, row_id in row_ids.items():
        relabelled = image_of(api, gallery, image)
        assert (relabelled.row_id, dict(relabelled.labels.values)) == (row_id, {"kind": "y"})


def test_other_labels_and_other_content_of_one_image_are_applied_in_the_order_sent(
    api: Api, server: RunningServer, gallery: str
) -> None:
    embedded = server.queue.images_run
    versions = [(1, "a"), (1, "b"), (1, "b"), (2, "b"), (2, "c"), (1, "c"), (1, "d")]
    answers = api.put([item(gallery, "one", png(n), item_id=i, kind=kind) for i, (n, kind) in enumerate(versions)])
    assert outcomes(answers) == [CREATED, UPDATED, UNCHANGED, UPDATED, UPDATED, UPDATED, UPDATED]
    assert [answer.sequence for answer in answers] == [1, 2, 2, 3, 4, 5, 6]
    assert server.queue.images_run == embedded + 3
    last = image_of(api, gallery, "one")
    assert (last.content_hash, dict(last.labels.values)) == (hashlib.sha256(png(1)).hexdigest(), {"kind": "d"})


@pytest.mark.parametrize("replaced", [False, True])
def test_an_image_whose_content_goes_while_it_is_relabelled_is_embedded_after_all(
    api: Api, server: RunningServer, gallery: str, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    api.put_images(gallery, {"one": png(1)}, kind="x")
    embedded = server.queue.images_run
    put = Gallery.put

    def overtaken(self: Gallery, images: list[NewImage | KnownImage]) -> list[PutResult]:
        monkeypatch.undo()
        assert isinstance(images[0], KnownImage)
        if replaced:
            api.put_images(gallery, {"one": png(2)}, kind="z")
        else:
            api.galleries.DeleteImages(
                gallery_pb2.DeleteImagesRequest(parent=f"galleries/{gallery}", names=[image_name(gallery, "one")])
            )
        return put(self, images)

    monkeypatch.setattr(Gallery, "put", overtaken)
    (answer,) = api.put([item(gallery, "one", png(1), kind="y")])
    assert answer.outcome == (UPDATED if replaced else CREATED)
    assert server.queue.images_run == embedded + 1 + replaced
    assert dict(image_of(api, gallery, "one").labels.values) == {"kind": "y"}


def test_items_of_one_image_are_applied_in_the_order_sent(api: Api, gallery: str) -> None:
    versions = [png(i % 3) for i in range(40)]
    answers = api.put(
        [item(gallery, "one", data, item_id=i) for i, data in enumerate(versions)]
        + [item(gallery, f"other-{i}", png(i), item_id=100 + i) for i in range(20)]
    )
    mine = outcomes(answers)[:40]
    assert mine == [CREATED] + [UPDATED] * 39
    assert [answer.sequence for answer in answers[:40]] == sorted(answer.sequence for answer in answers[:40])
    assert image_of(api, gallery, "one").content_hash == hashlib.sha256(versions[-1]).hexdigest()


def test_a_bad_item_gets_its_own_status_and_stops_nothing(api: Api, gallery: str) -> None:
    good = [item(gallery, f"good-{i}", png(i), item_id=i) for i in range(5)]
    bad: list[tuple[ingest_pb2.IngestImagesRequest, str, list[str]]] = [
        (item(gallery, "broken", png(1)[:200], item_id=10), "IMAGE_UNREADABLE", []),
        (item(gallery, "text", b"this is no image", item_id=11), "IMAGE_UNREADABLE", []),
        (item(gallery, "empty", b"", item_id=12), "IMAGE_UNREADABLE", []),
        (item(gallery, "", png(1), item_id=13), "INVALID_FIELD", ["name"]),
        (item("elsewhere", "x", png(1), item_id=14), "INVALID_FIELD", ["name"]),
        (item(gallery, "a" * 257, png(1), item_id=15), "INVALID_FIELD", ["name"]),
        (item(gallery, "tab\t", png(1), item_id=16), "INVALID_FIELD", ["name"]),
        (ingest_pb2.IngestImagesRequest(name=image_name(gallery, "nil"), item_id=17), "INVALID_FIELD", ["source"]),
        (item(gallery, "l", png(1), item_id=18, Bad="x"), "INVALID_FIELD", ["labels.values"]),
        (item(gallery, "l", png(1), item_id=19, long="x" * 257), "INVALID_FIELD", ["labels.values[long]"]),
        (
            item(gallery, "l", png(1), item_id=20, **{f"n{i}": "" for i in range(65)}),
            "INVALID_FIELD",
            ["labels"],
        ),
    ]
    answers = api.put([*good[:2], *(request for request, _, _ in bad), *good[2:]])
    assert outcomes(answers) == [CREATED] * 5 + [ingest_pb2.INGEST_OUTCOME_UNSPECIFIED] * len(bad)
    for answer, (request, reason, violations) in zip(answers[5:], bad, strict=True):
        refusal = read_status(answer.status)
        assert (refusal.code, refusal.reason, refusal.violations) == ("INVALID_ARGUMENT", reason, violations)
        assert (answer.name, answer.item_id) == (request.name, request.item_id)
    assert api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name=f"galleries/{gallery}")).image_count == 5


def test_bad_names_before_the_first_good_one_are_answered(api: Api, gallery: str) -> None:
    answers = api.put([item(gallery, "", png(1), item_id=1), item(gallery, "one", png(1), item_id=2)])
    assert outcomes(answers) == [ingest_pb2.INGEST_OUTCOME_UNSPECIFIED, CREATED]
    assert [answer.status.code for answer in api.put([item(gallery, "", png(1))])] == [3]


def test_an_empty_stream_is_answered_by_an_empty_stream(api: Api) -> None:
    assert api.put([]) == []


def test_the_stream_fails_for_a_gallery_that_is_not_there(api: Api) -> None:
    refusal = refusal_of(lambda: api.put([item("absent", "one", png(1))]))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")


def test_the_stream_fails_when_its_gallery_is_deleted_under_it(api: Api, gallery: str) -> None:
    first_answered = threading.Event()

    def items() -> Iterator[ingest_pb2.IngestImagesRequest]:
        yield item(gallery, "one", png(1))
        assert first_answered.wait(LIMIT_S)
        api.galleries.DeleteGallery(gallery_pb2.DeleteGalleryRequest(name=f"galleries/{gallery}"))
        yield item(gallery, "two", png(2))

    def run() -> None:
        for _ in api.ingest.IngestImages(items(), timeout=LIMIT_S):
            first_answered.set()

    refusal = refusal_of(run)
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")


def test_ready_made_features_are_stored_as_they_are(api: Api, gallery: str, sample_bundle: Bundle) -> None:
    batch = random_features(3)
    requests = [feature_item(gallery, f"f{i}", batch, i, sample_bundle.digest) for i in range(3)]
    assert outcomes(api.put(requests)) == [CREATED] * 3
    assert outcomes(api.put(requests)) == [UNCHANGED] * 3
    image = image_of(api, gallery, "f1")
    assert (image.width_px, image.height_px) == (0, 0)
    reply = api.find(gallery, search_pb2.Query(features=requests[1].features))
    assert reply.hits[0].image.name == image_name(gallery, "f1")


def spoilt(change: Callable[[types_pb2.Features], None], digest: str) -> types_pb2.Features:
    features = types_pb2.Features()
    features.CopyFrom(feature_item("g", "i", random_features(1), 0, digest).features)
    change(features)
    return features


def _other_digest(features: types_pb2.Features) -> None:
    features.bundle_digest = "feed"


def _short_cells(features: types_pb2.Features) -> None:
    features.cells = features.cells[:-1]


def _not_finite(features: types_pb2.Features) -> None:
    features.embedding[0] = float("nan")


def _not_of_unit_length(features: types_pb2.Features) -> None:
    features.embedding[0] += 1


def _negative_scale(features: types_pb2.Features) -> None:
    features.cell_scales[0] = -0.1


def _huge_scale(features: types_pb2.Features) -> None:
    features.cell_scales[0] = 1e30


SPOILT = [
    (_other_digest, "FAILED_PRECONDITION", "BUNDLE_MISMATCH"),
    (_short_cells, "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (_not_finite, "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (_not_of_unit_length, "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (_negative_scale, "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (_huge_scale, "INVALID_ARGUMENT", "FEATURES_INVALID"),
]


@pytest.mark.parametrize("case", SPOILT, ids=lambda case: case[0].__name__)
def test_features_that_do_not_fit_are_refused_in_ingest_and_search(
    api: Api,
    gallery: str,
    sample_bundle: Bundle,
    case: tuple[Callable[[types_pb2.Features], None], str, str],
) -> None:
    change, code, reason = case
    features = spoilt(change, sample_bundle.digest)
    request = ingest_pb2.IngestImagesRequest(name=image_name(gallery, "x"), features=features)
    (answer,) = api.put([request])
    refusals = [read_status(answer.status), refusal_of(lambda: api.find(gallery, search_pb2.Query(features=features)))]
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == (code, reason)
    if reason == "BUNDLE_MISMATCH":
        for refusal in refusals:
            assert refusal.metadata == {"expected_digest": sample_bundle.digest, "actual_digest": "feed"}


def test_a_gallery_without_thumbnails_keeps_none(api: Api) -> None:
    api.create("bare", without_thumbnails=True)
    api.create("pictured")
    for gallery in ("bare", "pictured"):
        api.put_images(gallery, {"one": encoded(picture(1, width=700, height=350), "JPEG")})
    refusal = refusal_of(
        lambda: api.search.RenderMatch(
            search_pb2.RenderMatchRequest(query=search_pb2.Query(image_bytes=png(1)), image=image_name("bare", "one"))
        )
    )
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "THUMBNAIL_MISSING")
    assert refusal.metadata == {"image": image_name("bare", "one")}


def test_a_put_that_is_refused_as_a_whole_is_repeated_item_by_item(
    api: Api, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Gallery.put

    def picky(self: Gallery, images: Any) -> Any:
        if any(image.image_id == "poison" for image in images):
            raise ImageRejectedError("poison is not taken")
        return put(self, images)

    monkeypatch.setattr(Gallery, "put", picky)
    names = ["a", "b", "poison", "c", "d"]
    answers = api.put(item(gallery, name, png(i), item_id=i) for i, name in enumerate(names))
    assert [answer.status.code for answer in answers] == [0, 0, 3, 0, 0]
    assert read_status(answers[2].status).reason == "INVALID_FIELD"


def test_a_disk_that_is_full_is_said_item_by_item_and_the_stream_goes_on(
    api: Api, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Gallery, __: Any) -> Any:
        raise StoreUnavailableError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "put", full)
        answers = api.put(item(gallery, f"{i}", png(i), item_id=i) for i in range(3))
    assert {(read_status(a.status).code, read_status(a.status).reason) for a in answers} == {
        ("UNAVAILABLE", "STORE_UNAVAILABLE")
    }
    assert outcomes(api.put([item(gallery, "0", png(0))])) == [CREATED]


def test_a_fault_of_the_model_is_internal_and_tells_nothing_of_its_text(
    api: Api, server: RunningServer, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("secret of the runtime")

    with monkeypatch.context() as patch:
        patch.setattr(server.queue, "_encode", broken)
        (answer,) = api.put([item(gallery, "one", png(1))])
        unary = refusal_of(lambda: api.find(gallery, search_pb2.Query(image_bytes=png(1))))
    for refusal in (read_status(answer.status), unary):
        assert (refusal.code, refusal.reason) == ("INTERNAL", "INTERNAL")
        assert "secret" not in refusal.message
        assert len(refusal.metadata["request_id"]) == 32
    assert outcomes(api.put([item(gallery, "one", png(1))])) == [CREATED]


def test_images_that_memory_does_not_hold_are_said_item_by_item_and_the_stream_goes_on(
    api: Api, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: object) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ingest_stream, "np", SimpleNamespace(stack=exhausted))
        answers = api.put(item(gallery, f"{i}", png(i), item_id=i) for i in range(3))
    assert {read_status(answer.status).code for answer in answers} == {"INTERNAL"}
    assert outcomes(api.put([item(gallery, "0", png(0))])) == [CREATED]


def test_the_stream_pushes_back_while_the_encoder_is_busy(api: Api, server: RunningServer, gallery: str) -> None:
    count, sent = 3_000, []

    def items() -> Iterator[ingest_pb2.IngestImagesRequest]:
        data = [png(i) for i in range(8)]
        for i in range(count):
            sent.append(i)
            yield item(gallery, f"{i % 700}-{i}", data[i % 8], item_id=i)

    with gated(server) as gate:
        answers = api.ingest.IngestImages(items(), timeout=LIMIT_S)
        assert gate.entered.wait(LIMIT_S)
        eventually(lambda: len(sent) >= MAX_ITEMS)
        assert server.queue.queued <= server.settings.encoder_queue_size
        assert len(sent) < count
        answers.cancel()
    eventually(lambda: server.server.calls.count == 0)


def test_a_client_that_goes_away_takes_its_queued_images_along(api: Api, server: RunningServer, gallery: str) -> None:
    with gated(server) as gate:
        answers = api.ingest.IngestImages(
            iter([item(gallery, f"{i}", png(i), item_id=i) for i in range(40)]), timeout=LIMIT_S
        )
        assert gate.entered.wait(LIMIT_S)
        answers.cancel()
        eventually(lambda: server.queue.queued == 0 and server.server.calls.count == 0)
    assert api.find(gallery, search_pb2.Query(image_bytes=png(1))).rerank_status.depth_done <= 40


def test_an_image_beyond_the_byte_limit_is_refused_before_it_is_decoded(start_server: Any) -> None:
    _, api = start_server(max_image_bytes=1000)
    api.create("small")
    (answer,) = api.put([item("small", "one", png(1) + b"x" * 2000)])
    refusal = read_status(answer.status)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
    assert "1000" in refusal.message.replace(",", "")


def test_a_message_beyond_the_limit_ends_the_stream_and_not_the_server(start_server: Any) -> None:
    _, api = start_server(max_image_bytes=1_000_000, max_message_bytes=1_000_000)
    api.create("small")
    with pytest.raises(grpc.RpcError) as raised:
        api.put([item("small", "one", b"x" * 2_000_000)])
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    api.put_images("small", {"one": png(1)})
    assert api.find("small", by_name("small", "one"), include_query_image=True).hits


def test_two_streams_fill_one_gallery_side_by_side(api: Api, gallery: str) -> None:
    results: dict[str, list[int]] = {}

    def fill(prefix: str) -> None:
        results[prefix] = outcomes(api.put(item(gallery, f"{prefix}{i}", png(i), item_id=i) for i in range(30)))

    threads = [threading.Thread(target=fill, args=(prefix,)) for prefix in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": [CREATED] * 30, "b": [CREATED] * 30}
    assert api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name=f"galleries/{gallery}")).image_count == 60
