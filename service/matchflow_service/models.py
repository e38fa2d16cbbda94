"""The loaded bundles, each with its encoder and queue, found by name or by digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matchflow_service.errors import BundleNotLoadedError, ModelNotFoundError

if TYPE_CHECKING:
    from matchflow_bundle import BundleManifest, Encoder, Preprocessing
    from matchflow_matching import CellGrid
    from matchflow_service.encoding import EncoderQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle that passed its golden inputs, and the queue before it."""

    name: str
    encoder: Encoder
    queue: EncoderQueue

    @property
    def bundle_digest(self) -> str:
        """The digest of the bundle."""
        return self.encoder.bundle.digest

    @property
    def manifest(self) -> BundleManifest:
        """What the bundle says of itself."""
        return self.encoder.bundle.manifest

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return self.encoder.bundle.manifest.preprocessing

    @property
    def grid(self) -> CellGrid:
        """The cells of an image."""
        return self.manifest.grid

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.manifest.embedding_dim


class Models:
    """The models that this server runs; the first is the default."""

    def __init__(self, models: list[Model]) -> None:
        self._by_name = {model.name: model for model in models}
        self._by_digest = {model.bundle_digest: model for model in models}
        self._default = models[0]

    def by_name(self) -> list[Model]:
        """Return all models in order of name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def named(self, model_id: str) -> Model:
        """Return the model of that name, the default for an empty name; raise ModelNotFoundError."""
        if not model_id:
            return self._default
        try:
            return self._by_name[model_id]
        except KeyError:
            raise ModelNotFoundError(model_id, sorted(self._by_name)) from None

    def of_bundle(self, digest: str) -> Model:
        """Return the model with that bundle digest; raise BundleNotLoadedError."""
        try:
            return self._by_digest[digest]
        except KeyError:
            raise BundleNotLoadedError(digest, sorted(self._by_digest)) from None
