"""A server that only reads a store: beside the one that writes to it, and where nothing can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from local_server import local_server
from pydantic import ValidationError
from service_harness import (
    Api,
    by_bytes,
    by_name,
    image_name,
    item,
    png,
    read_status,
    refusal_of,
)

from matchflow.v1 import gallery_pb2, generation_pb2, types_pb2
from matchflow_service.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle


@pytest.fixture
def writer(start_server: Any) -> Api:
    """A server that writes, with a gallery of 6 images."""
    api: Api = start_server()[1]
    api.create("g")
    api.put_images("g", {f"{i}": png(i) for i in range(6)})
    return api


@pytest.fixture
def reader(writer: Api, sample_bundle: Bundle, tmp_path: Path) -> Iterator[Api]:
    """A second server on the same store, which only reads; LMDB is opened once in a process."""
    assert writer
    with local_server(
        bundle=sample_bundle.path, store=tmp_path / "store", log=tmp_path / "reader.log", options=["--read-only"]
    ) as target:
        api = Api(target)
        yield api
        api.close()


def test_it_answers_as_the_one_that_writes(writer: Api, reader: Api) -> None:
    for query in (by_name("g", "2"), by_bytes(png(3))):
        ours, theirs = (api.find("g", query, top_k=6, exhaustive=True) for api in (reader, writer))
        assert ours.hits == theirs.hits
        assert ours.exact
        assert not ours.store_unreachable


def test_what_would_write_fails_and_changes_nothing(writer: Api, reader: Api) -> None:
    image = gallery_pb2.Image(name=image_name("g", "1"), labels=types_pb2.Labels(values={"a": "b"}))
    for call in (
        lambda: reader.create("new"),
        lambda: reader.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=image)),
        lambda: reader.galleries.DeleteImages(
            gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "1")])
        ),
        lambda: reader.galleries.DeleteGallery(gallery_pb2.DeleteGalleryRequest(name="galleries/g")),
    ):
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert "read-only" in refusal.message
    (answer,) = reader.put([item("g", "new", png(50))])
    assert read_status(answer.status).reason == "STORE_UNAVAILABLE"
    # What is there already is there for it, too.
    (answer,) = reader.put([item("g", "1", png(1))])
    assert answer.status.code == 0
    assert len(writer.find("g", by_bytes(png(1)), top_k=20).hits) == 6


def test_it_shows_the_moment_at_which_it_was_first_asked(writer: Api, reader: Api) -> None:
    assert len(reader.find("g", by_bytes(png(1)), top_k=20).hits) == 6
    writer.put_images("g", {"new": png(60)})
    assert len(writer.find("g", by_bytes(png(1)), top_k=20).hits) == 7
    assert len(reader.find("g", by_bytes(png(1)), top_k=20).hits) == 6
    request = generation_pb2.ListGenerationsRequest(parent="galleries/g")
    (only,) = reader.generations.ListGenerations(request).generations
    assert only.state == generation_pb2.Generation.STATE_ACTIVE


def test_a_store_on_redis_is_not_served_read_only(sample_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="can't be served read-only"):
        ServiceSettings(store="redis://localhost/0", cache=tmp_path, bundles=[sample_bundle.path], read_only=True)
