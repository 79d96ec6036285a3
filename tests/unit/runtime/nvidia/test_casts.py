"""Integers and floats in another width: the same numbers, or a refusal."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.dtypes import pack, unpack
from runtime.errors import BadRequest
from runtime.nvidia.casts import (
    double_to_single,
    find_cast,
    narrow_int64,
    single_to_double,
    widen_int32,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(INT32 | st.integers(-3, 3)))
def test_every_32_bit_integer_survives_both_ways(values: list[int]):
    assert narrow_int64("x", pack("int64", values)) == pack("int32", values)
    assert widen_int32(pack("int32", values)) == pack("int64", values)


@given(st.lists(INT64 | INT32, min_size=1))
def test_integers_are_refused_exactly_where_they_do_not_fit(values: list[int]):
    if all(-(2**31) <= value < 2**31 for value in values):
        assert unpack("int32", narrow_int64("x", pack("int64", values))) == values
        return
    with pytest.raises(BadRequest, match="input `ids` holds a number out of the range of int32"):
        narrow_int64("ids", pack("int64", values))


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_single_precision_survives_both_ways(values: list[float]):
    wide = single_to_double(pack("float32", values))
    assert unpack("float64", wide) == values
    assert double_to_single("x", wide) == pack("float32", values)


def test_data_may_be_any_buffer():
    numbers = array("q", [1, -2])
    assert unpack("int32", narrow_int64("x", memoryview(numbers))) == [1, -2]


def test_only_widths_are_converted():
    assert find_cast("int64", "int32") is not None
    assert find_cast("float64", "float32") is not None
    assert find_cast("int32", "int64") is None
    assert find_cast("float32", "float16") is None
