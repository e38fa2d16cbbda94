"""A labelled gallery cut in two halves of classes: on one a choice is made, on the other it is checked.

The half of a class follows from its name alone. A query is ranked against images of its own half and images without a
class; nothing of the other half is seen, neither labels nor features. Such a gallery is about half as large as the
whole, so a depth stands for the same share of it: what is at place 40 here would be near place 80 there.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.errors import InvalidQueryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from matchflow_index.evaluation import LabelledImages

LEAST_CLASSES = 2


class Half(enum.StrEnum):
    """One half of the classes."""

    TUNING = "tuning"
    HELD_OUT = "held_out"


def half_of(class_name: str) -> Half:
    """Return the half that a class is in, by one bit of its name's sha256.

    >>> half_of("1f600").value, half_of("1f601").value
    ('tuning', 'held_out')
    """
    # `make bench-accuracy` splits by the last byte: its halves are themselves split evenly by the first.
    return (Half.TUNING, Half.HELD_OUT)[hashlib.sha256(class_name.encode()).digest()[0] & 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """The queries of one half and what each is ranked against, as positions among the images.

    places: of each image in the order of ids. classes: a number per class, -1 without one. askers: a number per
    value of the query field, -1 without one; None when there is no such field. members: the half's images and those
    without a class. queries: those that ask, in an order that depends on their ids alone.
    """

    images: LabelledImages
    places: NDArray[np.intp]
    classes: NDArray[np.intp]
    askers: NDArray[np.intp] | None
    members: NDArray[np.bool_]
    queries: tuple[int, ...]

    def gallery(self, query: int) -> NDArray[np.intp]:
        """Return what a query is ranked against, in order of position."""
        return np.flatnonzero(self.members & self._allowed(query))

    def depth(self, query: int, depth: int) -> int:
        """Return the depth in the query's gallery that stands for `depth` in the whole one, at least 1."""
        allowed = self._allowed(query)
        here, whole = int((self.members & allowed).sum()), int(allowed.sum())
        return max(1, min(here, (2 * depth * here + whole) // (2 * whole)))

    def _allowed(self, query: int) -> NDArray[np.bool_]:
        allowed = np.ones(len(self.members), np.bool_)
        if self.askers is None:
            allowed[query] = False
        else:
            allowed[self.askers == self.askers[query]] = False
        return allowed

    @property
    def class_count(self) -> int:
        """How many classes the queries are of."""
        return len(set(self.classes[list(self.queries)].tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningTask:
    """Who asks, and what is right.

    Relevant is what has the same `class_field`. Images ask in turn for each value of `query_field` (only `query_values`
    of it when there are any), against all images that have another value; without `query_field` every image asks
    against all others. At most `queries` ask in each half: those whose ids have the least sha256.
    """

    class_field: str
    query_field: str | None = None
    query_values: frozenset[str] = frozenset()
    queries: int = 500


def exams(images: LabelledImages, task: TuningTask) -> dict[Half, Exam]:
    """Return the exam of each half.

    Raises InvalidQueryError unless in both halves at least two classes have a query with an image to find.
    """
    if task.queries < 1:
        raise InvalidQueryError(f"the number of queries must be at least 1; got {task.queries}")
    names = [labels.get(task.class_field) for labels in images.labels]
    known = sorted({name for name in names if name is not None})
    if not known:
        raise InvalidQueryError(f"expected images with label {task.class_field!r}; got none")
    places = np.empty(len(names), np.intp)
    places[sorted(range(len(names)), key=lambda k: images.image_ids[k])] = np.arange(len(names))
    classes = _numbered(names, known)
    askers = _askers(images, task)
    halves = [None if name is None else half_of(name) for name in names]
    asking = _asking(classes, askers, images, task)
    found = {
        half: Exam(
            images=images,
            places=places,
            classes=classes,
            askers=askers,
            members=np.array([each in {half, None} for each in halves], np.bool_),
            queries=_sampled([k for k in asking if halves[k] is half], images, task.queries),
        )
        for half in Half
    }
    _check(found, known, task)
    return found


def _numbered(names: Sequence[str | None], known: Sequence[str]) -> NDArray[np.intp]:
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(known)}
    return np.array([numbers.get(name, -1) for name in names], np.intp)


def _askers(images: LabelledImages, task: TuningTask) -> NDArray[np.intp] | None:
    if task.query_field is None:
        return None
    values = [labels.get(task.query_field) for labels in images.labels]
    return _numbered(values, sorted({value for value in values if value is not None}))


def _asking(
    classes: NDArray[np.intp], askers: NDArray[np.intp] | None, images: LabelledImages, task: TuningTask
) -> list[int]:
    """Return the images that ask and have something to find."""
    every = Counter(classes.tolist())
    asking = []
    if askers is None:
        return [k for k, number in enumerate(classes.tolist()) if number >= 0 and every[number] > 1]
    same = Counter(zip(classes.tolist(), askers.tolist(), strict=True))
    for k, (number, asker) in enumerate(zip(classes.tolist(), askers.tolist(), strict=True)):
        value = images.labels[k].get(task.query_field or "")
        wanted = value is not None and (not task.query_values or value in task.query_values)
        if wanted and number >= 0 and every[number] > same[number, asker]:
            asking.append(k)
    return asking


def _sampled(asking: list[int], images: LabelledImages, limit: int) -> tuple[int, ...]:
    by_hash = sorted(
        asking, key=lambda k: hashlib.sha256(images.image_ids[k].encode("utf-8", "surrogatepass")).digest()
    )
    return tuple(by_hash[:limit])


def _check(found: dict[Half, Exam], known: Sequence[str], task: TuningTask) -> None:
    counts = {half: exam.class_count for half, exam in found.items()}
    if min(counts.values()) >= LEAST_CLASSES:
        return
    raise InvalidQueryError(
        f"tuning needs at least {LEAST_CLASSES} classes in each half with a query and another image of its class to "
        f"find; of {len(known):,} classes by label {task.class_field!r} there are {counts[Half.TUNING]} in the "
        f"tuning half and {counts[Half.HELD_OUT]} in the half held out"
    )
