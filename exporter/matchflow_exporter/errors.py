"""The exceptions of matchflow_exporter.

ExportError
├── SettingsInvalidError   a setting out of its range, or an architecture or checkpoint that is not known
├── HeadImagesError        the folder holds too few readable images to fit the head on
├── HeadFitError           the cells of those images do not span as many dimensions as are wanted
└── ParityError            ONNX Runtime's outputs are not the source model's; nothing is written
"""

from __future__ import annotations


class ExportError(Exception):
    """Root of what this package raises on purpose."""


class SettingsInvalidError(ExportError):
    """A setting is out of its range, or names nothing that is known."""


class HeadImagesError(ExportError):
    """A folder holds too few readable images."""


class HeadFitError(ExportError):
    """A projection head can't be fitted on these cells."""


class ParityError(ExportError):
    """The exported graph does not do what the source model does."""
