"""The exceptions of matchflow_matching.

MatchingError
├── FeaturesInvalidError   features of a wrong shape, type or value
└── SettingsInvalidError   a setting out of its range, or not for this mode
"""

from __future__ import annotations


class MatchingError(Exception):
    """Root of what this package raises on purpose."""


class FeaturesInvalidError(MatchingError):
    """Features have another shape, type or value than was expected."""


class SettingsInvalidError(MatchingError):
    """A setting is out of its range, or is one that the mode does not take; `field` is its name, where there is one."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field
