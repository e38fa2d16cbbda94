"""The bundle: a model's schema, preprocessing, verification and encoder, run by ONNX Runtime; no torch."""

from matchflow_bundle.bundle import Bundle, load_bundle, write_bundle
from matchflow_bundle.encoder import Encoder
from matchflow_bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleExistsError,
    BundleInvalidError,
    EncoderInputError,
    GoldenMismatchError,
    ImageError,
    ImageTooLargeError,
    ImageUnreadableError,
    ProviderUnavailableError,
)
from matchflow_bundle.images import decode_image
from matchflow_bundle.manifest import BundleManifest
from matchflow_bundle.preprocessing import Preprocessing, ResizePolicy

__all__ = [
    "Bundle",
    "BundleCorruptError",
    "BundleError",
    "BundleExistsError",
    "BundleInvalidError",
    "BundleManifest",
    "Encoder",
    "EncoderInputError",
    "GoldenMismatchError",
    "ImageError",
    "ImageTooLargeError",
    "ImageUnreadableError",
    "Preprocessing",
    "ProviderUnavailableError",
    "ResizePolicy",
    "decode_image",
    "load_bundle",
    "write_bundle",
]
