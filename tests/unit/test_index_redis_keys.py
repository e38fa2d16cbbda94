from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from index_samples import gallery_spec
from redis.crc import key_slot
from redis_samples import keys_of, open_truth, put
from redis_server import running_cluster_node, running_redis

from matchflow_index.redis_keys import (
    CUT_SIZES,
    ROW,
    SMALLEST_CUT,
    THUMBNAIL,
    GalleryKeys,
    StoreKeys,
    bucketed,
    cut,
    decode_head,
    encode_head,
    tail_key,
)
from matchflow_index.redis_sweeping import pending_ranges

if TYPE_CHECKING:
    from pathlib import Path

sizes = st.integers(0, 1 << 17) | st.sampled_from([(1 << n) + d for n in range(8, 20) for d in (-9, -8, -7, -1, 0, 1)])


@given(sizes)
def test_no_stored_value_is_as_long_as_a_block_of_memory(size: int) -> None:
    value = bytes(size)
    head, tail = cut(value)
    assert head + tail == value
    assert len(tail) <= 8
    if len(head) >= SMALLEST_CUT:
        block = 1 << (len(head) - 1).bit_length()
        assert len(head) <= block - 8
    if tail:
        assert len(head) in CUT_SIZES


@pytest.mark.parametrize("power", [11, 12, 14])
def test_a_row_of_a_power_of_two_takes_no_larger_block_of_memory(tmp_path: Path, power: int) -> None:
    """Redis itself says what a key takes: uncut, 2^n bytes take a quarter more than 2^n - 8."""
    with running_redis(tmp_path) as server, open_truth(server) as truth, server.client() as client:
        gallery = truth.create(gallery_spec())
        for size in range((1 << power) - 9, (1 << power) + 1):
            (change,) = put(truth, gallery, f"{size}", size=size)
            key = keys_of(gallery).value(ROW, change.row_id)
            client.set(b"uncut:" + key[6:], bytes(size))
            ours = client.memory_usage(key) + (client.memory_usage(tail_key(key)) or 0)
            uncut = client.memory_usage(b"uncut:" + key[6:])
            with truth.read(gallery) as snapshot:
                assert len(snapshot.row(change.row_id) or b"") == size
            assert client.strlen(key) <= (1 << power) - 8
            assert ours < (1 << power) + 200
            if size == 1 << power:
                assert uncut >= 1.25 * size
                assert ours < 1.15 * size


def test_all_keys_of_a_bucket_share_a_slot_and_those_of_a_gallery_another() -> None:
    keys = GalleryKeys("p", 7)
    for bucket in bucketed(range(1000, 1100)):
        assert len({key_slot(key) for row_id in bucket for key in keys.of_row(row_id)}) == 1
    together = [keys.gallery, keys.pending, *keys.contents]
    assert len({key_slot(key) for key in together}) == 1
    assert len({key_slot(keys.value(ROW, row_id)) for row_id in range(100)}) > 1
    store = StoreKeys("p")
    assert len({key_slot(key) for key in (store.store, store.galleries, store.counters, store.doomed)}) == 1


def test_keys_of_many_rows_are_those_of_each() -> None:
    keys = GalleryKeys("p", 7)
    for kind in (ROW, THUMBNAIL):
        assert keys.values(kind, range(50)) == [keys.value(kind, row_id) for row_id in range(50)]


def test_a_cluster_node_refuses_what_reaches_over_several_slots(tmp_path: Path) -> None:
    """The contract's second server would see a command whose keys are in several slots."""
    keys = GalleryKeys("p", 7)
    with (
        running_cluster_node(tmp_path) as server,
        server.client() as client,
        pytest.raises(redis.ResponseError, match="same slot"),
    ):
        client.mget(keys.values(ROW, range(8)))


@given(st.integers(0, 2**64 - 1), st.binary(min_size=8, max_size=8))
def test_a_head_is_read_as_it_was_written(sequence: int, digest: bytes) -> None:
    assert decode_head(encode_head(sequence, digest)) == (sequence, digest)


@given(st.sets(st.integers(0, 200)))
def test_pending_ranges_hold_the_same_rows(row_ids: set[int]) -> None:
    ranges = [tuple(map(int, text.split(b"-"))) for text in pending_ranges(row_ids)]
    assert sorted(row_ids) == [row_id for first, last in ranges for row_id in range(first, last + 1)]
    assert all(second[0] > first[1] + 1 for first, second in pairwise(ranges))
