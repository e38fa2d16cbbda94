"""A bundle's model, run by ONNX Runtime on the provider that was asked for, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnxruntime

from matchflow_bundle.errors import (
    BundleInvalidError,
    EncoderInputError,
    GoldenMismatchError,
    ProviderUnavailableError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_bundle.bundle import Bundle

CPU = "CPUExecutionProvider"
INPUT_NAME = "images"
OUTPUT_NAMES = ("embedding", "cells")
LOG_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A model that passed its goldens on `provider`; threads may share it, and it runs without the GIL."""

    bundle: Bundle
    provider: str
    session: Any

    @classmethod
    def open(cls, bundle: Bundle, *, provider: str = CPU, threads: int = 1) -> Self:
        """Load the model with `threads` threads to one call and check its goldens.

        Raises ProviderUnavailableError if ONNX Runtime would run it elsewhere than on `provider`, GoldenMismatchError
        if the outputs are not the recorded ones, BundleCorruptError or BundleInvalidError for a damaged model.
        """
        session = open_session(bundle.read_model(), provider=provider, threads=threads)
        encoder = cls(bundle=bundle, provider=provider, session=session)
        encoder.check_goldens()
        return encoder

    def encode(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the embeddings [n, D] and cells [n, R, D], float32 of unit length, of inputs uint8 [n, H, W, 3]."""
        manifest = self.bundle.manifest
        expected = (manifest.height_px, manifest.width_px, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise EncoderInputError(
                f"expected uint8 images {['n', *expected]}; got {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            dim = manifest.embedding_dim
            return np.empty((0, dim), np.float32), np.empty((0, manifest.grid.size, dim), np.float32)
        return run_session(self.session, images)

    def check_goldens(self) -> None:
        """Run the golden inputs; raise GoldenMismatchError if an output is off by more than the recorded tolerance."""
        manifest = self.bundle.manifest
        goldens = manifest.goldens
        expected = goldens.outputs(manifest.grid, manifest.embedding_dim)
        images = goldens.images()
        try:
            actual = self.encode(images)
        except EncoderInputError as error:
            raise BundleInvalidError(f"the golden inputs do not fit the model: {error}") from error
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise BundleInvalidError(f"the model does not take what the manifest says: {error}") from error
        for name, got, want in zip(OUTPUT_NAMES, actual, expected, strict=True):
            if got.shape != want.shape:
                raise BundleInvalidError(f"expected {name} of shape {list(want.shape)}; got {list(got.shape)}")
            worst = float(np.abs(got - want).max())
            if not worst <= goldens.tolerance:
                raise GoldenMismatchError(
                    f"{name} of the golden inputs is off by {worst:.3g} on {self.provider}; "
                    f"expected at most {goldens.tolerance:.3g}"
                )


def open_session(model: bytes, *, provider: str = CPU, threads: int = 1) -> Any:
    """Return an ONNX Runtime session of `model` on `provider`, and on nothing else in its place."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ProviderUnavailableError(f"expected {provider}; ONNX Runtime offers here {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # Threads that spin while they wait steal the cores that searches run on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no root
        raise BundleInvalidError(f"ONNX Runtime can't load the model on {provider}: {error}") from error
    if session.get_providers()[0] != provider:
        raise ProviderUnavailableError(f"expected {provider}; ONNX Runtime chose {session.get_providers()[0]}")
    names = tuple(value.name for value in session.get_inputs()), tuple(value.name for value in session.get_outputs())
    if names != ((INPUT_NAME,), OUTPUT_NAMES):
        raise BundleInvalidError(f"expected input {INPUT_NAME} and outputs {OUTPUT_NAMES}; the model has {names}")
    return session


def run_session(session: Any, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run inputs uint8 [n, H, W, 3] through a session of `open_session`."""
    embeddings, cells = session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
    return embeddings, cells
