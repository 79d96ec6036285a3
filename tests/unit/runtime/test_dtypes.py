"""The table of element types agrees with NumPy and ONNX."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtime import dtypes

NUMPY_NAMES = [dtype.name for dtype in dtypes.TABLE if dtype.npy]


@pytest.mark.parametrize("dtype", dtypes.TABLE, ids=lambda dtype: dtype.name)
def test_the_enum_is_onnxs_own(dtype: dtypes.DType) -> None:
    # ONNX Runtime's enum repeats the first seventeen numbers of ONNX's
    expected = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype.name, dtype.name.upper())
    assert TensorProto.DataType.Value(expected) == dtype.onnx


@pytest.mark.parametrize("name", NUMPY_NAMES)
def test_sizes_descriptors_and_codes_are_numpys(name: str) -> None:
    dtype = dtypes.BY_NAME[name]
    assert np.dtype(name).str == dtype.npy
    assert np.dtype(name).itemsize == dtype.itemsize
    assert np.dtype(dtype.code) == np.dtype(name)
    assert helper.tensor_dtype_to_np_dtype(dtype.onnx) == np.dtype(name)


def test_the_protocols_names_are_those_of_its_specification() -> None:
    assert sorted(dtypes.BY_PROTOCOL) == [
        "BF16", "BOOL", "BYTES", "FP16", "FP32", "FP64", "INT16", "INT32", "INT64", "INT8",
        "UINT16", "UINT32", "UINT64", "UINT8",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(dtypes.INTEGERS))
def test_integer_ranges_are_numpys(name: str) -> None:
    allowed = dtypes.integer_range(name)
    info = np.iinfo(name)
    assert (allowed.start, allowed.stop - 1) == (info.min, info.max)
    ends = [int(info.min), int(info.max)]
    assert dtypes.pack(name, ends) == np.array(ends, name).tobytes()
    assert dtypes.unpack(name, dtypes.pack(name, ends)) == ends


@given(st.lists(st.floats(width=32)))
def test_bfloat16_rounds_as_everyone_does(values: list[float]) -> None:
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16)
    packed = dtypes.pack("bfloat16", values)
    got = np.frombuffer(packed, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(dtypes.unpack("bfloat16", packed), expected.astype(np.float32))


@given(st.lists(st.floats(width=16)))
def test_float16_goes_there_and_back(values: list[float]) -> None:
    packed = dtypes.pack("float16", values)
    np.testing.assert_array_equal(np.frombuffer(packed, np.float16), values)
    np.testing.assert_array_equal(dtypes.unpack("float16", packed), values)


def test_a_near_word_is_found_and_a_far_one_is_not() -> None:
    assert dtypes.closest("pixls", ["pixels", "mask"]) == "pixels"
    assert dtypes.closest("zzz", ["pixels", "mask"]) is None
