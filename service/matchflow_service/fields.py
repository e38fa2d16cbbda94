"""Checks of request fields. Each returns the value to work with or raises FieldInvalidError: expected ..., got ..."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from matchflow_service.errors import FieldInvalidError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LABEL_VALUE_LENGTH = 256
LABEL_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


def whole(value: int, field: str, *, low: int, high: int, unit: str = "") -> int:
    """Return a whole number from `low` to `high`; `unit` says of what, where the field's name doesn't."""
    if not low <= value <= high:
        expected = f"{low:,} to {high:,} {unit}".rstrip()
        raise FieldInvalidError(field, f"expected {expected}; got {value:,}")
    return value


def written(value: float) -> float:
    """Return the shortest decimal that float32 rounds to the same number.

    The wire carries float32: this is what the client wrote, so that 0.05 means the same here as in a default.
    """
    return float(str(np.float32(value)))


def real(value: float, field: str, *, low: float, high: float) -> float:
    """Return a number from `low` to `high`, as it was written."""
    number = written(value)
    if not low <= number <= high:
        raise FieldInvalidError(field, f"expected {low:g} to {high:g}; got {number:g}")
    return number


def finite(value: float, field: str) -> float:
    """Return a number that is neither infinite nor NaN."""
    if not math.isfinite(value):
        raise FieldInvalidError(field, f"expected a finite number; got {value}")
    return value


def page_size(value: int) -> int:
    """Return how many entries a page has; 0 on the wire means the default."""
    return whole(value, "page_size", low=0, high=MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def at_most(values: Sequence[object], field: str, limit: int) -> None:
    """Refuse a list of more than `limit` entries."""
    if len(values) > limit:
        raise FieldInvalidError(field, f"expected at most {limit:,} entries; got {len(values):,}")


def label_name(name: str, field: str) -> str:
    """Return the name of a label."""
    if not LABEL_NAME.fullmatch(name):
        raise FieldInvalidError(field, f"expected a label name of 1-64 characters of [a-z0-9_]; got {shown(name)}")
    return name


def label_value(value: str, field: str) -> str:
    """Return the value of a label."""
    if len(value) > MAX_LABEL_VALUE_LENGTH:
        raise FieldInvalidError(
            field, f"expected a value of at most {MAX_LABEL_VALUE_LENGTH} characters; got {len(value)}"
        )
    return value
