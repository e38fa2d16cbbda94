"""GenerationService through a real channel, with two real models; what a switch means to everybody else."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import timestamp_pb2
from service_harness import (
    LIMIT_S,
    Api,
    by_bytes,
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

from matchflow.v1 import gallery_pb2, generation_pb2, ingest_pb2, matching_pb2, search_pb2, types_pb2
from matchflow_index import Gallery
from matchflow_index.records import GENERATION_STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service_harness import RunningServer

    from matchflow_bundle import Bundle

State = generation_pb2.Generation.State
Generation = generation_pb2.Generation
IMAGES = 6


@pytest.fixture
def both(start_server: Any, sample_bundle: Bundle, other_bundle: Bundle) -> tuple[RunningServer, Api]:
    """A server with both models, and a gallery g of the first."""
    server, api = start_server(bundles=[sample_bundle.path, other_bundle.path])
    api.create("g")
    api.put_images("g", {f"{i}": png(i) for i in range(IMAGES)}, kind="random")
    return server, api


@pytest.fixture
def api(both: tuple[RunningServer, Api]) -> Api:
    return both[1]


def create(api: Api, gallery: str = "g", **fields: Any) -> Generation:
    request = generation_pb2.CreateGenerationRequest(
        parent=f"galleries/{gallery}", generation=Generation(**{"model": "models/other", **fields})
    )
    return api.generations.CreateGeneration(request, timeout=LIMIT_S)


def name_of(generation: int, gallery: str = "g") -> str:
    return f"galleries/{gallery}/generations/{generation}"


def get(api: Api, generation: int = 2) -> Generation:
    request = generation_pb2.GetGenerationRequest(name=name_of(generation))
    return api.generations.GetGeneration(request, timeout=LIMIT_S)


def filled(api: Api, *, state: Any = Generation.STATE_READY, generation: int = 2) -> Generation:
    eventually(lambda: get(api, generation).state == state)
    return get(api, generation)


def activate(api: Api, generation: int, *, allow_missing: bool = False) -> Generation:
    request = generation_pb2.ActivateGenerationRequest(name=name_of(generation), allow_missing=allow_missing)
    return api.generations.ActivateGeneration(request, timeout=LIMIT_S)


def delete(api: Api, generation: int) -> object:
    return api.generations.DeleteGeneration(
        generation_pb2.DeleteGenerationRequest(name=name_of(generation)), timeout=LIMIT_S
    )


def compare(api: Api, generation: int = 2, **fields: Any) -> generation_pb2.CompareGenerationsResponse:
    request = generation_pb2.CompareGenerationsRequest(name=name_of(generation), **fields)
    return api.generations.CompareGenerations(request, timeout=LIMIT_S)


def missing(api: Api, *, generation: int = 2, page_size: int = 0) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        request = generation_pb2.ListMissingImagesRequest(
            parent=name_of(generation), page_size=page_size, page_token=token
        )
        page = api.generations.ListMissingImages(request, timeout=LIMIT_S)
        found += page.names
        token = page.next_page_token
        if not token:
            return found


def gallery_of(api: Api) -> gallery_pb2.Gallery:
    return api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name="galleries/g"), timeout=LIMIT_S)


def images_of(reply: search_pb2.SearchResponse) -> list[str]:
    return [hit.image.name.rsplit("/", 1)[-1] for hit in reply.hits]


def supply(api: Api, items: Sequence[ingest_pb2.IngestImagesRequest], generation: int = 2) -> list[Any]:
    for k, each in enumerate(items):
        each.item_id, each.generation = k, generation
    return api.put(items)


def test_a_second_generation_is_filled_while_the_first_one_answers(api: Api, other_bundle: Bundle) -> None:
    made = create(api)
    assert made.name == name_of(2)
    assert (made.model, made.bundle_digest) == ("models/other", other_bundle.digest)
    assert (made.grid.rows, made.grid.columns, made.embedding_dim) == (3, 3, 64)
    assert made.state == Generation.STATE_FILLING
    done = filled(api)
    assert (done.image_count, done.missing_count, done.pending_changes) == (IMAGES, 0, 0)
    assert done.sequence == GENERATION_STRIDE + IMAGES
    assert gallery_of(api).generation == 1
    request = generation_pb2.ListGenerationsRequest(parent="galleries/g")
    listed = api.generations.ListGenerations(request, timeout=LIMIT_S).generations
    assert [each.name for each in listed] == [name_of(1), name_of(2)]
    assert listed[0].state == Generation.STATE_ACTIVE
    assert api.find("g", by_bytes(png(1))).generation == 1


def test_both_generations_can_be_searched_by_number(api: Api, sample_bundle: Bundle, other_bundle: Bundle) -> None:
    create(api)
    filled(api)
    replies = [api.find("g", by_name("g", "1"), generation=number) for number in (0, 1, 2)]
    assert [reply.generation for reply in replies] == [1, 1, 2]
    assert [reply.bundle_digest for reply in replies] == [sample_bundle.digest] * 2 + [other_bundle.digest]
    assert replies[0].hits == replies[1].hits != replies[2].hits
    cells = {flow.image_cell for hit in replies[2].hits for flow in hit.match.flows}
    assert cells <= set(range(9))
    # An image that is sent is embedded by the model of the generation.
    assert images_of(api.find("g", by_bytes(png(3)), generation=2))[0] == "3"
    refusal = refusal_of(lambda: api.find("g", by_name("g", "1"), generation=3))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "GENERATION_NOT_FOUND")
    refusal = refusal_of(lambda: api.find("g", by_name("g", "1"), generation=-1))
    assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ["generation"])


def test_a_small_image_has_the_very_features_that_its_ingest_would_give(api: Api) -> None:
    create(api)
    filled(api)
    api.create("fresh", model="models/other")
    api.put_images("fresh", {f"{i}": png(i) for i in range(IMAGES)})
    found = api.find("g", by_name("g", "2"), generation=2, top_k=IMAGES)
    expected = api.find("fresh", by_name("fresh", "2"), top_k=IMAGES)
    assert images_of(found) == images_of(expected)
    assert [hit.match.score for hit in found.hits] == [hit.match.score for hit in expected.hits]
    assert not any(hit.image.from_thumbnail for hit in found.hits)


def test_a_large_image_comes_from_its_thumbnail_until_it_is_sent_again(api: Api) -> None:
    large = encoded(picture(77, width=900, height=600), "JPEG", quality=95)
    api.put_images("g", {"large": large})
    create(api)
    filled(api)
    (hit,) = api.find("g", by_bytes(large), generation=2, top_k=1).hits
    assert hit.image.name == image_name("g", "large")
    assert hit.image.from_thumbnail
    assert hit.match.coarse_score < 0.99999
    answer, again = (supply(api, [item("g", "large", large)])[0] for _ in range(2))
    assert (answer.outcome, answer.generation) == (ingest_pb2.INGEST_OUTCOME_UPDATED, 2)
    assert again.outcome == ingest_pb2.INGEST_OUTCOME_UNCHANGED
    (hit,) = api.find("g", by_bytes(large), generation=2, top_k=1).hits
    assert not hit.image.from_thumbnail
    assert hit.match.coarse_score == pytest.approx(1, abs=1e-6)


def test_a_switch_and_the_way_back(api: Api, other_bundle: Bundle) -> None:
    created = gallery_of(api).create_time
    assert create(api).create_time != created
    filled(api)
    before = api.find("g", by_name("g", "1"), generation=2)
    assert activate(api, 2).state == Generation.STATE_ACTIVE
    found = gallery_of(api)
    assert found.create_time == created
    assert (found.generation, found.model, found.bundle_digest) == (2, "models/other", other_bundle.digest)
    reply = api.find("g", by_name("g", "1"))
    assert reply.generation == 2
    assert reply.hits == before.hits
    api.put_images("g", {"new": png(50)})
    update = gallery_pb2.UpdateImageRequest(
        image=gallery_pb2.Image(name=image_name("g", "2"), labels=types_pb2.Labels(values={"kind": "other"}))
    )
    api.galleries.UpdateImage(update, timeout=LIMIT_S)
    gone = gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "3")])
    assert api.galleries.DeleteImages(gone, timeout=LIMIT_S).deleted_count == 1
    filled(api, generation=1)
    activate(api, 1)
    activate(api, 1)
    reply = api.find("g", by_bytes(png(50)), top_k=20)
    assert reply.generation == 1
    assert sorted(images_of(reply)) == ["0", "1", "2", "4", "5", "new"]
    assert images_of(reply)[0] == "new"
    kinds = {hit.image.name: hit.image.labels.values["kind"] for hit in reply.hits if hit.image.labels.values}
    assert kinds[image_name("g", "2")] == "other"


def test_the_same_evidence_again_after_a_switch(api: Api) -> None:
    """What a search said of a hit can be asked for again, at the generation that said it."""
    create(api)
    filled(api)
    reply = api.find("g", by_name("g", "1"), max_flows=10_000)
    activate(api, 2)
    for hit in reply.hits:
        request = search_pb2.ExplainRequest(
            query=by_name("g", "1"), image=hit.image.name, rerank=reply.rerank, generation=reply.generation
        )
        again = api.search.Explain(request, timeout=LIMIT_S)
        assert again.match.SerializeToString(deterministic=True) == hit.match.SerializeToString(deterministic=True)
        assert (again.generation, again.bundle_digest) == (1, reply.bundle_digest)
        assert again.image.labels == hit.image.labels
    newest = api.search.Explain(
        search_pb2.ExplainRequest(query=by_bytes(png(1)), image=image_name("g", "2")), timeout=LIMIT_S
    )
    assert newest.generation == 2
    assert (newest.grid.rows, newest.grid.columns) == (3, 3)


def test_pairs_of_a_generation_are_compared_and_drawn(api: Api, sample_bundle: Bundle, other_bundle: Bundle) -> None:
    create(api)
    filled(api)
    for number, bundle in ((0, sample_bundle), (1, sample_bundle), (2, other_bundle)):
        request = search_pb2.CompareRequest(query=by_bytes(png(1)), image=by_name("g", "1"), generation=number)
        reply = api.search.Compare(request, timeout=LIMIT_S)
        assert reply.bundle_digest == bundle.digest
        assert reply.match.coarse_score == pytest.approx(1, abs=1e-6)
        drawn = search_pb2.RenderMatchRequest(query=by_name("g", "1"), image=image_name("g", "2"), generation=number)
        assert api.search.RenderMatch(drawn, timeout=LIMIT_S).png
    refusal = refusal_of(
        lambda: api.search.Compare(
            search_pb2.CompareRequest(query=by_bytes(png(1)), image=by_name("g", "1"), generation=7), timeout=LIMIT_S
        )
    )
    assert refusal.reason == "GENERATION_NOT_FOUND"


def test_images_that_no_thumbnail_is_kept_of_are_sent_again(
    api: Api, sample_bundle: Bundle, other_bundle: Bundle
) -> None:
    batch = random_features(2)
    api.put([feature_item("g", f"f{i}", batch, i, sample_bundle.digest) for i in range(2)])
    create(api)
    found = filled(api, state=Generation.STATE_INCOMPLETE)
    assert (found.missing_count, found.image_count) == (2, IMAGES)
    assert missing(api) == missing(api, page_size=1) == [image_name("g", "f0"), image_name("g", "f1")]
    refusal = refusal_of(lambda: activate(api, 2))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "GENERATION_NOT_READY")
    assert refusal.metadata == {"missing_count": "2", "pending_changes": "0"}
    others = random_features(2, cells=9, dim=64)
    answers = supply(api, [feature_item("g", f"f{i}", others, i, other_bundle.digest) for i in range(2)])
    assert [(each.status.code, each.outcome, each.generation) for each in answers] == [
        (0, ingest_pb2.INGEST_OUTCOME_CREATED, 2)
    ] * 2
    assert missing(api) == []
    assert filled(api).missing_count == 0
    activate(api, 2)


def test_what_is_given_to_a_generation_has_to_be_what_the_gallery_holds(
    api: Api, sample_bundle: Bundle, other_bundle: Bundle
) -> None:
    create(api)
    filled(api)
    batch = random_features(1)
    nobody, changed, foreign, conditional = supply(
        api,
        [
            item("g", "nobody", png(1)),
            item("g", "1", png(99)),
            feature_item("g", "2", batch, 0, sample_bundle.digest),
            ingest_pb2.IngestImagesRequest(name=image_name("g", "3"), image_bytes=png(3), must_be_new=True),
        ],
    )
    assert read_status(nobody.status).reason == "IMAGE_NOT_FOUND"
    refusal = read_status(changed.status)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "CONTENT_DIFFERS")
    assert set(refusal.metadata) == {"expected_hash", "actual_hash"}
    assert read_status(foreign.status).metadata["expected_digest"] == other_bundle.digest
    assert read_status(conditional.status).violations == ["must_be_new"]
    assert get(api).image_count == IMAGES
    # The labels are the gallery's, whatever is sent.
    (answer,) = supply(api, [item("g", "4", png(4), kind="forged")])
    assert answer.outcome == ingest_pb2.INGEST_OUTCOME_UNCHANGED
    for generation in (1, 2):
        reply = api.find("g", by_bytes(png(4)), generation=generation, top_k=1)
        assert dict(reply.hits[0].image.labels.values) == {"kind": "random"}


def test_a_stream_is_for_one_generation(api: Api) -> None:
    create(api)
    filled(api)
    first = item("g", "1", png(1), item_id=1)
    second = ingest_pb2.IngestImagesRequest(name=image_name("g", "2"), image_bytes=png(2), item_id=2, generation=2)
    answers = api.put([first, second])
    assert [each.status.code == 0 for each in answers] == [True, False]
    assert read_status(answers[1].status).violations == ["generation"]
    refusal = refusal_of(lambda: supply(api, [item("g", "1", png(1))], generation=9))
    assert refusal.reason == "GENERATION_NOT_FOUND"
    # The active one by its number is the active one.
    (answer,) = supply(api, [item("g", "more", png(60))], generation=1)
    assert (answer.outcome, answer.generation) == (ingest_pb2.INGEST_OUTCOME_CREATED, 1)


class Stream:
    """An ingest stream that stays open."""

    def __init__(self, api: Api) -> None:
        self._sending: queue.Queue[ingest_pb2.IngestImagesRequest | None] = queue.Queue()
        self.answers: list[ingest_pb2.IngestImagesResponse] = []
        replies = api.ingest.IngestImages(iter(self._sending.get, None), timeout=LIMIT_S)
        self._thread = threading.Thread(target=lambda: self.answers.extend(replies))
        self._thread.start()

    def send(self, request: ingest_pb2.IngestImagesRequest) -> None:
        self._sending.put(request)

    def end(self) -> list[ingest_pb2.IngestImagesResponse]:
        self._sending.put(None)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        return sorted(self.answers, key=lambda answer: answer.item_id)


def test_a_stream_goes_on_through_a_switch(
    both: tuple[RunningServer, Api], sample_bundle: Bundle, other_bundle: Bundle
) -> None:
    server, api = both
    create(api)
    filled(api)
    stream = Stream(api)
    stream.send(item("g", "before", png(30), item_id=1))
    eventually(lambda: len(stream.answers) == 1)
    eventually(lambda: get(api).state == Generation.STATE_READY)
    with gated(server) as gate:
        # Decoded and on its way through the first model when the other one becomes active.
        stream.send(item("g", "during", png(31), item_id=2))
        stream.send(feature_item("g", "features", random_features(4), 3, sample_bundle.digest))
        assert gate.entered.wait(LIMIT_S)
        eventually(lambda: get(api).state == Generation.STATE_READY)
        activate(api, 2)
    stream.send(item("g", "after", png(32), item_id=4))
    answers = stream.end()
    assert [(each.item_id, each.status.code, each.generation) for each in answers if each.item_id != 3] == [
        (1, 0, 1),
        (2, 0, 2),
        (4, 0, 2),
    ]
    # Features of the first model were stored before the switch, or are refused: never taken for the second's.
    features = next(each for each in answers if each.item_id == 3)
    if features.status.code:
        assert read_status(features.status).metadata["expected_digest"] == other_bundle.digest
    else:
        assert features.generation == 1
    for name, seed in (("before", 30), ("during", 31), ("after", 32)):
        reply = api.find("g", by_bytes(png(seed)), top_k=1)
        assert (reply.generation, images_of(reply)) == (2, [name])
        assert reply.hits[0].match.coarse_score == pytest.approx(1, abs=1e-6)


def test_searches_and_writes_go_on_while_generations_are_switched(api: Api) -> None:
    create(api)
    filled(api)
    done = threading.Event()
    replies: list[search_pb2.SearchResponse] = []
    answers: list[ingest_pb2.IngestImagesResponse] = []

    def search() -> None:
        while not done.is_set():
            replies.append(api.find("g", by_bytes(png(1)), top_k=100))

    def write() -> None:
        k = 0
        while not done.is_set():
            answers.extend(api.put([item("g", f"late-{k}", png(100 + k), item_id=k)]))
            k += 1

    threads = [threading.Thread(target=work) for work in (search, write)]
    for thread in threads:
        thread.start()
    for k in range(6):
        activate(api, 1 + (k + 1) % 2)
        asked, written = len(replies), len(answers)
        eventually(lambda: len(replies) > asked + 1 and len(answers) > written)  # noqa: B023 - it ends in this round
    done.set()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    assert {reply.generation for reply in replies} == {1, 2}
    assert all(images_of(reply)[0] == "1" and len(reply.hits) >= IMAGES for reply in replies)
    assert all(not answer.status.code for answer in answers)
    other = 2 if gallery_of(api).generation == 1 else 1
    filled(api, generation=other)
    wanted = {f"late-{k}" for k in range(len(answers))} | {f"{i}" for i in range(IMAGES)}
    for number in (1, 2):
        assert set(images_of(api.find("g", by_bytes(png(1)), top_k=1000, generation=number))) == wanted


def test_a_sequence_from_before_a_switch_is_reached_after_it(api: Api) -> None:
    create(api)
    filled(api)
    (answer,) = api.put([item("g", "new", png(40))])
    filled(api)

    def find(**fields: Any) -> search_pb2.SearchResponse:
        return api.find("g", by_name("g", "1"), **fields)

    assert find(at_least_sequence=answer.sequence, generation=2).generation == 2
    activate(api, 2)
    reply = find(at_least_sequence=answer.sequence)
    assert reply.generation == 2
    assert reply.sequence > answer.sequence
    (answer,) = api.put([item("g", "newer", png(41))])
    assert answer.sequence == reply.sequence + 1
    assert find(at_least_sequence=answer.sequence).sequence == answer.sequence
    filled(api, generation=1)
    activate(api, 1)
    assert find(at_least_sequence=answer.sequence).generation == 1
    for never in (answer.sequence + 100, 5 * GENERATION_STRIDE):
        refusal = refusal_of(partial(find, at_least_sequence=never))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SEQUENCE_NOT_REACHED")


def test_an_image_that_expires_does_so_in_both(api: Api) -> None:
    end = timestamp_pb2.Timestamp(seconds=4_000_000_000)
    api.put([ingest_pb2.IngestImagesRequest(name=image_name("g", "0"), image_bytes=png(0), expire_time=end)])
    create(api)
    filled(api)
    hit = api.find("g", by_bytes(png(0)), generation=2, top_k=1).hits[0]
    assert hit.image.expire_time == end


def test_generations_are_compared_in_shadow(api: Api) -> None:
    api.put_images("g", {f"again-{i}": encoded(picture(i), "JPEG", quality=90) for i in range(IMAGES)}, kind="jpeg")
    for i in range(IMAGES):
        for name in (f"{i}", f"again-{i}"):
            image = gallery_pb2.Image(name=image_name("g", name), labels=types_pb2.Labels(values={"class": f"{i}"}))
            api.galleries.UpdateImage(gallery_pb2.UpdateImageRequest(image=image), timeout=LIMIT_S)
    create(api)
    filled(api)
    found = compare(api, top_k=3, label="class")
    assert (found.query_count, found.labelled_queries, found.top_k) == (2 * IMAGES, 2 * IMAGES, 3)
    assert (found.active_generation, found.generation) == (1, 2)
    assert found.active_precision_at_1 == found.precision_at_1 == found.same_first == 1.0
    assert 1 / 3 <= found.overlap <= 1
    assert found.score_shift.pairs == round(found.overlap * 3 * found.query_count)
    assert found.score_shift.p5 <= found.score_shift.median <= found.score_shift.p95
    assert all(each.image.startswith("galleries/g/images/") and each.overlap < 1 for each in found.disagreements)
    assert gallery_of(api).generation == 1
    few = compare(api, query_count=2, seed=3)
    assert few.query_count == 2
    assert not few.HasField("precision_at_1")
    assert compare(api, query_count=2, seed=3) == few
    for fields, field in (({"query_count": 0}, "query_count"), ({"top_k": 101}, "top_k"), ({"label": "No!"}, "label")):
        assert refusal_of(partial(compare, api, **fields)).violations == [field]
    refusal = refusal_of(lambda: compare(api, 1))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "GENERATION_ACTIVE")


def test_what_makes_no_sense_is_refused(api: Api) -> None:
    assert refusal_of(lambda: create(api, model="models/lite0")).violations == ["generation.model"]
    assert refusal_of(lambda: create(api, model="models/nobody")).reason == "MODEL_NOT_FOUND"
    assert refusal_of(lambda: create(api, "nowhere")).reason == "GALLERY_NOT_FOUND"
    bad = matching_pb2.Rerank(depth=0)
    assert refusal_of(lambda: create(api, default_rerank=bad)).violations == ["generation.default_rerank.depth"]
    create(api)
    refusal = refusal_of(lambda: create(api))
    assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "GENERATION_EXISTS")
    assert refusal_of(lambda: delete(api, 1)).reason == "GENERATION_ACTIVE"
    assert refusal_of(lambda: delete(api, 5)).reason == "GENERATION_NOT_FOUND"
    assert refusal_of(lambda: activate(api, 5)).reason == "GENERATION_NOT_FOUND"
    for name in ("galleries/g", "galleries/g/generations/0", "galleries/g/generations/x", "galleries//generations/1"):
        request = generation_pb2.GetGenerationRequest(name=name)
        assert refusal_of(partial(api.generations.GetGeneration, request)).violations == ["name"]


def test_a_deleted_generation_is_gone_and_another_one_can_follow(api: Api) -> None:
    create(api)
    filled(api)
    delete(api, 2)
    assert refusal_of(lambda: get(api)).reason == "GENERATION_NOT_FOUND"
    assert refusal_of(lambda: api.find("g", by_name("g", "1"), generation=2)).reason == "GENERATION_NOT_FOUND"
    assert create(api).name == name_of(3)
    filled(api, generation=3)
    activate(api, 3)
    delete(api, 1)
    assert api.find("g", by_name("g", "1")).generation == 3
    gone = gallery_pb2.DeleteGalleryRequest(name="galleries/g")
    api.galleries.DeleteGallery(gone, timeout=LIMIT_S)
    api.create("g")
    assert gallery_of(api).generation == 1


def test_each_generation_has_its_own_default(api: Api) -> None:
    max_sim = matching_pb2.Rerank(mode=matching_pb2.RERANK_MODE_MAX_SIM, depth=20)
    made = create(api, default_rerank=max_sim)
    assert made.default_rerank.mode == matching_pb2.RERANK_MODE_MAX_SIM
    filled(api)
    assert api.find("g", by_name("g", "1")).rerank.mode == matching_pb2.RERANK_MODE_STRUCTURAL
    assert api.find("g", by_name("g", "1"), generation=2).rerank.mode == matching_pb2.RERANK_MODE_MAX_SIM
    activate(api, 2)
    assert gallery_of(api).default_rerank.mode == matching_pb2.RERANK_MODE_MAX_SIM


def test_filling_goes_on_where_a_stopped_server_left_it(
    start_server: Any, sample_bundle: Bundle, other_bundle: Bundle
) -> None:
    bundles = [sample_bundle.path, other_bundle.path]
    server, api = start_server(bundles=bundles)
    api.create("g")
    api.put_images("g", {f"{i}": png(i) for i in range(IMAGES)})
    create(api)
    filled(api)
    server.stop()
    # Without the model the generation waits; what needs no model is followed.
    server, api = start_server(bundles=[sample_bundle.path])
    api.put_images("g", {"new": png(70)})
    gone = gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "3")])
    api.galleries.DeleteImages(gone, timeout=LIMIT_S)
    waiting = filled(api, state=Generation.STATE_WAITING_FOR_MODEL)
    assert (waiting.image_count, waiting.missing_count) == (IMAGES - 1, 1)
    assert missing(api) == [image_name("g", "new")]
    assert refusal_of(lambda: activate(api, 2)).reason == "GENERATION_NOT_READY"
    server.stop()
    _, api = start_server(bundles=bundles)
    assert filled(api).image_count == IMAGES
    activate(api, 2)


def test_a_server_that_is_told_to_stop_does_not_wait_for_the_filling(
    both: tuple[RunningServer, Api], other_bundle: Bundle
) -> None:
    stopping, api = both
    queue_of_other = stopping.server.models.of_bundle(other_bundle.digest).queue
    encoder = queue_of_other._encoder
    held = threading.Event()

    class Held:
        def encode(self, images: Any) -> Any:
            held.wait(LIMIT_S)
            return encoder.encode(images)

    queue_of_other._encoder = Held()
    create(api)
    stopping.begin_stop()
    threading.Timer(1.0, held.set).start()
    stopping.stop()


def test_a_stream_does_not_call_unchanged_what_is_so_in_a_generation_of_before(api: Api) -> None:
    """Otherwise what somebody else stored since would stand, and the stream's sender believe it had not."""
    create(api)
    filled(api)
    stream = Stream(api)
    stream.send(item("g", "1", png(1), item_id=1, kind="random"))
    eventually(lambda: len(stream.answers) == 1)
    assert stream.answers[0].outcome == ingest_pb2.INGEST_OUTCOME_UNCHANGED
    activate(api, 2)
    (other,) = api.put([item("g", "1", png(91))])
    assert (other.outcome, other.generation) == (ingest_pb2.INGEST_OUTCOME_UPDATED, 2)
    stream.send(item("g", "1", png(1), item_id=2, kind="random"))
    answers = stream.end()
    assert (answers[1].outcome, answers[1].generation) == (ingest_pb2.INGEST_OUTCOME_UPDATED, 2)
    assert images_of(api.find("g", by_bytes(png(1)), top_k=1)) == ["1"]


