"""Labels of an import: from what a table, a folder or a sample says to texts, numbers and times."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from matchflow_cli.bulk_samples import Reason, RejectedError
from matchflow_cli.options import LABEL_NAME
from matchflow_cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

LabelValue: TypeAlias = str | float | dt.datetime
Labels: TypeAlias = Mapping[str, LabelValue]

MAX_TEXT_LENGTH = 256
MAX_LABELS = 64
# Beyond, float64 skips whole numbers, and two ids that differ could become one.
MAX_WHOLE = 2**53
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRules:
    """Which labels are taken, and which texts among them are numbers or times.

    names: only these; None takes all. Values that come typed keep their type: whole and real numbers are numbers, dates
    and timestamps times, truth values the texts "true" and "false". A time without a zone is UTC.
    """

    names: frozenset[str] | None = None
    numbers: frozenset[str] = frozenset()
    times: frozenset[str] = frozenset()

    def wants(self, name: str) -> bool:
        """Say whether a label is taken."""
        return self.names is None or name in self.names

    def labels(self, values: Mapping[str, object]) -> dict[str, LabelValue]:
        """Return the labels that are wanted; what is empty or None gives none. Raises RejectedError."""
        return {
            name: self._typed(name, value)
            for name, value in values.items()
            if self.wants(name) and value is not None and value != ""
        }

    def _typed(self, name: str, value: object) -> LabelValue:
        try:
            if name in self.numbers:
                return _number(value)
            if name in self.times:
                return _time(value)
            return _as_it_is(value)
        except (ValueError, OverflowError) as error:
            raise RejectedError(Reason.LABEL_INVALID, f"label {printable(name)}: {error}") from error


def check_labels(labels: Labels) -> None:
    """Raise RejectedError for labels that the contract does not take, before their image is sent for nothing."""
    if len(labels) > MAX_LABELS:
        raise RejectedError(Reason.LABEL_INVALID, f"expected at most {MAX_LABELS} labels; got {len(labels)}")
    for name, value in labels.items():
        if not LABEL_NAME.fullmatch(name):
            raise RejectedError(
                Reason.LABEL_INVALID,
                f"expected a label name of 1-64 characters of a-z, 0-9 and _; got {printable(name)!r:.80}",
            )
        if isinstance(value, str):
            _check_text(name, value)


def labels_digest(labels: Labels) -> bytes:
    """Return a digest of labels that tells a text from a number or a time that looks the same."""
    digest = hashlib.sha256()
    for name, value in sorted(labels.items()):
        match value:
            case str():
                kind, said = b"s", value.encode()
            case dt.datetime():
                kind, said = b"t", str((value - EPOCH) // MICROSECOND).encode()
            case _:
                kind, said = b"n", struct.pack("<d", value + 0.0)  # -0.0 equals 0.0
        digest.update(b"%d %b=%b%d:%b;" % (len(name), name.encode(), kind, len(said), said))
    return digest.digest()


def unknown_columns(rules: LabelRules, columns: Iterable[str]) -> list[str]:
    """Return the columns that the rules name and the table does not have."""
    return sorted(((rules.names or frozenset()) | rules.numbers | rules.times) - set(columns))


def _check_text(name: str, value: str) -> None:
    if len(value) > MAX_TEXT_LENGTH:
        raise RejectedError(
            Reason.LABEL_INVALID, f"label {name}: expected at most {MAX_TEXT_LENGTH} characters; got {len(value):,}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RejectedError(Reason.LABEL_INVALID, f"label {name}: {printable(value)!r} is no Unicode text") from error


def _as_it_is(value: object) -> LabelValue:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return _number(value)
        case dt.date():
            return _time(value)
        case _:
            raise ValueError(f"expected a text, a number or a time; got {_shown(value)}")


def _number(value: object) -> float:
    if isinstance(value, str):
        if not NUMBER.fullmatch(value.strip()):
            raise ValueError(f"expected a number such as 3 or 2.5e-3; got {_shown(value)}")
        value = value.strip()
        value = int(value) if len(value) < MAX_TEXT_LENGTH and value.lstrip("+-").isdecimal() else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError(f"expected a number; got {_shown(value)}")  # noqa: TRY004 - one error for what is no number
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ValueError(
            f"expected a whole number of at most 2**53, which a float64 holds exactly; got {_shown(value)}"
        )
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number; got {_shown(value)}")
    made = float(value)
    if not math.isfinite(made):
        raise ValueError(f"expected a number that a float64 can hold; got {_shown(value)}")
    return made


def _time(value: object) -> dt.datetime:
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"expected a time such as 2026-01-31T12:00:00+01:00; got {_shown(value)}") from None
    elif isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if not isinstance(value, dt.datetime):
        raise ValueError(f"expected a time; got {_shown(value)}")  # noqa: TRY004 - as in _number
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def _shown(value: object) -> str:
    return printable(f"{value!r:.60}" if isinstance(value, str) else f"{type(value).__name__} {str(value)[:60]}")
