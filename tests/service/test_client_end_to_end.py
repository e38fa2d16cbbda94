"""Both clients with the real server, the real model and real images."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from client_counterpart import CLIENTS, AsyncClientInDisguise
from PIL import Image
from service_harness import png

import matchflow
from matchflow import ImageRef, IngestItem, errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service_harness import RunningServer

    from matchflow_bundle import Bundle

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Any]:
    with CLIENTS[request.param](server.target, timeout_s=60) as connected:
        yield connected


@pytest.fixture
def emoji(sample_images: dict[str, list[Path]]) -> list[IngestItem]:
    """The first ten classes of two designers."""
    return [
        IngestItem(id=f"{designer}-{path.stem}", image=path, labels={"designer": designer, "class": path.stem})
        for designer in ("noto", "twemoji")
        for path in sample_images[designer][:10]
    ]


@pytest.fixture
def demo(client: Any, emoji: list[IngestItem], request: pytest.FixtureRequest) -> Iterator[str]:
    """A gallery with the emoji in it."""
    name = f"demo-{abs(hash(request.node.name))}"
    client.create_gallery(name)
    assert client.ingest(name, emoji).created == len(emoji)
    yield name
    client.delete_gallery(name)


def test_a_photo_finds_its_class_and_the_hit_draws_why(
    client: Any, demo: str, sample_images: dict[str, list[Path]], tmp_path: Path
) -> None:
    photo = sample_images["noto"][3]
    result = client.search(str(photo), gallery=demo, top_k=5)
    best = result.hits[0]
    assert best.image_id == f"noto-{photo.stem}"
    assert best.coarse_score == pytest.approx(1, abs=1e-5)
    assert result.rerank is matchflow.RerankState.COMPLETE
    assert all(hit.verify() and hit.certificate.converged for hit in result)
    saved = best.save_overlay(tmp_path / "why.png")
    if isinstance(client, AsyncClientInDisguise):
        saved = client.wait(saved)
    assert saved.read_bytes().startswith(PNG_MAGIC)
    with Image.open(saved) as overlay:
        assert overlay.width > overlay.height


def test_the_same_pair_has_the_same_score_by_every_path(client: Any, demo: str, emoji: list[IngestItem]) -> None:
    query, stored = ImageRef(demo, emoji[0].id), ImageRef(demo, emoji[1].id)
    hits = {hit.image_id: hit for hit in client.search(query, gallery=demo, top_k=50, max_flows=3)}
    assert query.image_id not in hits
    hit = hits[stored.image_id]
    explained = client.explain(query, stored)
    compared = client.compare(emoji[0].image, stored)
    (features,) = client.embed([emoji[0].image])
    by_features = {h.image_id: h for h in client.search(features, gallery=demo, top_k=50)}
    for score in (explained, compared, by_features[stored.image_id]):
        assert score.score == hit.score
        assert score.structural_score == hit.structural_score
    assert len(hit.flows) == 3
    assert len(explained.flows) == explained.grid.size**2
    assert explained.verify()
    assert compared.verify()
    assert sum(explained.query_weights) == pytest.approx(1, abs=1e-5)


def test_a_gallery_is_scored_by_its_default_and_an_answer_can_be_repeated_after_it_changed(
    client: Any, demo: str, emoji: list[IngestItem]
) -> None:
    query = ImageRef(demo, emoji[0].id)
    assert client.get_gallery(demo).default_rerank.mode is matchflow.RerankMode.STRUCTURAL
    tuning = matchflow.Tuning(spatial_weight=2.0, global_weight=0.1)
    changed = client.set_default_rerank(demo, mode="position_aware", tuning=tuning, depth=9)
    stated = changed.default_rerank
    assert (stated.mode, stated.depth) == (matchflow.RerankMode.POSITION_AWARE, 9)
    assert (stated.tuning.spatial_weight, stated.tuning.global_weight) == (2.0, 0.1)
    assert client.get_gallery(demo) == changed
    result = client.search(query, gallery=demo, max_flows=4)
    assert result.rerank_settings == stated
    assert result.depth_done == 9
    best = result.hits[0]
    explained = client.explain(query, best.image.ref, max_flows=4)
    assert (explained.score, explained.flows) == (best.score, best.flows)
    assert any(flow.penalty > 0 for flow in client.explain(query, best.image.ref).flows)
    assert client.set_default_rerank(demo).default_rerank.mode is matchflow.RerankMode.STRUCTURAL
    settings = result.rerank_settings
    again = client.search(
        query, gallery=demo, max_flows=4, mode=settings.mode, depth=settings.depth, tuning=settings.tuning
    )
    assert again.hits == result.hits
    pair = explained.rerank_settings
    repeated = client.compare(query, best.image.ref, mode=pair.mode, tuning=pair.tuning, max_flows=4)
    assert (repeated.score, repeated.flows) == (best.score, best.flows)


@pytest.mark.parametrize("mode", list(matchflow.RerankMode))
def test_every_mode_adds_up_for_whoever_checks(
    client: Any, demo: str, emoji: list[IngestItem], mode: matchflow.RerankMode
) -> None:
    result = client.search(emoji[3].image, gallery=demo, mode=mode, max_flows=5)
    assert all(hit.verify() for hit in result)
    assert result.rerank_settings.mode is mode
    explained = client.explain(emoji[3].image, result.hits[0].image.ref, mode=mode)
    assert explained.verify()
    exhaustive = client.search(emoji[3].image, gallery=demo, mode=mode, exhaustive=True, depth=1, top_k=3)
    assert exhaustive.exact
    assert exhaustive.hits == client.search(emoji[3].image, gallery=demo, mode=mode, top_k=3).hits


def test_labels_filter_what_is_found(client: Any, demo: str, emoji: list[IngestItem]) -> None:
    query = ImageRef(demo, emoji[0].id)
    only = client.search(query, gallery=demo, top_k=50, where={"designer": "twemoji"})
    assert {hit.labels["designer"] for hit in only} == {"twemoji"}
    none = client.search(query, gallery=demo, top_k=50, where_not={"designer": ["noto", "twemoji"]})
    assert len(none) == 0
    excluded = client.search(query, gallery=demo, top_k=50, exclude=[emoji[1].id])
    assert emoji[1].id not in {hit.image_id for hit in excluded}
    assert len(excluded) == len(emoji) - 2


def test_numbers_and_times_filter_group_and_guard_what_is_found(
    client: Any, demo: str, emoji: list[IngestItem]
) -> None:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    items = [
        dataclasses.replace(one, labels={**one.labels, "age": k, "taken": start + dt.timedelta(days=k)})
        for k, one in enumerate(emoji)
    ]
    assert client.ingest(demo, items).updated == len(items)
    query = ImageRef(demo, emoji[0].id)

    def ages(**conditions: Any) -> list[float]:
        found = client.search(query, gallery=demo, top_k=50, include_query_image=True, **conditions)
        return sorted(hit.labels["age"] for hit in found)

    assert ages(where={"age": matchflow.Between(gte=3, lt=6)}) == [3, 4, 5]
    assert ages(where={"age": [2, 7]}) == [2, 7]
    assert ages(where={"taken": matchflow.Between(gt=start + dt.timedelta(days=17))}) == [18, 19]
    assert ages(where={"taken": start}) == [0]
    assert ages(where={"designer": matchflow.Not("noto"), "age": matchflow.Between(lt=12)}) == [10, 11]
    assert ages(images=[emoji[4].id, emoji[9].id, "nobody"], exclude=[emoji[9].id]) == [4]
    assert ages(where={"broken": matchflow.Present()}) == []
    assert ages(exclude_same=["designer"]) == list(range(10, 20))
    grouped = client.search(query, gallery=demo, top_k=50, group_by="designer", group_limit=2)
    assert sorted(hit.labels["designer"] for hit in grouped) == ["noto", "noto", "twemoji", "twemoji"]
    with pytest.raises(errors.InvalidFieldError, match="stored image"):
        client.search(emoji[0].image, gallery=demo, exclude_same=["designer"])
    seen = client.get_image(query)
    changed = client.set_expire_time(query, start + dt.timedelta(days=36_500), etag=seen.etag)
    assert changed.expire_time == start + dt.timedelta(days=36_500)
    with pytest.raises(errors.EtagMismatchError) as stale:
        client.delete_images(demo, [query.image_id], etags={query.image_id: seen.etag})
    assert stale.value.metadata["actual_etag"] == changed.etag


def test_an_answer_reflects_the_change_that_it_is_asked_to_or_says_that_it_can_not(client: Any, demo: str) -> None:
    sequence = client.get_gallery(demo).sequence
    assert client.search(png(1), gallery=demo, at_least_sequence=sequence).sequence >= sequence
    with pytest.raises(errors.SequenceNotReachedError) as behind:
        client.search(png(1), gallery=demo, at_least_sequence=sequence + 1)
    assert behind.value.metadata == {"wanted_sequence": str(sequence + 1), "reached_sequence": str(sequence)}


def test_images_are_listed_relabelled_and_deleted(client: Any, demo: str, emoji: list[IngestItem]) -> None:
    assert [image.id for image in client.list_images(demo)] == sorted(one.id for one in emoji)
    reference = ImageRef(demo, emoji[0].id)
    assert client.update_labels(reference, {"kind": "new"}).labels == {"kind": "new"}
    assert client.get_image(reference).labels == {"kind": "new"}
    deleted = client.delete_images(demo, [emoji[0].id, "nobody"])
    assert deleted == matchflow.DeletedImages(deleted=1, missing=1)
    with pytest.raises(errors.ImageNotFoundError):
        client.get_image(reference)
    assert client.get_gallery(demo).image_count == len(emoji) - 1


def test_running_again_skips_what_is_there(client: Any, demo: str, emoji: list[IngestItem]) -> None:
    again = client.ingest(demo, emoji)
    assert (again.unchanged, again.created, again.updated) == (len(emoji), 0, 0)


def test_bad_items_fail_alone_with_their_reasons(client: Any, demo: str, tmp_path: Path) -> None:
    items = [
        IngestItem(id="broken", image=b"not an image"),
        IngestItem(id="with/slash", image=png(1)),
        IngestItem(id="gone", image=tmp_path / "gone.png"),
        IngestItem(id="upper", image=png(1), labels={"UPPER": "case"}),
        IngestItem(id="good", image=png(1)),
    ]
    summary = client.ingest(demo, items)
    assert summary.created == 1
    assert {failure.image_id: failure.error.reason for failure in summary.failures} == {
        "broken": "IMAGE_UNREADABLE",
        "with/slash": "INVALID_FIELD",
        "gone": "FILE_UNREADABLE",
        "upper": "INVALID_FIELD",
    }


def test_what_the_server_refuses_is_typed(client: Any, demo: str) -> None:
    with pytest.raises(errors.GalleryNotFoundError):
        client.search(png(1), gallery="nobody")
    with pytest.raises(errors.GalleryExistsError):
        client.create_gallery(demo)
    with pytest.raises(errors.ModelNotFoundError):
        client.create_gallery("another", model="nobody")
    with pytest.raises(errors.ImageUnreadableError):
        client.search(b"no image", gallery=demo)
    with pytest.raises(errors.InvalidFieldError) as caught:
        client.search(png(1), gallery=demo, top_k=0)
    assert list(caught.value.fields) == ["top_k"]
    with pytest.raises(errors.GalleryNotFoundError) as stream:
        client.ingest("nobody", [IngestItem(id="cat", image=png(1))])
    assert stream.value.acknowledged == 0
    foreign = matchflow.Features(
        bundle_digest="0" * 64, embedding=(1.0,) + (0.0,) * 127, cells=bytes(16 * 128), cell_scales=(1.0,) * 16
    )
    with pytest.raises(errors.BundleMismatchError) as mismatch:
        client.search(foreign, gallery=demo)
    assert "0" * 64 in mismatch.value.metadata.values()


def test_a_gallery_without_thumbnails_says_why_it_can_not_draw(client: Any, server: RunningServer) -> None:
    name = f"bare-{type(client).__name__.lower()}"
    gallery = client.create_gallery(name, thumbnails=False)
    assert not gallery.keeps_thumbnails
    client.ingest(name, [IngestItem(id="cat", image=png(1))])
    with pytest.raises(errors.ThumbnailMissingError):
        client.render_match(png(2), ImageRef(name, "cat"))
    assert server.target


def test_models_and_health_describe_the_server(client: Any, sample_bundle: Bundle) -> None:
    (model,) = client.models()
    assert model == client.get_model(model.id)
    assert model.bundle_digest == sample_bundle.digest
    assert model.execution_provider == "CPUExecutionProvider"
    assert client.health() is matchflow.Health.SERVING
    assert client.health("matchflow.v1.SearchService") is matchflow.Health.SERVING
    assert client.list_galleries() is not None


SERVE = """
import asyncio, sys
from pathlib import Path
from matchflow_service.server import serve
from matchflow_service.settings import ServiceSettings
settings = ServiceSettings(store=Path(sys.argv[1]), bundles=[Path(sys.argv[2])], port=0, log_level="ERROR")
asyncio.run(serve(settings, on_listening=lambda port: print(port, flush=True)))
"""


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_ingest_that_the_server_did_not_survive_is_finished_by_sending_all_again(
    kind: str, sample_bundle: Bundle, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path / "store"), str(sample_bundle.path)]
    items = [IngestItem(id=f"image-{i}", image=png(i)) for i in range(60)]
    stored_for_certain = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None

        def kill_in_the_middle(_: matchflow.IngestResult) -> None:
            nonlocal stored_for_certain
            stored_for_certain += 1
            if stored_for_certain == 5:
                os.kill(first.pid, signal.SIGKILL)

        with CLIENTS[kind](f"127.0.0.1:{first.stdout.readline().strip()}") as client:
            client.create_gallery("demo")
            with pytest.raises(errors.ServerUnreachableError) as caught:
                client.ingest("demo", items, on_result=kill_in_the_middle, max_in_flight=8)
    assert caught.value.acknowledged == stored_for_certain >= 5
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        with CLIENTS[kind](f"127.0.0.1:{second.stdout.readline().strip()}") as client:
            summary = client.ingest("demo", items)
        second.terminate()
        assert second.wait() == 0
    assert summary.total == summary.stored == 60
    assert summary.unchanged >= stored_for_certain
