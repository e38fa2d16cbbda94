"""GalleryService through a real channel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from service_harness import LIMIT_S, Api, by_bytes, by_name, eventually, image_name, item, png, refusal_of

from matchflow.v1 import gallery_pb2, ingest_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_bundle import Bundle


def test_a_new_gallery_is_pinned_to_the_default_model(api: Api, sample_bundle: Bundle) -> None:
    created = api.create("pinned")
    assert created.name == "galleries/pinned"
    assert created.model == f"models/{sample_bundle.manifest.name}"
    assert created.bundle_digest == sample_bundle.digest
    assert (created.grid.rows, created.grid.columns, created.embedding_dim) == (4, 4, 128)
    assert (created.image_count, created.sequence, created.without_thumbnails) == (0, 0, False)
    assert created.create_time.seconds > 1_700_000_000
    assert api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name="galleries/pinned")) == created


def test_a_gallery_can_be_created_for_a_model_by_name_and_without_thumbnails(api: Api, sample_bundle: Bundle) -> None:
    created = api.create("named", model=f"models/{sample_bundle.manifest.name}", without_thumbnails=True)
    assert created.without_thumbnails


def test_a_gallery_id_can_be_taken_once(api: Api, gallery: str) -> None:
    refusal = refusal_of(lambda: api.create(gallery))
    assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "GALLERY_EXISTS")
    assert gallery in refusal.message


@pytest.mark.parametrize("gallery_id", ["", "Upper", "1digit", "under_score", "a" * 64, "a/b", "ä"])
def test_a_gallery_id_of_other_characters_is_refused(api: Api, gallery_id: str) -> None:
    refusal = refusal_of(lambda: api.create(gallery_id))
    assert (refusal.code, refusal.reason, refusal.violations) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["gallery_id"])
    assert "expected 1-63 characters" in refusal.message


def test_a_gallery_of_an_unknown_model_is_refused(api: Api) -> None:
    refusal = refusal_of(lambda: api.create("unknown", model="models/none"))
    assert (refusal.code, refusal.reason, refusal.metadata) == ("NOT_FOUND", "MODEL_NOT_FOUND", {"model": "none"})
    malformed = refusal_of(lambda: api.create("unknown", model="none"))
    assert malformed.violations == ["gallery.model"]


def test_galleries_are_listed_in_pages_in_order_of_id(api: Api) -> None:
    for gallery_id in ("page-c", "page-a", "page-b"):
        api.create(gallery_id)
    names: list[str] = []
    token = ""
    while True:
        page = api.galleries.ListGalleries(gallery_pb2.ListGalleriesRequest(page_size=2, page_token=token))
        assert 1 <= len(page.galleries) <= 2
        names += [gallery.name for gallery in page.galleries]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(set(names))
    assert {"galleries/page-a", "galleries/page-b", "galleries/page-c"} <= set(names)


def test_a_deleted_gallery_is_gone_with_its_images(api: Api) -> None:
    api.create("doomed")
    api.put_images("doomed", {"one": png(1)})
    api.galleries.DeleteGallery(gallery_pb2.DeleteGalleryRequest(name="galleries/doomed"))
    refusal = refusal_of(lambda: api.galleries.GetImage(gallery_pb2.GetImageRequest(name=image_name("doomed", "one"))))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")
    assert api.create("doomed").image_count == 0


CALLS_ON_GALLERIES: dict[str, Callable[[Api, str], Any]] = {
    "GetGallery": lambda api, g: api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name=g)),
    "UpdateGallery": lambda api, g: api.galleries.UpdateGallery(
        gallery_pb2.UpdateGalleryRequest(gallery=gallery_pb2.Gallery(name=g))
    ),
    "DeleteGallery": lambda api, g: api.galleries.DeleteGallery(gallery_pb2.DeleteGalleryRequest(name=g)),
    "GetImage": lambda api, g: api.galleries.GetImage(gallery_pb2.GetImageRequest(name=f"{g}/images/x")),
    "ListImages": lambda api, g: api.galleries.ListImages(gallery_pb2.ListImagesRequest(parent=g)),
    "UpdateImage": lambda api, g: api.galleries.UpdateImage(
        gallery_pb2.UpdateImageRequest(image=gallery_pb2.Image(name=f"{g}/images/x"))
    ),
    "DeleteImages": lambda api, g: api.galleries.DeleteImages(gallery_pb2.DeleteImagesRequest(parent=g)),
}


@pytest.mark.parametrize("method", CALLS_ON_GALLERIES)
def test_every_method_says_when_there_is_no_such_gallery(api: Api, method: str) -> None:
    refusal = refusal_of(lambda: CALLS_ON_GALLERIES[method](api, "galleries/absent"))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "GALLERY_NOT_FOUND")


@pytest.mark.parametrize("method", CALLS_ON_GALLERIES)
def test_every_method_refuses_a_malformed_name(api: Api, method: str) -> None:
    refusal = refusal_of(lambda: CALLS_ON_GALLERIES[method](api, "gallery/absent"))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refusal.violations[0] in {"name", "parent", "gallery.name", "image.name"}
    assert "expected galleries/{gallery}" in refusal.message


def test_an_image_says_what_was_ingested(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"cat": png(1)}, kind="cat")
    image = api.galleries.GetImage(gallery_pb2.GetImageRequest(name=image_name(gallery, "cat")))
    assert dict(image.labels.values) == {"kind": "cat"}
    assert (image.width_px, image.height_px, len(image.content_hash)) == (96, 96, 64)
    assert image.row_id >= 0
    assert image.update_time.seconds > 1_700_000_000


def test_an_absent_image_is_said_to_be_absent(api: Api, gallery: str) -> None:
    name = image_name(gallery, "nobody")
    for call in (
        lambda: api.galleries.GetImage(gallery_pb2.GetImageRequest(name=name)),
        lambda: api.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=gallery_pb2.Image(name=name))),
    ):
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")


def test_images_are_listed_in_pages_and_tokens_belong_to_their_request(api: Api, gallery: str) -> None:
    api.put_images(gallery, {name: png(i) for i, name in enumerate("dbeac")})
    parent = f"galleries/{gallery}"
    first = api.galleries.ListImages(gallery_pb2.ListImagesRequest(parent=parent, page_size=3))
    rest = api.galleries.ListImages(
        gallery_pb2.ListImagesRequest(parent=parent, page_size=3, page_token=first.next_page_token)
    )
    assert [image.name[-1] for image in [*first.images, *rest.images]] == list("abcde")
    assert not rest.next_page_token
    other = f"{gallery}-other"
    api.create(other)
    refusal = refusal_of(
        lambda: api.galleries.ListImages(
            gallery_pb2.ListImagesRequest(parent=f"galleries/{other}", page_token=first.next_page_token)
        )
    )
    assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ["page_token"])


@pytest.mark.parametrize("page_size", [-1, 1001])
def test_a_page_size_out_of_range_is_refused(api: Api, gallery: str, page_size: int) -> None:
    refusal = refusal_of(
        lambda: api.galleries.ListImages(
            gallery_pb2.ListImagesRequest(parent=f"galleries/{gallery}", page_size=page_size)
        )
    )
    assert refusal.violations == ["page_size"]
    assert "expected 0 to 1,000" in refusal.message


def test_labels_are_replaced_and_features_stay(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"cat": png(1)}, kind="cat", colour="red")
    name = image_name(gallery, "cat")
    before = api.galleries.GetImage(gallery_pb2.GetImageRequest(name=name))
    for mask in (field_mask_pb2.FieldMask(paths=["labels"]), field_mask_pb2.FieldMask()):
        image = gallery_pb2.Image(name=name, labels=types_pb2.Labels(values={"kind": f"dog{len(mask.paths)}"}))
        after = api.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=image, update_mask=mask))
        assert dict(after.labels.values) == {"kind": f"dog{len(mask.paths)}"}
        assert (after.row_id, after.content_hash) == (before.row_id, before.content_hash)


def test_only_labels_can_be_updated_and_bad_labels_are_refused(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"cat": png(1)})
    name = image_name(gallery, "cat")
    mask = field_mask_pb2.FieldMask(paths=["labels", "row_id"])
    refusal = refusal_of(
        lambda: api.galleries.UpdateImage(
            gallery_pb2.UpdateImageRequest(image=gallery_pb2.Image(name=name), update_mask=mask)
        )
    )
    assert (refusal.violations, "row_id" in refusal.message) == (["update_mask"], True)
    for labels in ({"Bad Name": "x"}, {"kind": "x" * 257}, {f"l{i}": "x" for i in range(65)}):
        image = gallery_pb2.Image(name=name, labels=types_pb2.Labels(values=labels))
        bad = refusal_of(
            lambda image=image: api.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=image))  # type: ignore[misc]
        )
        assert bad.reason == "INVALID_FIELD"


def test_deleted_images_are_gone_and_absent_ones_are_counted(api: Api, gallery: str) -> None:
    api.put_images(gallery, {name: png(i) for i, name in enumerate("abc")})
    names = [image_name(gallery, name) for name in ("a", "b", "nobody")]
    reply = api.galleries.DeleteImages(gallery_pb2.DeleteImagesRequest(parent=f"galleries/{gallery}", names=names))
    assert (reply.deleted_count, reply.missing_count) == (2, 1)
    left = api.galleries.ListImages(gallery_pb2.ListImagesRequest(parent=f"galleries/{gallery}"))
    assert [image.name for image in left.images] == [image_name(gallery, "c")]


def test_deleting_names_of_another_gallery_or_too_many_is_refused(api: Api, gallery: str) -> None:
    parent = f"galleries/{gallery}"
    for names, field in (
        ([image_name("other", "a")], "names[0]"),
        ([image_name(gallery, f"{i}") for i in range(1001)], "names"),
    ):
        request = gallery_pb2.DeleteImagesRequest(parent=parent, names=names)
        refusal = refusal_of(lambda request=request: api.galleries.DeleteImages(request))  # type: ignore[misc]
        assert refusal.violations == [field]


def test_an_image_id_of_256_four_byte_characters_works_everywhere(api: Api, gallery: str) -> None:
    image_id = "🦊" * 256
    api.put_images(gallery, {image_id: png(3)})
    assert api.find(gallery, by_name(gallery, image_id), include_query_image=True).hits[0].image.name.endswith("🦊")
    assert api.galleries.GetImage(gallery_pb2.GetImageRequest(name=image_name(gallery, image_id))).row_id >= 0


def test_data_outlives_a_restart(start_server: Any) -> None:
    first, api = start_server()
    api.create("kept")
    api.put_images("kept", {name: png(i) for i, name in enumerate("abc")}, kind="letter")
    before = [
        api.find("kept", by_name("kept", "a")).hits,
        api.galleries.ListImages(gallery_pb2.ListImagesRequest(parent="galleries/kept")),
    ]
    first.stop()
    _, again = start_server()
    assert again.galleries.ListImages(gallery_pb2.ListImagesRequest(parent="galleries/kept")) == before[1]
    assert again.find("kept", by_name("kept", "a")).hits == before[0]
    answers = again.put([item("kept", "a", png(0), kind="letter")])
    assert answers[0].outcome == 3


TYPED = types_pb2.Labels(values={"camera": "c1"}, numbers={"age": 31.5})
TYPED.times["taken"].FromSeconds(1_767_225_600)


def update(api: Api, gallery: str, *paths: str, **fields: Any) -> gallery_pb2.Image:
    image = gallery_pb2.Image(name=image_name(gallery, "cat"), **fields)
    mask = field_mask_pb2.FieldMask(paths=paths)
    return api.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=image, update_mask=mask), timeout=LIMIT_S)


def test_labels_of_every_kind_are_stored_and_shown(api: Api, gallery: str) -> None:
    (answer,) = api.put(
        [ingest_pb2.IngestImagesRequest(name=image_name(gallery, "cat"), image_bytes=png(1), labels=TYPED)]
    )
    assert answer.status.code == 0
    request = gallery_pb2.GetImageRequest(name=image_name(gallery, "cat"))
    assert api.galleries.GetImage(request, timeout=LIMIT_S).labels == TYPED
    TYPED.numbers["age"] = 32
    assert update(api, gallery, labels=TYPED).labels == TYPED


def test_an_etag_changes_with_the_image_and_guards_its_changes(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"cat": png(1), "dog": png(2)})
    first = update(api, gallery, labels=types_pb2.Labels(values={"kind": "a"}))
    second = update(api, gallery, labels=types_pb2.Labels(values={"kind": "b"}), etag=first.etag)
    assert second.etag not in {"", first.etag}
    stale = refusal_of(lambda: update(api, gallery, labels=TYPED, etag=first.etag))
    assert (stale.code, stale.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert stale.metadata == {"expected_etag": first.etag, "actual_etag": second.etag}
    parent = f"galleries/{gallery}"
    both = [image_name(gallery, "cat"), image_name(gallery, "dog")]
    request = gallery_pb2.DeleteImagesRequest(parent=parent, names=both, etags={both[0]: first.etag})
    assert refusal_of(lambda: api.galleries.DeleteImages(request, timeout=LIMIT_S)).reason == "ETAG_MISMATCH"
    assert api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name=parent), timeout=LIMIT_S).image_count == 2
    request.etags[both[0]] = second.etag
    assert api.galleries.DeleteImages(request, timeout=LIMIT_S).deleted_count == 2


@pytest.mark.parametrize("etag", ["", "7", '"0"'])
def test_etags_of_a_deletion_are_those_of_its_images(api: Api, gallery: str, etag: str) -> None:
    names = [image_name(gallery, "cat")]
    parent = f"galleries/{gallery}"
    odd = gallery_pb2.DeleteImagesRequest(parent=parent, names=names, etags={names[0]: etag})
    other = gallery_pb2.DeleteImagesRequest(parent=parent, names=names, etags={image_name(gallery, "dog"): '"1"'})
    for request in (odd, other):
        refusal = refusal_of(lambda request=request: api.galleries.DeleteImages(request, timeout=LIMIT_S))  # type: ignore[misc]
        assert refusal.reason == "INVALID_FIELD"
        assert refusal.metadata["field"].startswith("etags[")


def test_an_image_ends_when_it_was_told_to_and_stays_when_it_was_not(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"cat": png(1)}, kind="cat")
    ends = Timestamp(seconds=int(time.time()) + 3600, nanos=250_000_000)
    shown = update(api, gallery, "expire_time", expire_time=ends)
    assert (shown.expire_time, dict(shown.labels.values)) == (ends, {"kind": "cat"})
    assert update(api, gallery, labels=TYPED).expire_time == ends
    both = update(api, gallery, labels=types_pb2.Labels(), ttl=Duration(seconds=60))
    assert both.expire_time.seconds == pytest.approx(time.time() + 60, abs=LIMIT_S)
    assert both.labels == types_pb2.Labels()
    assert not update(api, gallery, "expire_time").HasField("expire_time")
    update(api, gallery, "ttl", ttl=Duration(nanos=200_000_000))
    request = gallery_pb2.GetImageRequest(name=image_name(gallery, "cat"))

    def is_gone() -> bool:
        try:
            api.galleries.GetImage(request, timeout=LIMIT_S)
        except grpc.RpcError:
            return True
        return False

    eventually(is_gone)
    assert refusal_of(lambda: api.galleries.GetImage(request, timeout=LIMIT_S)).reason == "IMAGE_NOT_FOUND"
    assert not api.find(gallery, by_bytes(png(1))).hits