def test_a_stream_goes_on_when_the_generation_that_it_began_with_is_gone(api: Api) -> None:
    create(api)
    filled(api)
    stream = Stream(api)
    stream.send(item("g", "before", png(30), item_id=1))
    eventually(lambda: len(stream.answers) == 1)
    filled(api)
    activate(api, 2)
    delete(api, 1)
    stream.send(item("g", "after", png(31), item_id=2))
    stream.send(item("g", "0", png(0), item_id=3, kind="random"))
    answers = stream.end()
    assert [(each.status.code, each.generation) for each in answers] == [(0, 1), (0, 2), (0, 2)]
    assert answers[2].outcome == ingest_pb2.INGEST_OUTCOME_UNCHANGED


def test_a_stream_into_a_generation_ends_item_by_item_when_that_is_gone(api: Api) -> None:
    create(api)
    filled(api)
    stream = Stream(api)

    def supplied(name: str, seed: int, item_id: int) -> ingest_pb2.IngestImagesRequest:
        return ingest_pb2.IngestImagesRequest(
            name=image_name("g", name), image_bytes=png(seed), item_id=item_id, generation=2
        )

    stream.send(supplied("1", 1, 1))
    eventually(lambda: len(stream.answers) == 1)
    delete(api, 2)
    stream.send(supplied("2", 2, 2))
    answers = stream.end()
    assert read_status(answers[1].status).reason == "GENERATION_NOT_FOUND"


