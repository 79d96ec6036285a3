"""bfloat16 through ONNX Runtime's Python sessions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from packager.checks.bfloat16 import with_bfloat16
from packager.checks.parity import compare

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KINDS = {
    "half": TensorProto.BFLOAT16,
    "scalar": TensorProto.BFLOAT16,
    "flag": TensorProto.BOOL,
    "text": TensorProto.STRING,
}


def raw_session(*names: str) -> Any:
    """Return a session that gives each input back as `NAME.out`."""
    shapes = {name: [] if name == "scalar" else ["n", 2] for name in names}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}.out"]) for name in names],
        "g",
        [value(name, KINDS[name], shapes[name]) for name in names],
        [value(f"{name}.out", KINDS[name], shapes[name]) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("rows", [3, 0])
def test_arrays_of_any_order_size_and_type_come_back_as_they_went(rows: int) -> None:
    session = with_bfloat16(raw_session("half", "scalar", "flag"))
    feeds = {
        "half": np.arange(rows * 2).reshape(2, rows).astype(BFLOAT16).T,
        "scalar": np.asarray(-1.5, BFLOAT16),
        "flag": np.ones((rows, 2), bool),
    }
    got = session.run(None, feeds)
    assert [array.dtype for array in got] == [BFLOAT16, BFLOAT16, bool]
    for array, fed in zip(got, feeds.values(), strict=True):
        assert array.shape == fed.shape
        assert array.tolist() == fed.tolist()
        assert array.flags.writeable
    (one,) = session.run(["flag.out"], feeds)
    assert one.dtype == bool


def test_nan_infinities_and_the_sign_of_zero_keep_their_bits() -> None:
    bits = np.array([[0x7FC1, 0xFF80], [0x8000, 0x0001]], np.uint16)
    (got,) = with_bfloat16(raw_session("half")).run(None, {"half": bits.view(BFLOAT16)})
    assert got.view(np.uint16).tolist() == bits.tolist()


def test_answers_outlive_the_session_that_gave_them() -> None:
    fed = np.arange(2048).reshape(1024, 2).astype(BFLOAT16)
    answers = [with_bfloat16(raw_session("half")).run(None, {"half": fed})[0] for _ in range(8)]
    assert all((answer == fed).all() for answer in answers)


def test_a_session_without_bfloat16_stays_itself() -> None:
    session = raw_session("flag", "text")
    assert with_bfloat16(session) is session


def test_texts_may_stand_beside_bfloat16_where_that_is_no_output_asked_for() -> None:
    session = with_bfloat16(raw_session("half", "text"))
    feeds = {
        "half": np.ones((1, 2), BFLOAT16),
        "text": np.array([["a", "ß"]], dtype=object),
    }
    (got,) = session.run(["text.out"], feeds)
    assert got.tolist() == [["a", "ß"]]
    # What the linter refuses such models for; when this works, it need not any more.
    with pytest.raises(RuntimeError, match="non-string"):
        session.run(["half.out"], feeds)


def test_onnx_runtime_alone_takes_no_bfloat16() -> None:
    """When this fails, the module under test has become needless."""
    with pytest.raises(RuntimeError, match="can't be converted"):
        raw_session("half").run(None, {"half": np.ones((1, 2), BFLOAT16)})


def test_a_difference_in_bfloat16_is_measured_as_of_floats() -> None:
    want = {"y": np.array([[1, 2, 3, 4, 5, 6, 7, 8]], BFLOAT16)}
    have = {"y": np.array([[1, 2, 3, 4, 5, 6, 7, 9]], BFLOAT16)}
    parity = compare([want], [have])
    assert parity.max_abs == 1
    assert 0.99 < parity.cosine < 1
