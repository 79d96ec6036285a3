from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.checks.batching import batchable_rows, choose_batching
from packager.model import Dim, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=32, opt=1)


def signature(first: Any = BATCH, width: int = 64, outputs: Any = BATCH) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(first, Dim(size=width))),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(outputs, Dim(size=width))),),
    )


def write(path: Path, nodes: list[Any], weights: dict[str, Any], width: int) -> Path:
    shape = ["batch", width]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def products(path: Path, width: int) -> Path:
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / width
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return write(path, nodes, {"w": weight}, width)


def test_large_products_gain_from_company(tmp_path: Path) -> None:
    model = products(tmp_path / "m.onnx", 3000)
    choice = choose_batching(model, signature(width=3000), threads=1)
    assert choice.rows == 16
    assert choice.gain is not None
    assert choice.gain > 2
    assert "x the requests" in choice.reason


def test_small_products_are_left_alone(tmp_path: Path) -> None:
    model = products(tmp_path / "m.onnx", 8)
    choice = choose_batching(model, signature(width=8), threads=1)
    assert choice.rows == 0
    assert choice.gain is not None


def test_what_is_asked_for_is_done_where_it_changes_no_answer(tmp_path: Path) -> None:
    model = products(tmp_path / "m.onnx", 8)
    choice = choose_batching(model, signature(width=8), threads=1, rows=4, forced=True)
    assert choice.rows == 4


def test_rows_that_change_each_other_are_kept_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    model = write(tmp_path / "m.onnx", nodes, {}, 8)
    choice = choose_batching(model, signature(width=8), threads=1, forced=True)
    assert choice.rows == 0
    assert "changes with the rows beside it" in choice.reason


def test_rows_that_share_a_scale_are_kept_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = write(tmp_path / "m.onnx", nodes, {}, 8)
    choice = choose_batching(model, signature(width=8), threads=1, forced=True)
    assert choice.rows == 0
    assert "scales all rows" in choice.reason


def test_nobody_is_made_to_wait_for_rows_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.checks.batching._LONGEST_ROW_S", 0.0)
    model = products(tmp_path / "m.onnx", 8)
    choice = choose_batching(model, signature(width=8), threads=1, forced=True)
    assert choice.rows == 0
    assert "too long to wait" in choice.reason


@pytest.mark.parametrize(
    ("first", "outputs", "rows"),
    [
        (BATCH, BATCH, 32),
        (Dim(size=1), BATCH, 0),
        (BATCH, Dim(size=1), 0),
        (BATCH, Dim(name="other", min=1, max=32, opt=1), 0),
        (Dim(name="batch", min=1, max=1, opt=1), Dim(name="batch", min=1, max=1, opt=1), 0),
        (BATCH, Dim(), 0),
    ],
)
def test_requests_are_joined_along_one_open_first_axis(first: Dim, outputs: Dim, rows: int) -> None:
    assert batchable_rows(signature(first, outputs=outputs)) == rows