def test_a_search_whose_generation_is_gone_before_it_is_answered_is_answered_by_the_next(
    both: tuple[RunningServer, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, api = both
    create(api)
    filled(api)
    search = Gallery.search
    began: list[int] = []

    def overtaken(self: Gallery, query: Any) -> Any:
        if not began:
            began.append(self.spec.generation)
            activate(api, 2)
            delete(api, 1)
        return search(self, query)

    monkeypatch.setattr(Gallery, "search", overtaken)
    reply = api.find("g", by_bytes(png(1)))
    assert (began, reply.generation) == ([1], 2)
    assert images_of(reply)[0] == "1"


def test_an_activation_under_a_server_that_stops_says_so(both: tuple[RunningServer, Api], other_bundle: Bundle) -> None:
    stopping, api = both
    create(api)
    filled(api)
    queue_of_other = stopping.server.models.of_bundle(other_bundle.digest).queue
    encoder, held, entered = queue_of_other._encoder, threading.Event(), threading.Event()

    class Held:
        def encode(self, images: Any) -> Any:
            entered.set()
            held.wait(LIMIT_S)
            return encoder.encode(images)

    queue_of_other._encoder = Held()
    api.put_images("g", {"late": png(80)})
    assert entered.wait(LIMIT_S)
    refusals: list[Any] = []
    thread = threading.Thread(target=lambda: refusals.append(refusal_of(lambda: activate(api, 2))))
    thread.start()
    eventually(lambda: stopping.server.calls.count > 0)
    stopping.begin_stop()
    threading.Timer(1.0, held.set).start()
    thread.join(LIMIT_S)
    stopping.stop()
    assert (refusals[0].code, refusals[0].reason) in {
        ("UNAVAILABLE", "SHUTTING_DOWN"),
        ("FAILED_PRECONDITION", "GENERATION_NOT_READY"),
    }


def test_a_default_is_set_for_the_gallery_as_it_is_now(
    both: tuple[RunningServer, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, api = both
    create(api)
    filled(api)
    setting = Gallery.set_match_defaults
    switched: list[bool] = []

    def overtaken(self: Gallery, defaults: Any, **fields: Any) -> None:
        if not switched:
            switched.append(True)
            activate(api, 2)
        setting(self, defaults, **fields)

    monkeypatch.setattr(Gallery, "set_match_defaults", overtaken)
    max_sim = matching_pb2.Rerank(mode=matching_pb2.RERANK_MODE_MAX_SIM)
    request = gallery_pb2.UpdateGalleryRequest(gallery=gallery_pb2.Gallery(name="galleries/g", default_rerank=max_sim))
    reply = api.galleries.UpdateGallery(request, timeout=LIMIT_S)
    assert (reply.generation, reply.default_rerank.mode) == (2, matching_pb2.RERANK_MODE_MAX_SIM)
    assert api.find("g", by_name("g", "1")).rerank.mode == matching_pb2.RERANK_MODE_MAX_SIM
