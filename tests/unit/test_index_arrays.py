"""Named arrays as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from matchflow_index.arrays import array_of, decode_arrays, encode_arrays
from matchflow_index.errors import CacheDamagedError

DTYPES = ["<f4", ">f4", "f8", "i8", ">i4", "u4", "u1", "?", "i2"]
named = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)


@given(given_arrays=named)
@settings(deadline=None)
def test_arrays_are_read_as_they_were_written(given_arrays: dict[str, Any]) -> None:
    found = decode_arrays(encode_arrays(given_arrays))
    assert list(found) == list(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


@given(given_arrays=named, data=st.data())
@settings(deadline=None)
def test_bytes_too_few_or_too_many_are_refused(given_arrays: dict[str, Any], data: st.DataObject) -> None:
    whole = encode_arrays(given_arrays)
    with pytest.raises(CacheDamagedError):
        decode_arrays(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CacheDamagedError):
        decode_arrays(whole + b"\0")


@given(data=st.binary(max_size=64))
def test_what_is_no_block_of_arrays_is_refused(data: bytes) -> None:
    with pytest.raises(CacheDamagedError):
        decode_arrays(data)


@pytest.mark.parametrize(
    "head", [b"[]", b"3", b'{"a": 1}', b'{"a": ["<f4", [-1]]}', b'{"a": ["O", [1]]}', b'{"a": [1, 2, 3]}']
)
def test_heads_that_describe_no_arrays_are_refused(head: bytes) -> None:
    with pytest.raises(CacheDamagedError):
        decode_arrays(len(head).to_bytes(4, "little") + head + bytes(8))


def test_an_array_that_is_not_there_is_named() -> None:
    with pytest.raises(CacheDamagedError, match="expected an array b; got \\['a'\\]"):
        array_of({"a": np.zeros(1)}, "b")
