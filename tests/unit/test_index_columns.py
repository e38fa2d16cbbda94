"""The columns say of every slot what the conditions say of its labels, whatever happened to them before."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_strategies import START, conditions, labels

from matchflow_index import LabelCondition, LabelRange
from matchflow_index.columns import LabelColumns
from matchflow_index.errors import CacheDamagedError
from matchflow_index.labels import LabelKind, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index import LabelValue

Plain = list[dict[str, "LabelValue"]]

batches = st.lists(st.lists(labels, max_size=5), max_size=4)
changes = st.lists(st.tuples(st.integers(0, 100), labels), max_size=8)


def built(batches: list[Plain], changes: list[tuple[int, dict[str, LabelValue]]]) -> tuple[LabelColumns, Plain]:
    """Return columns, and the labels that they should hold."""
    columns, plain = LabelColumns(), [each for batch in batches for each in batch]
    for batch in batches:
        columns.extend(batch)
    for slot, each in changes:
        if plain:
            columns.replace(slot % len(plain), each)
            plain[slot % len(plain)] = each
    return columns, plain


def columns_of(plain: Plain) -> LabelColumns:
    columns = LabelColumns()
    columns.extend(plain)
    return columns


@given(batches=batches, changes=changes, condition=conditions)
def test_the_columns_say_what_the_condition_says_of_each_image(
    batches: list[Plain], changes: list[tuple[int, dict[str, LabelValue]]], condition: LabelCondition
) -> None:
    columns, plain = built(batches, changes)
    assert columns.size == len(plain)
    assert columns.mask(condition).tolist() == [condition.accepts(each) for each in plain]


@given(batches=batches, changes=changes, more=batches, condition=conditions)
def test_columns_read_back_from_a_cache_are_the_same_and_go_on_growing(
    batches: list[Plain],
    changes: list[tuple[int, dict[str, LabelValue]]],
    more: list[Plain],
    condition: LabelCondition,
) -> None:
    columns, plain = built(batches, changes)
    data = columns.encode()
    again = LabelColumns.decode(data, size=len(plain))
    assert again.encode() == data
    for batch in more:
        again.extend(batch)
        plain += batch
    assert again.mask(condition).tolist() == [condition.accepts(each) for each in plain]


@given(batches=batches, changes=changes, keep=st.sets(st.integers(0, 19)), condition=conditions)
def test_slots_that_are_taken_keep_their_labels_and_can_change_again(
    batches: list[Plain],
    changes: list[tuple[int, dict[str, LabelValue]]],
    keep: set[int],
    condition: LabelCondition,
) -> None:
    columns, plain = built(batches, changes)
    slots = sorted(keep & set(range(len(plain))))
    taken, kept = columns.take(np.array(slots, np.int64)), [plain[slot] for slot in slots]
    assert taken.mask(condition).tolist() == [condition.accepts(each) for each in kept]
    if kept:
        taken.replace(len(kept) - 1, {"class": "new"})
        kept[-1] = {"class": "new"}
    taken.extend(plain)
    assert taken.mask(condition).tolist() == [condition.accepts(each) for each in kept + plain]
    assert columns.mask(condition).tolist() == [condition.accepts(each) for each in plain]


@given(batches=batches, changes=changes)
def test_codes_are_equal_where_values_are_and_zero_where_there_is_none(
    batches: list[Plain], changes: list[tuple[int, dict[str, LabelValue]]]
) -> None:
    columns, plain = built(batches, changes)
    for field in ("designer", "unseen"):
        codes = columns.codes(field)
        assert codes.dtype == np.int32
        values = [each.get(field) for each in plain]
        assert (codes == 0).tolist() == [value is None for value in values]
        of_value: dict[tuple[LabelKind, LabelValue], set[int]] = {}
        for code, value in zip(codes.tolist(), values, strict=True):
            if value is not None:
                of_value.setdefault((kind_of(value), value), set()).add(code)
        given = [code for found in of_value.values() for code in found]
        assert len(given) == len(set(given)) == len(of_value)


@given(batches=batches, changes=changes, wanted=st.lists(st.integers(0, 100), max_size=8))
def test_labels_are_read_back_as_they_were_given(
    batches: list[Plain], changes: list[tuple[int, dict[str, LabelValue]]], wanted: list[int]
) -> None:
    columns, plain = built(batches, changes)
    again = LabelColumns.decode(columns.encode(), size=len(plain))
    slots = [slot % len(plain) for slot in wanted if plain]
    taken = columns.take(np.array(sorted(set(slots)), np.int64))
    for found in (columns.of(np.array(slots, np.int64)), again.of(np.array(slots, np.int64))):
        assert found == [plain[slot] for slot in slots]
        for labels_found, slot in zip(found, slots, strict=True):
            for name, value in labels_found.items():
                assert kind_of(value) is kind_of(plain[slot][name])
    assert taken.of(np.arange(len(set(slots)))) == [plain[slot] for slot in sorted(set(slots))]


def test_columns_grow_beyond_their_first_size() -> None:
    columns = LabelColumns()
    for start in range(0, 5000, 700):
        columns.extend([{"number": str(k)} for k in range(start, start + 700)])
    mask = columns.mask(LabelCondition(field="number", any_of=frozenset({"3", "4321"})))
    assert np.flatnonzero(mask).tolist() == [3, 4321]


def test_a_rare_label_takes_memory_for_those_that_have_it_only() -> None:
    plain: Plain = [{"common": "x"}] * 5000
    plain[17] = {"common": "x", "rare": 1.0}
    assert len(columns_of(plain).encode()) < 5000 * 8 + 500


@pytest.mark.parametrize("density", [1, 3, 40])
def test_labels_put_in_between_are_found_however_dense_the_column_is(density: int) -> None:
    plain: Plain = [{"n": float(k)} if k % density == 0 else {} for k in range(2000)]
    columns = columns_of(plain)
    for slot in (1, 1999, 0, 1000, 1001):
        plain[slot] = {"n": -float(slot), "t": START}
        columns.replace(slot, plain[slot])
    for condition in (
        LabelCondition(field="n", within=LabelRange(lt=0)),
        LabelCondition(field="n"),
        LabelCondition(field="t", within=LabelRange(lte=START)),
    ):
        assert columns.mask(condition).tolist() == [condition.accepts(each) for each in plain]


def test_a_set_of_many_values_is_looked_up() -> None:
    plain: Plain = [{"n": k / 4, "s": str(k), "t": datetime(2000 + k, 1, 1, tzinfo=UTC)} for k in range(400)]
    columns = columns_of(plain)
    for values in (
        frozenset(float(k) for k in range(50)),
        frozenset(str(k) for k in range(0, 900, 7)),
        frozenset(datetime(k, 1, 1, tzinfo=UTC) for k in range(1990, 2100, 3)),
    ):
        for field in "nst":
            condition = LabelCondition(field=field, any_of=values)
            assert columns.mask(condition).tolist() == [condition.accepts(each) for each in plain]


def test_a_whole_number_that_float64_can_not_hold_equals_none() -> None:
    columns = columns_of([{"n": 2.0**60}])
    condition = LabelCondition(field="n", any_of=frozenset({2**60 + 1}))
    assert columns.mask(condition).tolist() == [condition.accepts({"n": 2.0**60})] == [False]


def test_texts_that_nobody_has_are_forgotten_when_slots_are_taken() -> None:
    columns = columns_of([{"name": f"person {k}"} for k in range(100)])
    columns.replace(3, {"name": "somebody else"})
    data = columns.take(np.array([3, 5])).encode()
    assert b"person 5" in data
    assert b"somebody else" in data
    assert b"person 3" not in data
    assert b"person 7" not in data


def head_of(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", data)
    head: dict[str, Any] = json.loads(data[4 : 4 + length])
    return head


def with_head(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    (length,) = struct.unpack_from("<I", data)
    head = head_of(data)
    change(head)
    changed = json.dumps(head).encode()
    return struct.pack("<I", len(changed)) + changed + data[4 + length :]


SMALL: Plain = [{"a": "x", "n": 1.0}, {"a": "y", "n": 2.0}, {"a": "x", "n": 3.0, "t": START}]


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.pop("size"),
        lambda head: head.update(size=4),
        lambda head: head.update(columns=None),
        lambda head: head["columns"][0].pop("field"),
        lambda head: head["columns"][0].update(field=3),
        lambda head: head["columns"][0].update(field=["a"]),
        lambda head: head["columns"][0].update(kind="colour"),
        lambda head: head["columns"][0].update(kind="number"),
        lambda head: head["columns"][0].update(entries=2),
        lambda head: head["columns"][0].update(entries=10**9),
        lambda head: head["columns"][0].update(entries=-1),
        lambda head: head["columns"][0].update(entries="3"),
        lambda head: head["columns"][0].update(texts=["x"]),
        lambda head: head["columns"][0].update(texts=["x", "x"]),
        lambda head: head["columns"][0].update(texts=["x", 7]),
        lambda head: head["columns"][0].update(texts=None),
        lambda head: head["columns"][1].update(texts=["x"]),
        lambda head: head["columns"][1].update(field="a", kind="text", texts=["x"]),
        lambda head: head["columns"].pop(),
        lambda head: head["columns"].append(head["columns"][0]),
    ],
)
def test_a_head_that_nobody_wrote_is_damage(change: Callable[[dict[str, Any]], object]) -> None:
    data = columns_of(SMALL).encode()
    with pytest.raises(CacheDamagedError):
        LabelColumns.decode(with_head(data, change), size=3)


@pytest.mark.parametrize("array", ["slots", "entries"])
@pytest.mark.parametrize("value", [-1, 3, 0x7FFFFFFF])
def test_numbers_out_of_place_are_damage(array: str, value: int) -> None:
    data = bytearray(columns_of(SMALL).encode())
    (length,) = struct.unpack_from("<I", data)
    place = 4 + length + (4 if array == "slots" else 12)
    struct.pack_into("<i", data, place, value)
    with pytest.raises(CacheDamagedError):
        LabelColumns.decode(bytes(data), size=3)


def test_an_infinite_number_is_damage() -> None:
    columns = columns_of([{"n": 1.0}])
    data = columns.encode().replace(struct.pack("<d", 1.0), struct.pack("<d", np.inf))
    with pytest.raises(CacheDamagedError, match="infinite"):
        LabelColumns.decode(data, size=1)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(CacheDamagedError):
        LabelColumns.decode(data, size=3)


def test_a_cut_is_damage_wherever_it_is() -> None:
    data = columns_of(SMALL).encode()
    for length in range(len(data)):
        with pytest.raises(CacheDamagedError):
            LabelColumns.decode(data[:length], size=3)
    with pytest.raises(CacheDamagedError, match="expected"):
        LabelColumns.decode(data + b"\0", size=3)


def test_columns_of_another_number_of_slots_are_refused() -> None:
    with pytest.raises(CacheDamagedError, match="of 3 slots; expected 4"):
        LabelColumns.decode(columns_of(SMALL).encode(), size=4)
