"""What every truth must do. An implementation joins by adding the way to open it to TRUTHS."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec

from matchflow_index import GalleryExistsError, GalleryNotFoundError, ImageRecord, StoreUnavailableError
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.truth import Change, ChangeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_index.truth import StoredGallery, Transaction, Truth

TRUTHS: dict[str, Callable[[Path], Truth]] = {
    "lmdb": LmdbTruth,
    # So small that every other test makes it grow.
    "lmdb that grows": lambda path: LmdbTruth(path, map_bytes=64 * 1024),
}


@pytest.fixture(params=TRUTHS)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Truth]]:
    """Return a function that opens the truth, again and again; what it opened before is closed."""
    opened: list[Truth] = []

    def reopen() -> Truth:
        if opened:
            opened.pop().close()
        opened.append(TRUTHS[request.param](tmp_path / "truth"))
        return opened[-1]

    yield reopen
    for truth in opened:
        truth.close()


@pytest.fixture
def truth(reopen: Callable[[], Truth]) -> Truth:
    return reopen()


@pytest.fixture
def gallery(truth: Truth) -> StoredGallery:
    return truth.create(gallery_spec())


def a_record(image_id: str, row_id: int, **labels: str) -> ImageRecord:
    return ImageRecord(
        image_id=image_id, row_id=row_id, content_hash="c", labels=labels, width_px=1, height_px=2, update_time_s=3.5
    )


def put(truth: Truth, gallery: StoredGallery, *names: str, thumbnail: bytes | None = None) -> list[Change]:
    """Put images whose row is their name ten thousand times over."""

    def work(transaction: Transaction) -> list[Change]:
        return [
            transaction.put(a_record(name, transaction.next_row_id()), name.encode() * 10_000, thumbnail)
            for name in names
        ]

    return truth.write(gallery, work)


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
        assert snapshot.record("a") == a_record("a", changes[1].row_id)
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
        sequence=2, kind=ChangeKind.PUT, image_id="a", row_id=second.row_id, replaced_row_id=first.row_id
    )
    with truth.read(gallery) as snapshot:
        assert snapshot.row(first.row_id) is None
        assert snapshot.thumbnail(first.row_id) is None
        assert [row_id for row_id, _ in snapshot.rows()] == [second.row_id]


def test_relabelling_keeps_the_row(truth: Truth, gallery: StoredGallery) -> None:
    row_id = put(truth, gallery, "a")[0].row_id
    record = a_record("a", row_id, colour="red")
    change = truth.write(gallery, lambda transaction: transaction.relabel(record))
    assert change == Change(sequence=2, kind=ChangeKind.RELABEL, image_id="a", row_id=row_id)
    with truth.read(gallery) as snapshot:
        assert snapshot.record("a") == record
        assert snapshot.row(row_id) is not None


def test_a_removed_image_is_gone_with_all_it_had(truth: Truth, gallery: StoredGallery) -> None:
    row_id = put(truth, gallery, "a", "b", thumbnail=b"t")[0].row_id
    change = truth.write(gallery, lambda transaction: transaction.remove("a"))
    assert change == Change(sequence=3, kind=ChangeKind.REMOVE, image_id="a", row_id=row_id)
    with truth.read(gallery) as snapshot:
        assert snapshot.record("a") is None
        assert snapshot.row(row_id) is None
        assert snapshot.thumbnail(row_id) is None
        assert [record.image_id for record in snapshot.records()] == ["b"]


def test_removing_what_is_not_there_changes_nothing(truth: Truth, gallery: StoredGallery) -> None:
    assert truth.write(gallery, lambda transaction: transaction.remove("a")) is None
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == 0


def test_a_transaction_sees_its_own_changes(truth: Truth, gallery: StoredGallery) -> None:
    def work(transaction: Transaction) -> tuple[int, bool, bool]:
        transaction.put(a_record("a", transaction.next_row_id()), b"row", None)
        seen = transaction.record("a") is not None
        transaction.remove("a")
        return transaction.sequence, seen, transaction.record("a") is None

    assert truth.write(gallery, work) == (2, True, True)


def test_an_exception_undoes_the_whole_transaction(truth: Truth, gallery: StoredGallery) -> None:
    def work(transaction: Transaction) -> None:
        transaction.put(a_record("a", transaction.next_row_id()), b"row", b"t")
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
            truth.write(gallery, lambda transaction: transaction.remove("b"))
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


def test_a_snapshot_does_not_move(truth: Truth, gallery: StoredGallery) -> None:
    put(truth, gallery, "a")
    with truth.read(gallery) as snapshot:
        writer = threading.Thread(target=lambda: truth.write(gallery, lambda transaction: transaction.remove("a")))
        writer.start()
        writer.join(60)
        assert not writer.is_alive()
        assert snapshot.sequence == 1
        assert [record.image_id for record in snapshot.records()] == ["a"]
    with truth.read(gallery) as snapshot:
        assert snapshot.sequence == 2


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
                if names.keys() != rows.keys() or len(names) != snapshot.sequence:
                    trouble.append(f"{len(names)} records, {len(rows)} rows at change {snapshot.sequence}")
                if any(rows[row_id] != name.encode() * 10_000 for row_id, name in names.items()):
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


def test_a_closed_truth_says_so(truth: Truth, gallery: StoredGallery) -> None:
    truth.close()
    with pytest.raises(StoreUnavailableError):
        truth.galleries()
    with pytest.raises(StoreUnavailableError):
        put(truth, gallery, "a")
