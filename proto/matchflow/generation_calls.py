"""What the clients can do with generations of a gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matchflow import generations
from matchflow.connection import AsyncConnection, Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from matchflow.generations import Generation, GenerationComparison
    from matchflow.matching import RerankSettings


class GenerationCalls(Connection):
    """The part of `Client` about generations."""

    def create_generation(self, gallery: str, *, model: str = "", rerank: RerankSettings | None = None) -> Generation:
        """Begin a second generation of a gallery under another model; without `model` the server's default one.

        It is filled in the background, from the kept thumbnails. rerank: how its pairs are scored when a call names no
        mode; None: as in the gallery. Raises GalleryNotFoundError, ModelNotFoundError and GenerationExistsError.
        """
        return self._run(generations.create(gallery, model=model, rerank=rerank))

    def get_generation(self, gallery: str, generation: int) -> Generation:
        """Return a generation; raises GalleryNotFoundError and GenerationNotFoundError."""
        return self._run(generations.get(gallery, generation))

    def list_generations(self, gallery: str) -> list[Generation]:
        """Return the generations of a gallery, the active one first; raises GalleryNotFoundError."""
        return self._run(generations.list_all(gallery))

    def missing_images(self, gallery: str, generation: int) -> Iterator[str]:
        """Give the ids of the images of the active generation that this one lacks or has otherwise, page by page.

        Raises GalleryNotFoundError and GenerationNotFoundError.
        """
        return self._pages(lambda token: generations.list_missing(gallery, generation, token))

    def compare_generations(
        self,
        gallery: str,
        generation: int,
        *,
        query_count: int = 200,
        top_k: int = 10,
        label: str = "",
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> GenerationComparison:
        """Ask a generation and the active one the same, with stored images; changes nothing.

        query_count: images to ask with, 1 to 1,000, drawn by `seed` from those that both have. top_k: 1 to 100 hits for
        each. label: tells which hits are right, those with the query's value. Raises GalleryNotFoundError,
        GenerationNotFoundError and GenerationActiveError.
        """
        call = generations.compare(gallery, generation, query_count=query_count, top_k=top_k, label=label, seed=seed)
        return self._run(call, timeout_s)

    def activate_generation(self, gallery: str, generation: int, *, allow_missing: bool = False) -> Generation:
        """Make a generation the one that answers; activating the earlier one again is the way back.

        allow_missing: also one that lacks images; nobody finds those meanwhile. Raises GalleryNotFoundError,
        GenerationNotFoundError and GenerationNotReadyError.
        """
        return self._run(generations.activate(gallery, generation, allow_missing=allow_missing))

    def delete_generation(self, gallery: str, generation: int) -> None:
        """Delete a generation that is not active, with everything computed for it.

        Raises GalleryNotFoundError, GenerationNotFoundError and GenerationActiveError.
        """
        self._run(generations.delete(gallery, generation))


class AsyncGenerationCalls(AsyncConnection):
    """The part of `AsyncClient` about generations."""

    async def create_generation(
        self, gallery: str, *, model: str = "", rerank: RerankSettings | None = None
    ) -> Generation:
        """Begin a second generation of a gallery under another model; without `model` the server's default one.

        It is filled in the background, from the kept thumbnails. rerank: how its pairs are scored when a call names no
        mode; None: as in the gallery. Raises GalleryNotFoundError, ModelNotFoundError and GenerationExistsError.
        """
        return await self._run(generations.create(gallery, model=model, rerank=rerank))

    async def get_generation(self, gallery: str, generation: int) -> Generation:
        """Return a generation; raises GalleryNotFoundError and GenerationNotFoundError."""
        return await self._run(generations.get(gallery, generation))

    async def list_generations(self, gallery: str) -> list[Generation]:
        """Return the generations of a gallery, the active one first; raises GalleryNotFoundError."""
        return await self._run(generations.list_all(gallery))

    def missing_images(self, gallery: str, generation: int) -> AsyncIterator[str]:
        """Give the ids of the images of the active generation that this one lacks or has otherwise, page by page.

        Raises GalleryNotFoundError and GenerationNotFoundError.
        """
        return self._pages(lambda token: generations.list_missing(gallery, generation, token))

    async def compare_generations(
        self,
        gallery: str,
        generation: int,
        *,
        query_count: int = 200,
        top_k: int = 10,
        label: str = "",
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> GenerationComparison:
        """Ask a generation and the active one the same, with stored images; changes nothing.

        query_count: images to ask with, 1 to 1,000, drawn by `seed` from those that both have. top_k: 1 to 100 hits for
        each. label: tells which hits are right, those with the query's value. Raises GalleryNotFoundError,
        GenerationNotFoundError and GenerationActiveError.
        """
        call = generations.compare(gallery, generation, query_count=query_count, top_k=top_k, label=label, seed=seed)
        return await self._run(call, timeout_s)

    async def activate_generation(self, gallery: str, generation: int, *, allow_missing: bool = False) -> Generation:
        """Make a generation the one that answers; activating the earlier one again is the way back.

        allow_missing: also one that lacks images; nobody finds those meanwhile. Raises GalleryNotFoundError,
        GenerationNotFoundError and GenerationNotReadyError.
        """
        return await self._run(generations.activate(gallery, generation, allow_missing=allow_missing))

    async def delete_generation(self, gallery: str, generation: int) -> None:
        """Delete a generation that is not active, with everything computed for it.

        Raises GalleryNotFoundError, GenerationNotFoundError and GenerationActiveError.
        """
        await self._run(generations.delete(gallery, generation))
