"""What every truth must do with the generations of a gallery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec
from truth_samples import by_several, put, put_in, remove, run_together

from matchflow_index import (
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationDroppedError,
    GenerationExistsError,
    GenerationMovedError,
    GenerationNotFoundError,
)
from matchflow_index.records import GENERATION_STRIDE
from matchflow_index.truth import Generations, Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.truth import StoredGallery, Transaction, Truth

OTHER = replace(gallery_spec(), model="other", bundle_digest="sha256:other")


@pytest.fixture
def other(truth: Truth, gallery: StoredGallery) -> StoredGallery:
    assert gallery
    return truth.add_generation(OTHER)


def contents(truth: Truth, gallery: StoredGallery) -> list[str]:
    with truth.read(gallery) as snapshot:
        return [record.image_id for record in snapshot.records()]


def sequence(truth: Truth, gallery: StoredGallery) -> int:
    with truth.read(gallery) as snapshot:
        return snapshot.sequence


def position(truth: Truth, gallery: StoredGallery) -> Position | None:
    with truth.read(gallery) as snapshot:
        return snapshot.position


def fill(truth: Truth, gallery: StoredGallery, *names: str) -> None:
    truth.write(gallery, lambda transaction: [put_in(transaction, name, b"row") for name in names], active=False)


def test_a_gallery_begins_as_its_first_generation_and_alone(truth: Truth, gallery: StoredGallery) -> None:
    assert gallery.spec.generation == 1
    assert truth.generations("demo") == Generations(active=gallery)
    with pytest.raises(GalleryNotFoundError):
        truth.generations("another")


def test_a_second_generation_stands_beside_the_active_one(
    reopen: Callable[[], Truth], truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    assert other.spec == replace(OTHER, generation=2, lineage=gallery.uuid)
    assert other.lineage == gallery.lineage == gallery.uuid
    assert other.number != gallery.number
    assert truth.galleries() == [gallery]
    assert list(reopen().generations("demo")) == [gallery, other]


def test_its_changes_count_on_from_beyond_those_of_the_first(
    reopen: Callable[[], Truth], truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    assert sequence(truth, other) == GENERATION_STRIDE
    with truth.read(other) as snapshot:
        assert snapshot.log_start == GENERATION_STRIDE + 1
        assert snapshot.history(GENERATION_STRIDE) is not None
        assert list(snapshot.changes(0)) == []
    fill(truth, other, "a", "b")
    put(truth, gallery, "c")
    truth = reopen()
    fill(truth, other, "d")
    with truth.read(other) as snapshot:
        assert [change.sequence - GENERATION_STRIDE for change in snapshot.changes(0)] == [1, 2, 3]
        assert None not in [snapshot.history(GENERATION_STRIDE + k) for k in range(4)]
    assert contents(truth, other) == ["a", "b", "d"]
    assert contents(truth, gallery) == ["c"]


def test_a_gallery_has_at_most_two(truth: Truth, other: StoredGallery) -> None:
    with pytest.raises(GenerationExistsError, match="delete generation 2"):
        truth.add_generation(OTHER)
    assert truth.generations("demo").other == other


def test_no_generation_without_a_gallery(truth: Truth) -> None:
    with pytest.raises(GalleryNotFoundError):
        truth.add_generation(OTHER)


def test_who_takes_a_generation_for_what_it_is_not_writes_nothing(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    with pytest.raises(GenerationMovedError):
        put(truth, other, "a")
    with pytest.raises(GenerationMovedError):
        fill(truth, gallery, "a")
    assert contents(truth, gallery) == contents(truth, other) == []


def test_a_dropped_generation_leaves_nothing_and_its_number_is_not_given_again(
    reopen: Callable[[], Truth], truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    put(truth, gallery, "kept")
    fill(truth, other, "a")
    truth.drop_generation(other)
    assert truth.generations("demo") == Generations(active=gallery)
    for use in (
        lambda: sequence(truth, other),
        lambda: fill(truth, other, "b"),
        lambda: truth.wait(other, 0, 0.1),
        lambda: truth.set_match_defaults(other, b"{}"),
    ):
        with pytest.raises(GenerationDroppedError, match="generation 2 of gallery 'demo' was deleted"):
            use()
    with pytest.raises(GenerationNotFoundError, match="there is no generation 2 of gallery 'demo'; there is 1"):
        truth.drop_generation(other)
    truth = reopen()
    assert truth.generations("demo").given == 2
    assert truth.add_generation(OTHER).spec.generation == truth.generations("demo").given == 3
    assert contents(truth, gallery) == ["kept"]


def test_the_active_generation_is_not_dropped(truth: Truth, gallery: StoredGallery, other: StoredGallery) -> None:
    with pytest.raises(GenerationActiveError):
        truth.drop_generation(gallery)
    assert list(truth.generations("demo")) == [gallery, other]


def test_a_switch_makes_both_change_places(
    reopen: Callable[[], Truth], truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    put(truth, gallery, "a", "b")
    fill(truth, other, "a")
    assert truth.switch(gallery, 2)
    truth = reopen()
    assert truth.generations("demo") == Generations(active=other, other=gallery)
    assert truth.galleries() == [other]
    put(truth, other, "c")
    fill(truth, gallery, "d")
    with pytest.raises(GenerationMovedError):
        put(truth, gallery, "e")
    assert contents(truth, other) == ["a", "c"]
    assert contents(truth, gallery) == ["a", "b", "d"]


def test_after_a_switch_the_earlier_one_follows_from_where_the_other_was(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    fill(truth, other, "a", "b")
    truth.switch(gallery, 0, beyond=True)
    reached = Position(uuid=other.uuid, sequence=GENERATION_STRIDE + 2, complete=True, beyond=True)
    assert position(truth, gallery) == reached
    truth.switch(other, GENERATION_STRIDE + 2)
    assert position(truth, other) == Position(uuid=gallery.uuid, sequence=0, complete=True)


def test_there_and_back_again(truth: Truth, gallery: StoredGallery, other: StoredGallery) -> None:
    put(truth, gallery, "a")
    for active, inactive in [(gallery, other), (other, gallery), (gallery, other), (other, gallery)]:
        assert truth.switch(active, sequence(truth, active))
        assert truth.generations("demo") == Generations(active=inactive, other=active)
        put(truth, inactive, f"of {inactive.spec.generation}")
    assert sequence(truth, gallery) == 3
    assert sequence(truth, other) == GENERATION_STRIDE + 2


def test_no_switch_under_a_change_that_was_not_followed(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    put(truth, gallery, "a")
    assert not truth.switch(gallery, 0)
    assert not truth.switch(other, GENERATION_STRIDE)
    assert truth.generations("demo") == Generations(active=gallery, other=other)
    assert position(truth, gallery) is None
    put(truth, gallery, "b")


def test_no_switch_without_another_generation(truth: Truth, gallery: StoredGallery) -> None:
    assert not truth.switch(gallery, 0)
    put(truth, gallery, "a")


def test_a_position_is_kept_with_what_was_done_in_the_same_transaction(
    reopen: Callable[[], Truth], truth: Truth, other: StoredGallery
) -> None:
    first, second = Position(uuid="u", sequence=7), Position(uuid="u", sequence=9)
    assert position(truth, other) is None
    truth.write(other, lambda transaction: transaction.follow(first), active=False)

    def fail(transaction: object) -> None:
        transaction.follow(second)  # type: ignore[attr-defined]
        put_in(transaction, "a")  # type: ignore[arg-type]
        assert transaction.position == second  # type: ignore[attr-defined]
        raise LookupError

    with pytest.raises(LookupError):
        truth.write(other, fail, active=False)
    truth = reopen()
    assert position(truth, other) == first
    assert contents(truth, other) == []


def test_a_deleted_gallery_takes_all_of_its_generations_along(
    reopen: Callable[[], Truth], truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    fill(truth, other, "a")
    assert truth.delete("demo") == gallery
    for gone in (gallery, other):
        with pytest.raises(GalleryNotFoundError):
            sequence(truth, gone)
    again = reopen().create(gallery_spec())
    truth = reopen()
    assert truth.generations("demo") == Generations(active=again)
    second = truth.add_generation(OTHER)
    assert second.spec.generation == 2
    with truth.read(second) as snapshot:
        assert [*snapshot.records(), *snapshot.rows(), *snapshot.changes(0)] == []


def test_a_deleted_gallery_is_that_of_its_active_generation(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    truth.switch(gallery, 0)
    assert truth.delete("demo") == other
    assert truth.galleries() == []


def test_a_gallery_of_the_same_id_is_another_one(truth: Truth, gallery: StoredGallery, other: StoredGallery) -> None:
    truth.delete("demo")
    truth.create(gallery_spec())
    for gone in (gallery, other):
        with pytest.raises(GalleryNotFoundError) as caught:
            sequence(truth, gone)
        assert not isinstance(caught.value, GenerationDroppedError)


def test_a_look_tells_whether_the_generation_is_active(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    def active(stored: StoredGallery) -> bool:
        with truth.read(stored) as snapshot:
            return snapshot.active

    assert (active(gallery), active(other)) == (True, False)
    truth.switch(gallery, 0)
    assert (active(gallery), active(other)) == (False, True)


def test_defaults_are_set_for_the_generation_that_is_meant(
    truth: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    truth.set_match_defaults(gallery, b"1", active=True)
    truth.set_match_defaults(other, b"2", active=False)
    truth.set_match_defaults(other, b"3")
    for stored, active in ((gallery, False), (other, True)):
        with pytest.raises(GenerationMovedError):
            truth.set_match_defaults(stored, b"4", active=active)
    assert [truth.match_defaults(stored) for stored in (gallery, other)] == [b"1", b"3"]


def test_one_process_fills(truth: Truth, other: StoredGallery) -> None:
    assert truth.claim(other, 5)
    assert truth.claim(other, 5)


@by_several
def test_others_fill_when_that_one_is_gone(truth: Truth, second: Truth, other: StoredGallery) -> None:
    assert truth.claim(other, 0.2)
    assert not second.claim(other, 60)
    assert truth.wait(other, GENERATION_STRIDE, 0.3) == GENERATION_STRIDE
    assert second.claim(other, 60)
    assert not truth.claim(other, 60)


@by_several
def test_a_write_that_began_before_a_switch_is_not_lost_in_it(
    truth: Truth, second: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    switched: list[bool] = []

    def work(transaction: object) -> None:
        if not switched:
            switched.append(second.switch(gallery, 0))
        put_in(transaction, "a")  # type: ignore[arg-type]

    with pytest.raises(GenerationMovedError):
        truth.write(gallery, work)
    assert switched == [True]
    assert contents(truth, gallery) == contents(truth, other) == []
    # Nobody's rows are left behind.
    with truth.read(gallery) as snapshot:
        assert list(snapshot.rows()) == []


@by_several
def test_nothing_is_written_twice_or_lost_while_others_switch(
    truth: Truth, second: Truth, gallery: StoredGallery, other: StoredGallery
) -> None:
    """Each write is in that generation alone which was active then: what a follower sees is what was acknowledged."""
    acknowledged: dict[str, str] = {}
    done: list[bool] = []

    def write() -> None:
        for k in range(60):
            while True:
                active = truth.generations("demo").active
                try:
                    put(truth, active, f"image-{k}")
                except GenerationMovedError:
                    continue
                acknowledged[f"image-{k}"] = active.uuid
                break
        done.append(True)

    def switch() -> None:
        while not done:
            active = second.generations("demo").active
            second.switch(active, sequence(second, active))

    run_together(write, switch)
    found = {name: each.uuid for each in (gallery, other) for name in contents(truth, each)}
    assert found == acknowledged
    assert len(contents(truth, gallery)) + len(contents(truth, other)) == 60


@by_several
def test_what_was_computed_for_an_earlier_position_is_not_written(
    truth: Truth, second: Truth, other: StoredGallery
) -> None:
    """Somebody who has followed further may have written what is newer."""
    first, further = Position(uuid="u", sequence=7), Position(uuid="u", sequence=9)
    truth.write(other, lambda transaction: transaction.follow(first), active=False)
    seen: list[Position | None] = []

    def work(transaction: Transaction) -> None:
        seen.append(transaction.position)
        if len(seen) == 1:
            second.write(other, lambda later: later.follow(further), active=False)
        put_in(transaction, "a", b"row")

    truth.write(other, work, active=False)
    # It ran again, on what had been followed meanwhile.
    assert seen == [first, further]


@by_several
def test_another_one_sees_a_switch(truth: Truth, second: Truth, gallery: StoredGallery, other: StoredGallery) -> None:
    assert truth.switch(gallery, 0)
    assert second.generations("demo") == Generations(active=other, other=gallery)
    remove(second, other, "nothing")
    with pytest.raises(GenerationMovedError):
        put(second, gallery, "a")
