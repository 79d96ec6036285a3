"""Tensors from JSON, to JSON and in the protocol's binary form."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import BadRequest
from runtime.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np


@given(
    hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_what_json_says_is_what_the_tensor_holds(values: np.ndarray) -> None:
    name = str(values.dtype)
    tensor = Tensor.from_nested(json.loads(json.dumps(values.tolist())), name)
    assert tensor.shape == values.shape
    assert bytes(tensor.data) == values.tobytes()
    assert tensor.to_nested() == values.tolist()
    assert Tensor.from_flat(values.ravel().tolist(), values.shape, name) == tensor
    assert Tensor.from_bytes(tensor.to_bytes(), values.shape, name) == tensor


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1))
def test_strings_go_to_bytes_and_back(rows: list[list[str]]) -> None:
    tensor = Tensor.from_nested(rows, "string")
    assert tensor.shape == (len(rows), 2)
    assert tensor.data == [item.encode() for row in rows for item in row]
    assert tensor.to_nested() == rows
    assert Tensor.from_bytes(tensor.to_bytes(), tensor.shape, "string") == tensor


@pytest.mark.parametrize(
    ("value", "shape"), [([], (0,)), ([[], []], (2, 0)), ([[[]]], (1, 1, 0)), (1, ())]
)
def test_empty_lists_and_scalars_have_their_shape(value: Any, shape: tuple[int, ...]) -> None:
    tensor = Tensor.from_nested(value, "float32")
    assert tensor.shape == shape
    assert tensor.to_nested() == value


def test_a_float_input_takes_integers() -> None:
    assert Tensor.from_nested([1, 2.5], "float32").to_flat() == [1.0, 2.5]
    assert Tensor.from_nested([1, 2], "bfloat16").to_flat() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([[1, 2], [3]], "float32", "`data[1]` has 1 elements where its neighbours have 2"),
        ([[1, 2], 3], "float32", "`data[1]` is an integer where its neighbours are lists"),
        ([1, [2]], "float32", "`data[1]` is a list where float32 needs a number"),
        ([[1, 2], [3, "4"]], "float32", "`data[1][1]` is a string where float32 needs a number"),
        ([1.0, None], "float32", "`data[1]` is null where float32 needs a number"),
        ([{}], "float32", "`data[0]` is an object where float32 needs a number"),
        ([0.5, True], "float32", "`data[1]` is a boolean where float32 needs a number"),
        ([1, True], "int64", "`data[1]` is a boolean where int64 needs an integer"),
        ([1, 2.0], "int64", "`data[1]` is a number with a fraction where int64 needs an integer"),
        ([0, 256], "uint8", "`data[1]` is out of the range of uint8, 0 to 255"),
        ([-129], "int8", "`data[0]` is out of the range of int8, -128 to 127"),
        ([1 << 64], "uint64", "`data[0]` is out of the range of uint64, 0 to 184467440737095516"),
        ([1], "bool", "`data[0]` is an integer where bool needs true or false"),
        ([1], "string", "`data[0]` is an integer where string needs a string"),
        (["\ud800"], "string", "`data` holds a lone surrogate, which is no text"),
        ("text", "float32", "`data` is a string where float32 needs a number"),
        ([1.0, math.inf], "float32", "`data[1]` is not a finite number"),
        ([math.nan], "float64", "`data[0]` is not a finite number"),
        ([1e39], "float32", "`data[0]` is too large for float32"),
        ([70000.0], "float16", "`data[0]` is too large for float16"),
        ([3.4e38], "bfloat16", "`data[0]` is too large for bfloat16"),
        ([10**400], "float64", "`data[0]` is too large for float64"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(value: Any, dtype: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Tensor.from_nested(value, dtype)
    assert caught.value.message.startswith(message)
    assert caught.value.status == 400


def test_a_message_says_what_the_caller_calls_the_value() -> None:
    with pytest.raises(BadRequest, match=r"`pixels\[0\]` is null"):
        Tensor.from_nested([None], "float32", where="pixels")


def test_lists_nested_too_deep_are_refused_without_recursion() -> None:
    value: Any = 1.0
    for _ in range(5000):
        value = [value]
    with pytest.raises(BadRequest, match="nested deeper than 32 lists"):
        Tensor.from_nested(value, "float32")


def test_large_finite_numbers_pass_although_their_sum_is_infinite() -> None:
    assert Tensor.from_nested([1.7e308, 1.7e308], "float64").to_flat() == [1.7e308, 1.7e308]


def test_infinities_pass_where_they_are_allowed() -> None:
    values = [math.inf, -math.inf, 1.0]
    assert Tensor.from_nested(values, "float32", allow_non_finite=True).to_flat() == values
    with pytest.raises(BadRequest, match="too large for float32"):
        Tensor.from_nested([1e39], "float32", allow_non_finite=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "`data` has 2 elements where shape [3] needs 3"),
        ([[1, 2, 3]], "`data` is nested as [1, 3] but its shape says [3]"),
        ("abc", "`data` has to be a list, not a string"),
        ({"a": 1}, "`data` has to be a list, not an object"),
    ],
)
def test_a_flat_list_has_to_fit_its_shape(values: Any, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Tensor.from_flat(values, [3], "float32")
    assert caught.value.message == message


def test_a_nested_list_passes_for_a_flat_one_where_it_has_the_shape() -> None:
    assert Tensor.from_flat([[1], [2]], (2, 1), "int8").to_nested() == [[1], [2]]


@pytest.mark.parametrize(
    ("data", "shape", "dtype", "message"),
    [
        (b"\0" * 7, (2,), "float32", "`data` has 7 bytes where float32 of shape [2] needs 8"),
        (b"\0\1\2", (3,), "bool", "`data` holds a byte that is neither 0 nor 1"),
        (b"\1\0\0\0", (1,), "string", "`data` is not 1 strings with their four-byte lengths"),
        (b"\xff\xff\xff\xffa", (1,), "string", "`data` is not 1 strings with their four-byte"),
        (b"\0\0\0\0\0", (1,), "string", "`data` is not 1 strings with their four-byte lengths"),
        (b"", (10**12,), "string", "`data` is not 1000000000000 strings"),
        (b"", (10**12,), "float32", "`data` has 0 bytes where float32 of shape"),
    ],
)
def test_binary_data_has_to_be_exactly_the_shapes(
    data: bytes, shape: tuple[int, ...], dtype: str, message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        Tensor.from_bytes(data, shape, dtype)
    assert caught.value.message.startswith(message)


def test_a_tensors_text_never_shows_its_contents() -> None:
    assert repr(Tensor.from_nested([["secret"]], "string")) == "Tensor(string, [1, 1])"


def test_tensors_are_equal_by_type_shape_and_bytes() -> None:
    one = Tensor("int8", (2,), b"\1\2")
    assert one == Tensor("int8", (2,), bytearray(b"\1\2"))
    assert one != Tensor("uint8", (2,), b"\1\2")
    assert one != Tensor("int8", (2, 1), b"\1\2")
    assert one != b"\1\2"


def test_invalid_utf8_in_an_answer_becomes_replacement_characters() -> None:
    assert Tensor("string", (1,), [b"a\xff"]).to_flat() == ["a\ufffd"]
