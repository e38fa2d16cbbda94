"""The chain of digests: equal digests mean equal histories, and a gallery's log holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from index_samples import gallery_spec, new_images

from matchflow_index import GalleryStore
from matchflow_index.history import BEGINNING, DIGEST_BYTES, chained

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_index import Gallery

entries = st.lists(st.binary(max_size=4), max_size=5)


def digest(history: list[bytes]) -> bytes:
    found = BEGINNING
    for entry in history:
        found = chained(found, entry)
    return found


@given(first=entries, second=entries)
def test_only_equal_histories_have_equal_digests(first: list[bytes], second: list[bytes]) -> None:
    assert (digest(first) == digest(second)) == (first == second)
    assert len(digest(first)) == DIGEST_BYTES


def histories(gallery: Gallery) -> list[bytes | None]:
    with gallery._truth.read(gallery.stored) as snapshot:
        return [snapshot.history(sequence) for sequence in range(snapshot.sequence + 2)]


def test_a_log_says_which_history_it_is_of(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        assert histories(gallery) == [BEGINNING, None]
        gallery.put(new_images(3))
        gallery.update("image-001", labels={})
        gallery.delete(["image-000"])
        before = histories(gallery)
        assert len({*before}) == len(before) == 7
        gallery.put(new_images(1))
        assert histories(gallery)[:6] == before[:6]
        gallery._truth.trim_log(gallery.stored, 2)
        after = histories(gallery)
        assert after[:5] == [BEGINNING, None, None, None, None]
        assert after[5:7] == [before[5], after[6]]
        gallery.put(new_images(1, seed=1))
        assert histories(gallery)[6] == after[6]


def test_the_same_changes_at_another_time_are_another_history(tmp_path: Path) -> None:
    found = []
    with GalleryStore.open(tmp_path) as store:
        for name in ("one", "two"):
            gallery = store.create(gallery_spec(name))
            gallery.put(new_images(2))
            found.append(histories(gallery)[2])
    assert found[0] != found[1]
