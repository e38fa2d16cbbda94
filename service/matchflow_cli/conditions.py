"""Conditions on labels as one writes them on a command line."""

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping

import matchflow
from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE

CONDITION = re.compile(r"([^=<>!]+)(!=|==|>=|<=|=|>|<)(.*)", re.DOTALL)
ENDS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}


def parse_where(where: Iterable[str], where_not: Iterable[str]) -> dict[str, matchflow.AllOf]:
    """Return what must hold of each label; CommandError for a text that is no condition.

    label=TEXT, several times: one of them. label!=TEXT: none of them. label>=VALUE, >, <=, <: a number or a time, all
    must hold. label==VALUE: that number or time. `where_not` says the opposite of each.
    """
    conditions: dict[str, list[matchflow.Condition]] = {}
    for texts, option, negated in ((where, "--where", False), (where_not, "--where-not", True)):
        for name, parts in _by_label(texts, option).items():
            conditions.setdefault(name, []).extend(matchflow.Not(part) if negated else part for part in parts)
    return {name: matchflow.AllOf(*parts) for name, parts in conditions.items()}


def _by_label(texts: Iterable[str], option: str) -> Mapping[str, list[matchflow.Condition]]:
    """Return the conditions of one option by label; texts that are alternatives are one condition."""
    found: dict[str, list[matchflow.Condition]] = {}
    alternatives: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        parsed = CONDITION.fullmatch(text)
        if parsed is None:
            raise CommandError(
                f"{option} must be like designer=noto, designer!=noto or 'age>=18'; got {text!r}", exit_code=MISUSE
            )
        name, sign, value = parsed.groups()
        if sign in {"=", "!="}:
            if (name, sign) not in alternatives:
                chosen = alternatives[name, sign] = []
                found.setdefault(name, []).append(chosen if sign == "=" else matchflow.Not(chosen))
            alternatives[name, sign].append(value)
        else:
            measured = _measured(value, f"{option} {name}{sign}")
            ends = {"gte": measured, "lte": measured} if sign == "==" else {ENDS[sign]: measured}
            found.setdefault(name, []).append(matchflow.Between(**ends))
    return found


def _measured(text: str, what: str) -> float | dt.datetime:
    """Return a number, or a time, in UTC where it has no zone."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{what} needs a number, or a time such as 2026-01-31 or 2026-01-31T08:30:00+01:00; got {text!r}",
            exit_code=MISUSE,
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)
