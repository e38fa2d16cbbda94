"""What every truth must do. An implementation joins by adding the way to open it to `opener`."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec
from truth_samples import a_record, by_several, everything, put, put_in, remove, run_together

from matchflow_index import GalleryExistsError, GalleryNotFoundError, StoreUnavailableError
from matchflow_index.history import BEGINNING, DIGEST_BYTES, chained
from matchflow_index.records import compact_json
from matchflow_index.truth import Change, ChangeKind, Durability

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.truth import StoredGallery, Transaction, Truth


def test_a_created_gallery_is_there_after_a_restart(reopen: Callable[[], Truth]) -> None:
    created = reopen().create(gallery_spec())
    assert reopen().galleries() == [created]
    assert created.spec == gallery_spec()


def test_galleries_come_in_order_of_their_ids(truth: Truth) -> None:
    for name in ("b", "c", "a"):
        truth.create(gallery_spec(name))
    assert [stored.spec.gallery_id for stored in truth.galleries()] == ["a", "b", "c"]


def test_an_id_is_taken_once(truth: Truth, gallery: StoredGallery) -> None:
    with pytest.raises(GalleryExistsError):
        truth.create(replace(gallery.spec, model="other"))
    assert truth.galleries() == [gallery]


def test_a_gallery_created_again_is_another_one(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a", thumbnail=b"t")
    assert truth.delete("demo") == gallery
    again = truth.create(gallery_spec())
    assert again.uuid != gallery.uuid
    assert again.number != gallery.number
    with truth.read(again) as snapshot:
        assert snapshot.sequence == 0
        assert not [*snapshot.records(), *snapshot.rows(), *snapshot.changes(0)]


def test_a_deleted_gallery_can_be_neither_read_nor_written(truth: Truth, gallery: StoredGallery) -> None:
    truth.delete("demo")
    truth.create(gallery_spec())
    with pytest.raises(GalleryNotFoundError):
        put(truth, gallery, "a")
    with pytest.raises(GalleryNotFoundError), truth.read(gallery):
        pass


def test_a_gallery_that_is_not_there_cannot_be_deleted(truth: Truth) -> None:
    with pytest.raises(GalleryNotFoundError):
        truth.delete("demo")


def test_what_was_put_is_there_after_a_restart(reopen: Callable[[], Truth]) -> None:
    truth = reopen()
    gallery = truth.create(gallery_spec())
    changes = put(truth, gallery, "b", "a", thumbnail=b"t")
    with reopen().read(gallery) as snapshot:
        assert snapshot.sequence == 2
        assert [record.image_id for record in snapshot.records()] == ["a", "b"]
        assert list(snapshot.rows()) == [(changes[0].row_id, b"b" * 10_000), (changes[1].row_id, b"a" * 10_000)]
        assert snapshot.record("a") == a_record("a", changes[1].row_id, 2)
        assert snapshot.row(changes[0].row_id) == b"b" * 10_000
        assert snapshot.thumbnail(changes[0].row_id) == b"t"
        assert list(snapshot.changes(0)) == changes


def test_what_is_not_there_is_none(truth: Truth, gallery: StoredGallery) -> None:
    with truth.read(gallery) as snapshot:
        assert snapshot.record("a") is None
        assert snapshot.row(1) is None
        assert snapshot.thumbnail(1) is None


def test_a_row_without_thumbnail_has_none(truth: Truth, gallery: StoredGallery) -> None:
    change = put(truth, gallery, "a")[0]
    with truth.read(gallery) as snapshot:
        assert snapshot.thumbnail(change.row_id) is None


def test_a_second_put_ends_the_first_row(truth: Truth, gallery: StoredGallery) -> None:
    first = put(truth, gallery, "a", thumbnail=b"t")[0]
    second = put(truth, gallery, "a")[0]
    assert second == Change(
        sequence=2, kind=ChangeKind.PUT, image_id="a", row_id=second.row_id, time_s=3.5, replaced_row_id=first.row_id
    )
    with truth.read(gallery) as snapshot:
        assert snapshot.row(first.row_id) is None
        assert snapshot.thumbnail(first.row_id) is None
        assert [row_id for row_id, _ in snapshot.rows()] == [second.row_id]


def test_relabelling_keeps_the_row(truth: Truth, gallery: StoredGallery) -> None:
    row_id = put(truth, gallery, "a")[0].row_id
    record = a_record("a", row_id, 2, colour="red", size=1.5, seen=datetime(2026, 1, 2, tzinfo=UTC))
    change = truth.write(gallery, lambda transaction: transaction.relabel(record))
    assert change == Change(sequence=2, kind=ChangeKind.RELABEL, image_id="a", row_id=row_id, time_s=3.5)
    with truth.read(gallery) as snapshot:
        assert snapshot.record("a") == record
        assert snapshot.row(row_id) is not None


def test_a_removed_image_is_gone_with_all_it_had(truth: Truth, gallery: StoredGallery) -> None:
    row_id = put(truth, gallery, "a", "b", thumbnail=b"t")[0].row_id
    change = remove(truth, gallery, "a")
    assert change == Change(sequence=3, kind=ChangeKind.REMOVE, image_id="a", row_id=row_id, time_s=4.5)
    with truth.read(gallery) as snapshot:
        assert snapshot.record("a") is None
        assert snapshot.row(row_id) is None
        assert snapshot.thumbnail(row_id) is None
        assert [record.image_id for record in snapshot.records()] == ["b"]


def test_removing_what_is_not_there_changes_nothing(truth: Truth, gallery: StoredGallery) -> None:
    assert remove(truth, gallery, "a") is None
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == 0


def test_a_transaction_sees_its_own_changes(truth: Truth, gallery: StoredGallery) -> None:
    def work(transaction: Transaction) -> tuple[int, bool, bool]:
        put_in(transaction, "a")
        seen = transaction.record("a") is not None
        transaction.remove("a", 4.5)
        return transaction.sequence, seen, transaction.record("a") is None

    assert truth.write(gallery, work) == (2, True, True)


def test_an_exception_undoes_the_whole_transaction(truth: Truth, gallery: StoredGallery) -> None:
    def work(transaction: Transaction) -> None:
        put_in(transaction, "a", b"row", b"t")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        truth.write(gallery, work)
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == 0
        assert not [*snapshot.records(), *snapshot.rows(), *snapshot.changes(0)]


def test_row_ids_count_up_over_galleries_deletions_and_restarts(reopen: Callable[[], Truth]) -> None:
    seen: list[int] = []
    for _ in range(3):
        truth = reopen()
        for name in ("x", "y"):
            gallery = truth.create(gallery_spec(name))
            seen += [change.row_id for change in put(truth, gallery, "a", "b")]
            remove(truth, gallery, "b")
            truth.delete(name)
    assert seen == sorted(set(seen))


def test_sequence_numbers_count_up_by_one_in_each_gallery(truth: Truth) -> None:
    first, second = truth.create(gallery_spec("first")), truth.create(gallery_spec("second"))
    assert [change.sequence for change in put(truth, first, "a", "b")] == [1, 2]
    assert [change.sequence for change in put(truth, second, "a")] == [1]
    assert [change.sequence for change in put(truth, first, "a")] == [3]


def test_changes_go_on_after_a_sequence_number(truth: Truth, gallery: StoredGallery) -> None:
    changes = put(truth, gallery, "a", "b", "c", "a")
    with truth.read(gallery) as snapshot:
        assert list(snapshot.changes(2)) == changes[2:]
        assert list(snapshot.changes(4)) == []


def test_records_go_on_after_an_id_whether_it_is_there_or_not(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "é", "a", "b", "猫")
    with truth.read(gallery) as snapshot:
        assert [record.image_id for record in snapshot.records("a")] == ["b", "é", "猫"]
        assert [record.image_id for record in snapshot.records("c")] == ["é", "猫"]
        assert [record.image_id for record in snapshot.records("猫")] == []


@pytest.mark.parametrize("letter", ["x", "猫", "🐈"])
def test_ids_of_256_characters_are_kept_apart(truth: Truth, gallery: StoredGallery, letter: str) -> None:
    names = [letter * 255 + end for end in ("a", "b")] + [letter * 100]
    put(truth, gallery, *names)
    with truth.read(gallery) as snapshot:
        for name in names:
            found = snapshot.record(name)
            assert found is not None
            assert found.image_id == name
        after, seen = None, []
        while (record := next(snapshot.records(after), None)) is not None:
            seen.append(record.image_id)
            after = record.image_id
    assert sorted(seen) == sorted(names)


def test_galleries_share_nothing(truth: Truth) -> None:
    galleries = [truth.create(gallery_spec(name)) for name in ("a", "b", "c")]
    for gallery in galleries:
        put(truth, gallery, f"in {gallery.spec.gallery_id}")
    truth.delete("b")
    for gallery in (galleries[0], galleries[2]):
        with truth.read(gallery) as snapshot:
            assert [record.image_id for record in snapshot.records()] == [f"in {gallery.spec.gallery_id}"]
            assert len(list(snapshot.rows())) == len(list(snapshot.changes(0))) == 1


def test_a_snapshot_keeps_its_sequence_and_its_log_and_one_that_is_not_shared_all_else(
    truth: Truth, gallery: StoredGallery
) -> None:
    row_id = put(truth, gallery, "a", "b")[0].row_id
    with truth.read(gallery) as snapshot:
        before = everything(snapshot)
        writer = threading.Thread(target=lambda: remove(truth, gallery, "a"))
        writer.start()
        writer.join(60)
        assert not writer.is_alive()
        assert snapshot.sequence == 2
        assert len(list(snapshot.changes(0))) == 2
        assert [record.image_id for record in snapshot.records()][-1] == "b"
        if not truth.shared:
            assert everything(snapshot) == before
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == 3
        # Whether the removal shone through or not, after it nothing is left.
        assert [change.image_id for change in snapshot.changes(2)] == ["a"]
        assert snapshot.row(row_id) is None


def test_many_threads_write_and_read_while_the_store_grows(truth: Truth, gallery: StoredGallery) -> None:
    trouble: list[str] = []

    def write(prefix: str) -> None:
        for k in range(20):
            put(truth, gallery, f"{prefix}{k}")

    def read() -> None:
        for _ in range(50):
            with truth.read(gallery) as snapshot:
                names = {record.row_id: record.image_id for record in snapshot.records()}
                rows = dict(snapshot.rows())
                least = {change.row_id for change in snapshot.changes(0)}
                if not (least <= names.keys() and least <= rows.keys()):
                    trouble.append(f"{len(names)} records, {len(rows)} rows at change {snapshot.sequence}")
                if not truth.shared and not len(names) == len(rows) == snapshot.sequence:
                    trouble.append(f"{len(names)} records, {len(rows)} rows at exactly change {snapshot.sequence}")
                if any(rows[row_id] != name.encode() * 10_000 for row_id, name in names.items() if row_id in rows):
                    trouble.append("a row of another image")

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "abc"]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not trouble
    with truth.read(gallery) as snapshot:
        assert [change.sequence for change in snapshot.changes(0)] == list(range(1, 61))


def test_match_defaults_are_kept_as_they_were_given(reopen: Callable[[], Truth]) -> None:
    truth = reopen()
    gallery, other = truth.create(gallery_spec()), truth.create(gallery_spec("other"))
    assert truth.match_defaults(gallery) is None
    for value in (b"first", b"", b"\x00\xff" * 1000):
        truth.set_match_defaults(gallery, value)
        assert truth.match_defaults(gallery) == value
        truth = reopen()
        assert truth.match_defaults(gallery) == value
    assert truth.match_defaults(other) is None
    truth.set_match_defaults(gallery, None)
    truth.set_match_defaults(gallery, None)
    assert reopen().match_defaults(gallery) is None


def test_match_defaults_are_no_change_of_an_image(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a")
    truth.set_match_defaults(gallery, b"defaults")
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == len(list(snapshot.changes(0))) == len(list(snapshot.records())) == 1
    assert truth.galleries() == [gallery]


def test_match_defaults_go_with_their_gallery(reopen: Callable[[], Truth]) -> None:
    truth = reopen()
    gallery = truth.create(gallery_spec())
    truth.set_match_defaults(gallery, b"defaults")
    truth.delete("demo")
    for _ in range(2):
        with pytest.raises(GalleryNotFoundError):
            truth.match_defaults(gallery)
        for value in (b"others", None):
            with pytest.raises(GalleryNotFoundError):
                truth.set_match_defaults(gallery, value)
        assert truth.match_defaults(truth.create(gallery_spec())) is None
        truth.delete("demo")
        truth = reopen()


def test_records_and_rows_come_in_the_order_in_which_they_are_asked_for(truth: Truth, gallery: StoredGallery) -> None:
    changes = put(truth, gallery, "a", "b", "c")
    row_ids = [change.row_id for change in changes]
    with truth.read(gallery) as snapshot:
        found = snapshot.records_of(["c", "gone", "a", "c"])
        assert [record and record.image_id for record in found] == ["c", None, "a", "c"]
        asked = [row_ids[1], 10**12, row_ids[0], row_ids[1]]
        assert snapshot.rows_of(asked) == [b"b" * 10_000, None, b"a" * 10_000, b"b" * 10_000]
        assert not snapshot.records_of([])
        assert not snapshot.rows_of([])


# Where engines cut values: at powers of two, at pages, at half pages.
SIZES = [0, 1, 7, 8, 1015, 1016, 1017, 1024, 1025, 2040, 2041, 2048, 2592, 4088, 4089, 4096, 4097, 8191, 65536, 300_000]


def test_rows_and_thumbnails_of_every_length_come_back_as_they_were(truth: Truth, gallery: StoredGallery) -> None:
    values = {f"{size:06}": bytes([size % 251]) * size for size in SIZES if size}
    thumbnails = {name: value[::-1] + b"t" for name, value in values.items()}

    def work(transaction: Transaction) -> list[Change]:
        return [put_in(transaction, name, value, thumbnails[name]) for name, value in values.items()]

    changes = truth.write(gallery, work)
    with truth.read(gallery) as snapshot:
        assert snapshot.rows_of([change.row_id for change in changes]) == list(values.values())
        assert [snapshot.thumbnail(change.row_id) for change in changes] == list(thumbnails.values())
    for name in values:
        remove(truth, gallery, name)
    with truth.read(gallery) as snapshot:
        assert set(snapshot.rows_of([change.row_id for change in changes])) == {None}
        assert {snapshot.thumbnail(change.row_id) for change in changes} == {None}


def test_a_transaction_sees_what_it_did_as_a_snapshot_does_afterwards(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a", "c", "e", "g", thumbnail=b"old")

    def work(transaction: Transaction) -> tuple[tuple[object, ...], list[object]]:
        put_in(transaction, "b", b"new b")
        put_in(transaction, "c", b"new c", b"t")
        transaction.remove("e", 4.5)
        put_in(transaction, "f", b"first f")
        put_in(transaction, "f", b"second f")
        put_in(transaction, "h")
        transaction.remove("h", 5.5)
        a = transaction.record("a")
        assert a is not None
        transaction.relabel(replace(a, sequence=transaction.sequence + 1, labels={"n": 1.0}))
        return everything(transaction), list(transaction.records("b"))

    seen, after_b = truth.write(gallery, work)
    with truth.read(gallery) as snapshot:
        assert everything(snapshot) == seen
        records = list(snapshot.records())
        assert [record.image_id for record in records] == ["a", "b", "c", "f", "g"]
        assert records[2:] == after_b
        assert snapshot.sequence == 12


def test_the_history_is_the_chain_of_all_entries_whatever_the_engine(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a", "b")
    put(truth, gallery, "a")
    remove(truth, gallery, "b")
    with truth.read(gallery) as snapshot:
        digest = snapshot.history(0)
        assert digest == BEGINNING
        for change in snapshot.changes(0):
            fields = [change.kind, change.image_id, change.row_id, change.replaced_row_id, change.time_s]
            digest = chained(digest, compact_json(fields))
            assert snapshot.history(change.sequence) == digest
            assert len(digest) == DIGEST_BYTES
        assert snapshot.history(5) is None


def test_galleries_with_the_same_changes_part_where_they_first_differ(truth: Truth) -> None:
    histories = []
    for name, last in (("first", "c"), ("second", "d")):
        gallery = truth.create(gallery_spec(name))

        def work(transaction: Transaction, last: str = last) -> None:
            for k, image_id in enumerate(["a", "b", last, "e"]):
                transaction.put(a_record(image_id, 10**9 + k, k + 1), b"r", None)

        truth.write(gallery, work)
        with truth.read(gallery) as snapshot:
            histories.append([snapshot.history(k) for k in range(5)])
        truth.delete(name)
    first, second = histories
    assert first[:3] == second[:3]
    assert all(one != other for one, other in zip(first[3:], second[3:], strict=True))


def test_a_trimmed_log_keeps_its_end_its_numbers_and_its_history(reopen: Callable[[], Truth]) -> None:
    truth = reopen()
    gallery = truth.create(gallery_spec())
    with truth.read(gallery) as snapshot:
        assert snapshot.log_start == 1
    assert truth.trim_log(gallery, 0) == 0
    changes = put(truth, gallery, *"abcde")
    with truth.read(gallery) as snapshot:
        digests = [snapshot.history(k) for k in range(6)]
    assert truth.trim_log(gallery, 7) == 0
    assert truth.trim_log(gallery, 2) == 3
    truth = reopen()
    with truth.read(gallery) as snapshot:
        assert snapshot.log_start == 4
        assert list(snapshot.changes(0)) == changes[3:]
        assert [snapshot.history(k) for k in range(6)] == [BEGINNING, None, None, None, *digests[4:]]
        assert len(list(snapshot.records())) == 5
    # One entry stays: the chain goes on from it.
    assert truth.trim_log(gallery, 0) == 1
    (next_change,) = put(truth, gallery, "f")
    assert next_change.sequence == 6
    with truth.read(gallery) as snapshot:
        assert snapshot.log_start == 5
        assert [change.sequence for change in snapshot.changes(0)] == [5, 6]
        assert snapshot.history(5) == digests[5]


def test_who_waits_is_told_of_the_next_change(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a", "b")
    assert truth.wait(gallery, 1, 60) == 2
    told: list[int] = []
    waiter = threading.Thread(target=lambda: told.append(truth.wait(gallery, 2, 60)))
    waiter.start()
    time.sleep(0.05)
    assert not told
    put(truth, gallery, "c")
    waiter.join(10)
    assert told == [3]


def test_who_waits_in_vain_gets_the_last_change_when_the_time_is_up(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a")
    for timeout_s in (0, 0.2):
        begin_s = time.monotonic()
        assert truth.wait(gallery, 1, timeout_s) == 1
        assert timeout_s <= time.monotonic() - begin_s < timeout_s + 5


def test_who_waits_for_a_gallery_that_goes_is_told_so(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a")
    deleter = threading.Timer(0.1, lambda: truth.delete("demo"))
    deleter.start()
    with pytest.raises(GalleryNotFoundError):
        truth.wait(gallery, 1, 60)
    deleter.join(60)


def test_a_truth_says_what_its_acknowledgement_means(truth: Truth) -> None:
    assert truth.durability in {Durability.DISK, Durability.PROCESS}


def test_work_that_changes_nothing_stores_nothing(truth: Truth, gallery: StoredGallery) -> None:
    assert truth.write(gallery, lambda transaction: transaction.next_row_id()) > 0
    with truth.read(gallery) as snapshot:
        assert everything(snapshot) == (0, 1, [], [], [], [], [BEGINNING, None])


@by_several
def test_two_writers_lose_no_number_and_leave_no_gap(truth: Truth, second: Truth, gallery: StoredGallery) -> None:
    changes: list[Change] = []

    def write(writer: Truth, prefix: str) -> None:
        for k in range(30):
            changes.extend(put(writer, gallery, f"{prefix}{k}", "both"))

    run_together(lambda: write(truth, "a"), lambda: write(second, "b"))
    with truth.read(gallery) as snapshot:
        logged = list(snapshot.changes(0))
        assert logged == sorted(changes, key=lambda change: change.sequence)
        assert [change.sequence for change in logged] == list(range(1, 121))
        # Within a gallery, rows are in the order of their changes.
        assert [change.row_id for change in logged] == sorted({change.row_id for change in logged})
        # The last writer is the one with the last number.
        last = [change for change in logged if change.image_id == "both"][-1]
        record = snapshot.record("both")
        assert record is not None
        assert (record.row_id, record.sequence) == (last.row_id, last.sequence)
        assert [row_id for row_id, _ in snapshot.rows()] == sorted(r.row_id for r in snapshot.records())
        assert len(list(snapshot.records())) == 61


@by_several
def test_a_slow_writer_gets_through_between_fast_ones(truth: Truth, second: Truth, gallery: StoredGallery) -> None:
    slow_is_done = threading.Event()

    def slow() -> None:
        def work(transaction: Transaction) -> None:
            time.sleep(0.05)
            put_in(transaction, "slow", b"row")

        truth.write(gallery, work)
        slow_is_done.set()

    def fast() -> None:
        while not slow_is_done.is_set():
            second.write(gallery, lambda transaction: put_in(transaction, "fast", b"row"))

    run_together(slow, fast)
    with truth.read(gallery) as snapshot:
        assert [record.image_id for record in snapshot.records()] == ["fast", "slow"]


@by_several
def test_work_that_read_what_another_writer_changed_runs_again(
    truth: Truth, second: Truth, gallery: StoredGallery
) -> None:
    put(truth, gallery, "a")
    runs: list[bool] = []

    def work(transaction: Transaction) -> Change:
        found = transaction.record("a") is not None
        if not runs:
            remove(second, gallery, "a")
        runs.append(found)
        if len(runs) == 1:
            raise LookupError("what it saw is not so any more")
        return put_in(transaction, f"a was there: {found}")

    assert truth.write(gallery, work).sequence == 3
    assert runs == [True, False]


@by_several
def test_another_one_sees_galleries_come_and_go(truth: Truth, second: Truth, gallery: StoredGallery) -> None:
    assert second.galleries() == [gallery]
    put(second, gallery, "a")
    told: list[int] = []
    run_together(lambda: told.append(truth.wait(gallery, 1, 60)), lambda: put(second, gallery, "b"))
    assert told == [2]
    second.delete("demo")
    assert truth.galleries() == []
    for use in (
        lambda: put(truth, gallery, "c"),
        lambda: truth.wait(gallery, 0, 1),
        lambda: truth.trim_log(gallery, 1),
    ):
        with pytest.raises(GalleryNotFoundError):
            use()


@by_several
def test_only_one_of_many_creates_a_gallery(truth: Truth, second: Truth) -> None:
    outcomes: list[str] = []

    def create(writer: Truth) -> None:
        try:
            outcomes.append(writer.create(gallery_spec("wanted")).uuid)
        except GalleryExistsError:
            outcomes.append("taken")

    run_together(*[lambda writer=writer: create(writer) for writer in (truth, second) * 3])
    assert outcomes.count("taken") == 5
    assert [stored.uuid for stored in truth.galleries()] == [name for name in outcomes if name != "taken"]


def test_a_closed_truth_says_so(truth: Truth, gallery: StoredGallery) -> None:
    truth.close()
    with pytest.raises(StoreUnavailableError):
        truth.galleries()
    with pytest.raises(StoreUnavailableError):
        put(truth, gallery, "a")
    truth.close()
