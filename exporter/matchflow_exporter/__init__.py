"""The exporter: a trained model and a folder of images become a bundle; the only package that needs torch."""

from matchflow_exporter.errors import ExportError, HeadFitError, HeadImagesError, ParityError, SettingsInvalidError
from matchflow_exporter.export import ExportSettings, export_bundle

__all__ = [
    "ExportError",
    "ExportSettings",
    "HeadFitError",
    "HeadImagesError",
    "ParityError",
    "SettingsInvalidError",
    "export_bundle",
]
