"""The exceptions of matchflow_bundle.

BundleError
├── BundleInvalidError          not a bundle: files missing, unreadable, or not what the schema says
├── BundleExistsError           writing would replace a bundle, and that was not asked for
├── BundleCorruptError          a bundle whose bytes or behaviour are not those that were written
│   └── GoldenMismatchError     the golden inputs give other outputs on this machine
├── ProviderUnavailableError    ONNX Runtime can't use the execution provider asked for
└── EncoderInputError           images of another shape or type than the model takes
ImageError
├── ImageUnreadableError        not an image of a known format, or a damaged one
└── ImageTooLargeError          more bytes or pixels than allowed
"""

from __future__ import annotations


class BundleError(Exception):
    """Root of what this package raises about bundles and the models in them."""


class BundleInvalidError(BundleError):
    """A directory is not a bundle of a known schema."""


class BundleExistsError(BundleError):
    """A bundle stands where one is to be written."""


class BundleCorruptError(BundleError):
    """A bundle's bytes are not those that its manifest vouches for."""


class GoldenMismatchError(BundleCorruptError):
    """The model's outputs for the golden inputs are not the recorded ones."""


class ProviderUnavailableError(BundleError):
    """The execution provider asked for can't be used here."""


class EncoderInputError(BundleError):
    """Images have another shape or type than the model takes."""


class ImageError(Exception):
    """Root of what this package raises about an image's bytes."""


class ImageUnreadableError(ImageError):
    """Bytes are not an image of a known format, or a damaged one."""


class ImageTooLargeError(ImageError):
    """An image has more bytes or pixels than allowed."""
