"""The exceptions of matchflow_matching.

MatchingError
├── FeaturesInvalidError   features of a wrong shape, type or value
└── SettingsInvalidError   a setting out of its range
"""

from __future__ import annotations


class MatchingError(Exception):
    """Root of what this package raises on purpose."""


class FeaturesInvalidError(MatchingError):
    """Features have another shape, type or value than was expected."""


class SettingsInvalidError(MatchingError):
    """A setting is out of its range."""
