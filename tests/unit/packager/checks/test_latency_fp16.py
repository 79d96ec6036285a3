"""A graph on which ONNX Runtime 1.32 ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from pathlib import Path


def test_an_fp16_product_behind_a_transpose_loads_and_runs(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["half"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "weights"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", "n", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    (y,) = open_session(path, 1).run(None, {"x": x})
    expected = x.transpose(1, 0, 2) @ weights.astype(np.float32)
    assert np.abs(y - expected).max() < 0.02
