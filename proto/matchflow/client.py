"""The synchronous client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matchflow import calls, ranking, replies
from matchflow.filtering import search_filter
from matchflow.generation_calls import GenerationCalls
from matchflow.ingest import MAX_ITEMS_IN_FLIGHT, IngestLedger
from matchflow.ingest_stream import IngestStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from matchflow.errors import MatchflowError
    from matchflow.filtering import LabelConditions
    from matchflow.ingest import IngestItem, IngestSummary, OnResult
    from matchflow.labels import Expiry, Labels
    from matchflow.matches import Comparison, Explanation, Hit, SearchResult
    from matchflow.matching import RerankMode, Tuning
    from matchflow.sources import ImageFile, QuerySource
    from matchflow.values import (
        DeletedImages,
        Features,
        Gallery,
        Health,
        Image,
        ImageRef,
        Model,
    )


class Client(GenerationCalls):
    """A connection to a Matchflow server; safe to share between threads. Close it, or use it in `with`.

    target: "host:port". timeout_s: deadline of every call but `ingest`; `search` and its kin also take their own.
    credentials: for TLS; without, the connection is plain text. Every method raises the exceptions of matchflow.errors.
    """

    def create_gallery(self, gallery: str, *, model: str = "", thumbnails: bool = True) -> Gallery:
        """Create a gallery for images of one model; without `model` the server's default one."""
        return self._run(calls.create_gallery(gallery, model=model, thumbnails=thumbnails))

    def get_gallery(self, gallery: str) -> Gallery:
        """Return a gallery."""
        return self._run(calls.get_gallery(gallery))

    def list_galleries(self) -> Iterator[Gallery]:
        """Give every gallery, page by page."""
        return self._pages(calls.list_galleries)

    def set_default_rerank(
        self,
        gallery: str,
        *,
        mode: RerankMode | str | None = None,
        depth: int | None = None,
        tuning: Tuning | None = None,
    ) -> Gallery:
        """Choose how a gallery's pairs are scored when a call names no mode; without arguments as in the paper."""
        return self._run(calls.set_default_rerank(gallery, ranking.rerank(mode, tuning, depth=depth)))

    def delete_gallery(self, gallery: str) -> None:
        """Delete a gallery and every image in it."""
        self._run(calls.delete_gallery(gallery))

    def get_image(self, image: ImageRef) -> Image:
        """Return a stored image's record."""
        return self._run(calls.get_image(image))

    def list_images(self, gallery: str) -> Iterator[Image]:
        """Give every image of a gallery in the order of ids, page by page."""
        return self._pages(lambda token: calls.list_images(gallery, token))

    def update_labels(self, image: ImageRef, labels: Labels, *, etag: str = "") -> Image:
        """Replace the labels of a stored image; with an `etag` only where that is still the image's."""
        return self._run(calls.update_labels(image, labels, etag=etag))

    def set_expire_time(self, image: ImageRef, expire_time: Expiry | None, *, etag: str = "") -> Image:
        """Say when a stored image is gone of itself, or in how long; None: it stays. `etag` as in update_labels."""
        return self._run(calls.set_expire_time(image, expire_time, etag=etag))

    def delete_images(
        self, gallery: str, image_ids: Iterable[str], *, etags: Mapping[str, str] | None = None
    ) -> DeletedImages:
        """Delete images; ids that are not there are counted, not an error.

        etags: by image id; one that is no longer the image's ends the deletion, which goes by 1,000 ids at a time.
        """
        return calls.add_deletions(map(self._run, calls.delete_images(gallery, image_ids, etags)))

    def ingest(
        self,
        gallery: str,
        items: Iterable[IngestItem],
        *,
        on_result: OnResult | None = None,
        max_in_flight: int = MAX_ITEMS_IN_FLIGHT,
        generation: int = 0,
    ) -> IngestSummary:
        """Put images in, and say what became of each.

        Files are read one by one as the server takes them. `items` is consumed on another thread; `on_result` is called
        on this one. An item that fails is in the summary and stops nothing. Raises when the stream itself fails, with
        `.acknowledged` items stored; sending all again is safe, and skips those.

        generation: one that lacks the images, which the gallery must hold with this very content (ImageNotFoundError,
        ContentDiffersError); only features are taken then, no labels and no end. 0: the active one.
        """
        ledger = IngestLedger(gallery, max_items=max_in_flight, generation=generation)
        return IngestStream(ledger, items).run(self._channel, self.target, on_result)

    def search(
        self,
        query: QuerySource,
        *,
        gallery: str,
        top_k: int = 10,
        mode: RerankMode | str | None = None,
        depth: int | None = None,
        tuning: Tuning | None = None,
        max_flows: int = 8,
        where: LabelConditions | None = None,
        where_not: LabelConditions | None = None,
        images: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        exclude_same: Iterable[str] = (),
        group_by: str = "",
        group_limit: int | None = None,
        min_score: float | None = None,
        include_query_image: bool = False,
        exhaustive: bool = False,
        at_least_sequence: int = 0,
        generation: int = 0,
        timeout_s: float | None = None,
    ) -> SearchResult[Hit]:
        """Find the images of a gallery that match best.

        query: a file's path, encoded bytes, an ImageRef of a stored image, or Features. depth: coarse candidates that
        are re-ranked. where: what must hold of a hit's labels, {"designer": "noto"}, {"designer": ["noto", "fluent"]},
        {"age": Between(gte=18)}, {"camera": Not("c1")}; where_not: what must not. images: the only ids that may be
        hits; exclude: ids that never are. exclude_same: labels in which a hit must differ from the stored query image.
        group_by: at most `group_limit` hits (1 unless given) for each value of this label. A stored query image is no
        hit of its own unless asked for. at_least_sequence: answer from a state that has this change. When the deadline
        comes early, the answer says so in `rerank`. exhaustive: match beyond `depth` until the answer is proved to be
        that of matching everything, and says so in `exact`. generation: the one to search; 0: the active one.

        Without a `mode` the gallery's default one scores, and what `tuning` leaves out is as there; the answer's
        `rerank_settings` say how it was scored.
        """
        request = calls.search_request(
            query,
            gallery=gallery,
            top_k=top_k,
            rerank=ranking.rerank(mode, tuning, depth=depth),
            max_flows=max_flows,
            filter_=search_filter(
                gallery,
                where=where,
                where_not=where_not,
                images=images,
                exclude=exclude,
                exclude_same=exclude_same,
            ),
            min_score=min_score,
            include_query_image=include_query_image,
            exhaustive=exhaustive,
            group_by=group_by,
            group_limit=group_limit,
            at_least_sequence=at_least_sequence,
            generation=generation,
        )

        reply = self._run(calls.search(request), timeout_s)
        return replies.search_result(
            reply, lambda hit: replies.hit(hit, lambda: self._run(calls.render_hit(request, reply, hit)))
        )

    def compare(
        self,
        query: QuerySource,
        image: QuerySource,
        *,
        mode: RerankMode | str | None = None,
        tuning: Tuning | None = None,
        max_flows: int | None = None,
        model: str = "",
        generation: int = 0,
        timeout_s: float | None = None,
    ) -> Comparison:
        """Score any two images with their full plan; `model` counts when neither is stored.

        generation: where stored images are taken from; 0: the active one of each gallery.
        """
        rerank = ranking.rerank(mode, tuning)
        return self._run(
            calls.compare(query, image, rerank=rerank, max_flows=max_flows, model=model, generation=generation),
            timeout_s,
        )

    def explain(
        self,
        query: QuerySource,
        image: ImageRef,
        *,
        mode: RerankMode | str | None = None,
        tuning: Tuning | None = None,
        max_flows: int | None = None,
        generation: int = 0,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Say again what a search says of a stored image, with its full plan unless `max_flows` limits it.

        generation: that of a SearchResult gives its evidence again, also after a switch; 0: the active one.
        """
        call = calls.explain(
            query, image, rerank=ranking.rerank(mode, tuning), max_flows=max_flows, generation=generation
        )
        return self._run(call, timeout_s)

    def render_match(
        self,
        query: QuerySource,
        image: ImageRef,
        *,
        mode: RerankMode | str | None = None,
        tuning: Tuning | None = None,
        max_flows: int | None = None,
        height_px: int | None = None,
        generation: int = 0,
        timeout_s: float | None = None,
    ) -> bytes:
        """Draw query and stored image side by side, matched parts joined; a PNG's bytes. `generation` as in explain."""
        rerank = ranking.rerank(mode, tuning)
        call = calls.render_match(
            query, image, rerank=rerank, max_flows=max_flows, height_px=height_px, generation=generation
        )
        return self._run(call, timeout_s)

    def embed(
        self, images: Iterable[ImageFile], *, model: str = "", timeout_s: float | None = None
    ) -> list[Features | MatchflowError]:
        """Compute features of images that need not be stored; a bad image has its error in place of features."""
        return [one for call in calls.embed(images, model=model) for one in self._run(call, timeout_s)]

    def get_model(self, model: str) -> Model:
        """Return a model that the server runs."""
        return self._run(calls.get_model(model))

    def models(self) -> list[Model]:
        """Return every model that the server runs."""
        return list(self._pages(calls.list_models))

    def health(self, service: str = "") -> Health:
        """Return the health of the server, or of one service such as "matchflow.v1.SearchService"."""
        return self._run(calls.health(service))
