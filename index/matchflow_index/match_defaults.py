"""What a search of a gallery means where it does not say how to match: settings that can be changed at any time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Self

from matchflow_index.errors import InvalidQueryError, StoreUnavailableError
from matchflow_index.records import compact_json
from matchflow_matching import MatchSettings, SettingsInvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchDefaults:
    """How to match, and how many candidates; as it stands, what the paper does. InvalidQueryError for a depth below 1.

    Whether the settings fit the gallery's grid is for whoever sets them to know.
    """

    settings: MatchSettings = field(default_factory=MatchSettings)
    depth: int = 100

    def __post_init__(self) -> None:
        """Refuse a depth that no search takes."""
        if self.depth < 1:
            raise InvalidQueryError(f"depth must be at least 1; got {self.depth}")

    def encode(self) -> bytes:
        """Return the defaults as JSON, every setting by its name."""
        settings = {each.name: getattr(self.settings, each.name) for each in fields(self.settings)}
        return compact_json({"depth": self.depth, "settings": settings})

    @classmethod
    def decode(cls, data: bytes, gallery_id: str) -> Self:
        """Return what `encode` wrote; StoreUnavailableError for anything else, such as a mode of a later program.

        A setting that is not there was not known to the program that wrote it: it has its plain value.
        """
        try:
            values = json.loads(data)
            settings, depth = values.pop("settings"), values.pop("depth")
            if values:
                raise ValueError(f"unknown {sorted(values)}")
            read = {name: _typed(name, value) for name, value in settings.items()}
            return cls(settings=MatchSettings(**read), depth=_whole("depth", depth))
        except (
            *(AttributeError, KeyError, OverflowError, TypeError, ValueError),
            *(SettingsInvalidError, InvalidQueryError),
        ) as error:
            raise StoreUnavailableError(
                f"the match defaults of gallery {gallery_id} can't be read; set them again: {error!r}"
            ) from error


def _typed(name: str, value: Any) -> Any:
    """Return a setting as its field holds it; AttributeError without such a field, TypeError, ValueError."""
    plain = getattr(MatchSettings(), name)
    if isinstance(plain, str):
        return type(plain)(value)
    if isinstance(plain, int):
        return _whole(name, value)
    if type(value) not in {int, float}:
        raise TypeError(f"{name} is {value!r}")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r}")
    return value
