"""The files that a pattern means: shard-{0000..0009}.tar as in a shell, and the wildcards * ? [...]."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from matchflow_cli.failures import CommandError
from matchflow_cli.options import MISUSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_FILES = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})", re.ASCII)


def expand(patterns: Iterable[str]) -> list[Path]:
    """Return the files of all patterns, in their order; those of wildcards sorted. None comes twice.

    A name that exists is taken as it stands. Raises CommandError for wildcards that match nothing and for more than
    MAX_FILES files.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        for path in _paths(pattern):
            files[path] = None
            if len(files) > MAX_FILES:
                raise CommandError(f"{pattern} means more than {MAX_FILES:,} files", exit_code=MISUSE)
    return list(files)


def braces(pattern: str) -> Iterator[str]:
    """Give what a pattern with braces means: {a,b} either, {08..11} numbers with as many digits.

    >>> list(braces("{a,b}-{08..10}.tar"))
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    choices = _choices(found[1])
    if choices is None:  # braces that stand for themselves
        yield from (pattern[: found.end()] + rest for rest in braces(pattern[found.end() :]))
        return
    for choice in choices:
        yield from (pattern[: found.start()] + choice + rest for rest in braces(pattern[found.end() :]))


def _choices(inside: str) -> Iterable[str] | None:
    numbers = RANGE.fullmatch(inside)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        return (str(number).zfill(width) for number in range(first, last + step, step))
    return inside.split(",") if "," in inside else None


def _paths(pattern: str) -> Iterator[Path]:
    if Path(pattern).exists():
        yield Path(pattern)
        return
    for name in itertools.islice(braces(pattern), MAX_FILES + 1):
        if not glob.has_magic(name) or Path(name).exists():
            yield Path(name)
            continue
        matching = sorted(glob.glob(name))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matching:
            raise CommandError(f"{name} matches no file", exit_code=MISUSE)
        yield from map(Path, matching)
