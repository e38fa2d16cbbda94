"""What is asked of a server that has come back: is all there, does everything agree, does it answer as before."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import unified_diff
from itertools import islice
from typing import TYPE_CHECKING, Any

import grpc
from crash_traffic import CAMERAS, GALLERY, labels_of, sequence_of
from service_harness import LIMIT_S, by_name, image_name

from matchflow.v1 import gallery_pb2, search_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from crash_model import Findings, Model, Write
    from crash_traffic import Pool, Scene

PAGE = 1000
# Besides the images that were written since, so many others are looked at closely.
SAMPLED = 24
MOST_LINES = 40
COMPARED = search_pb2.Rerank(mode=search_pb2.RERANK_MODE_STRUCTURAL)
COARSE = search_pb2.Rerank(mode=search_pb2.RERANK_MODE_NONE, depth=PAGE)


@dataclass(slots=True)
class Inspection:
    """One look at everything while nobody writes; `where` says when that was."""

    scene: Scene
    where: str
    rng: Random
    images: dict[str, gallery_pb2.Image] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """What should be there."""
        return self.scene.model

    def run(self) -> None:
        """Look, note what is wrong, and let the model go on from what is there."""
        listed = list(self._listed())
        self.images = {image.name.rpartition("/")[2]: image for image in listed}
        if len(self.images) != len(listed):
            self._add("half", "an image is listed twice")
        touched = self.model.touched()
        others = [name for name in self.model.names if name not in set(touched)]
        close = touched + self.rng.sample(others, min(SAMPLED, len(others)))
        for name in self.model.names:
            self._check_record(name)
        for name in self.images.keys() - set(self.model.names):
            self._add("half", f"{name} was never sent")
        self._check_totals()
        self._check_found()
        for name in close:
            self._check_closely(name)

    def _add(self, kind: str, text: str) -> None:
        self.scene.findings.add(kind, f"{self.where}: {text}")

    def _listed(self) -> Iterator[gallery_pb2.Image]:
        token = ""
        while True:
            request = gallery_pb2.ListImagesRequest(
                parent=f"galleries/{GALLERY}", page_size=PAGE // 8, page_token=token
            )
            page = self.scene.api.galleries.ListImages(request, timeout=LIMIT_S)
            yield from page.images
            token = page.next_page_token
            if not token:
                return

    def _check_record(self, name: str) -> None:
        image = self.images.get(name)
        label = None if image is None else image.labels.values["write"]
        write = self.model.judge(name, label, self.scene.findings, self.where)
        if image is None or write is None or write.state is None:
            self.model.see(name, None)
            return
        if self._differs(image, write):
            self._add("half", f"{name} is {image}; {write} was written")
        self.model.see(name, write.state, sequence=sequence_of(image), row_id=image.row_id)

    def _differs(self, image: gallery_pb2.Image, write: Write) -> bool:
        state = write.state
        assert state is not None
        return (
            image.labels != labels_of(state)
            or image.content_hash != self.scene.pool.hashes[state.content]
            or write.sequence not in {None, sequence_of(image)}
            or write.row_id not in {None, image.row_id}
        )

    def _check_totals(self) -> None:
        gallery = self.scene.api.galleries.GetGallery(
            gallery_pb2.GetGalleryRequest(name=f"galleries/{GALLERY}"), timeout=LIMIT_S
        )
        newest = max([self.model.sequence, *map(sequence_of, self.images.values())])
        if gallery.sequence < newest:
            self._add("sequence_back", f"the gallery is at {gallery.sequence}, and was at {newest}")
        if gallery.image_count != len(self.images):
            self._add("half", f"{len(self.images)} images are listed, and {gallery.image_count} counted")
        self.model.sequence = max(newest, gallery.sequence)

    def _check_found(self) -> None:
        """A search without end finds what is listed, and each as it is listed."""
        query = search_pb2.Query(features=self.scene.pool.messages[0])
        found = self.scene.api.find(GALLERY, query, top_k=PAGE, rerank=COARSE, max_flows=0)
        hits = {hit.image.name.rpartition("/")[2]: hit.image for hit in found.hits}
        for name in hits.keys() | self.images.keys():
            if hits.get(name) != self.images.get(name):
                self._add("half", f"{name} is found as {hits.get(name)} and listed as {self.images.get(name)}")

    def _check_closely(self, name: str) -> None:
        state, full = self.model.state(name), image_name(GALLERY, name)
        got = answer_of(lambda: self.scene.api.galleries.GetImage(gallery_pb2.GetImageRequest(name=full)))
        if got != self.images.get(name, grpc.StatusCode.NOT_FOUND):
            self._add("half", f"{name} is {got}, and listed as {self.images.get(name)}")
        found = answer_of(lambda: self.scene.api.find(GALLERY, by_name(GALLERY, name), top_k=1, rerank=COARSE))
        if state is None:
            if found is not grpc.StatusCode.NOT_FOUND:
                self._add("resurrected", f"{name} is gone, and yet its features are searched by")
            return
        # The features that are stored match those that were sent just as those match themselves.
        sent = search_pb2.Query(features=self.scene.pool.messages[state.content])
        expected = self.scene.pool.own_scores.get(state.content)
        if expected is None:
            expected = self.scene.pool.own_scores[state.content] = self._compared(sent, sent)
        stored = self._compared(search_pb2.Query(image=full), sent)
        if isinstance(found, grpc.StatusCode) or stored != expected:
            self._add("half", f"{name} has other features than {state} had: {stored!r}")

    def _compared(self, query: search_pb2.Query, image: search_pb2.Query) -> bytes | grpc.StatusCode:
        request = search_pb2.CompareRequest(query=query, image=image, rerank=COMPARED)
        reply = answer_of(lambda: self.scene.api.search.Compare(request, timeout=LIMIT_S))
        return reply if isinstance(reply, grpc.StatusCode) else reply.match.SerializeToString(deterministic=True)


def answer_of(call: Any) -> Any:
    """Return a call's reply, or the code with which it was refused."""
    try:
        return call()
    except grpc.RpcError as error:
        return error.code()


def questions(model: Model, pool: Pool, rng: Random) -> list[search_pb2.SearchRequest]:
    """Return searches of all kinds: by stored image and by features, filtered, grouped, exhaustive."""
    present = [name for name, _ in model.present()]
    requests = []
    for name in rng.sample(present, min(10, len(present))):
        requests += [
            asked(by_name(GALLERY, name), depth=50),
            asked(by_name(GALLERY, name), depth=PAGE, filter=some_filter(rng)),
            asked(by_name(GALLERY, name), depth=5, exhaustive=True, filter=some_filter(rng)),
        ]
    for _ in range(5):
        query = search_pb2.Query(features=pool.messages[rng.randrange(len(pool))])
        requests += [
            asked(query, depth=100, group_by="camera", group_limit=2),
            asked(query, depth=5, exhaustive=True),
            search_pb2.SearchRequest(gallery=f"galleries/{GALLERY}", query=query, top_k=100, rerank=COARSE),
        ]
    return requests


def asked(query: search_pb2.Query, *, depth: int, **fields: Any) -> search_pb2.SearchRequest:
    """Return a search with structural scores and flows."""
    return search_pb2.SearchRequest(
        gallery=f"galleries/{GALLERY}",
        query=query,
        top_k=8,
        max_flows=16,
        rerank=search_pb2.Rerank(mode=search_pb2.RERANK_MODE_STRUCTURAL, depth=depth),
        **fields,
    )


def some_filter(rng: Random) -> search_pb2.Filter:
    """Return a filter by label, number or same camera."""
    low = rng.uniform(0, 100)
    cameras = [f"c{k}" for k in rng.sample(range(CAMERAS), 2)]
    return rng.choice(
        [
            search_pb2.Filter(labels=[search_pb2.LabelCondition(field="camera", any_of=cameras)]),
            search_pb2.Filter(labels=[search_pb2.LabelCondition(field="camera", any_of=cameras, negated=True)]),
            search_pb2.Filter(
                labels=[
                    search_pb2.LabelCondition(field="age", number_range=search_pb2.NumberRange(gte=low, lt=low + 40))
                ]
            ),
            search_pb2.Filter(exclude_same=["camera"]),
        ]
    )


def answers(scene: Scene, requests: list[search_pb2.SearchRequest]) -> list[search_pb2.SearchResponse]:
    """Return the answers without what differs between any two to the same question: times and query id.

    How many images an exhaustive search matched, and of how many a bound sufficed, depends on its pace too: it matches
    as many at once as it can between two looks at its deadline. The sum of both does not.
    """
    found = []
    for request in requests:
        reply = scene.api.search.Search(request, timeout=LIMIT_S)
        reply.ClearField("timings")
        reply.ClearField("query_id")
        if request.exhaustive:
            reply.proved_below += reply.rerank_status.depth_done
            reply.rerank_status.ClearField("depth_done")
        found.append(reply)
    return found


def compare_answers(
    findings: Findings,
    requests: list[search_pb2.SearchRequest],
    before: list[search_pb2.SearchResponse],
    after: list[search_pb2.SearchResponse],
    where: str,
) -> None:
    """Note each answer that is another one now, to the last bit."""
    for request, then, now in zip(requests, before, after, strict=True):
        if then.SerializeToString(deterministic=True) != now.SerializeToString(deterministic=True):
            lines = unified_diff(shown(then), shown(now), "before", "after", lineterm="", n=0)
            asked_by = request.query.image or "features"
            request.query.ClearField("source")
            text = "\n".join(islice(lines, MOST_LINES))
            findings.add("different_answers", f"{where}: {asked_by}, {request}: {text}")


def shown(reply: search_pb2.SearchResponse) -> list[str]:
    """Return all values of a reply, a line each that says where it stands."""
    lines = []

    def walk(value: Any, path: str) -> None:
        if not hasattr(value, "ListFields"):
            lines.append(f"{path} = {value!r}")
            return
        for each, inner in value.ListFields():
            if each.message_type is None or each.message_type.GetOptions().map_entry or not hasattr(inner, "__len__"):
                walk(inner, f"{path}.{each.name}")
            else:
                for k, one in enumerate(inner):
                    walk(one, f"{path}.{each.name}[{k}]")

    walk(reply, "")
    return lines
