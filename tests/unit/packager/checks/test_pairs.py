"""Q/DQ pairs that ONNX Runtime must not fuse, everywhere or where 8-bit products saturate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from packager.checks.pairs import kept_pairs

if TYPE_CHECKING:
    from pathlib import Path


def product(
    path: Path, *, zero: tuple[str, int] = ("uint8", 128), weight: tuple[str, int] = ("int8", 127),
    scale: str = "float32", turned: bool = False, second: bool = False,
) -> Path:  # fmt: skip
    """Write a product of quantized inputs and weights, or of two quantized inputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(scale))
    constants = {
        "scale": np.array(0.01, scale),
        "zero": np.array(zero[1], zero[0]),
        "none": np.array(0, weight[0]),
        "w": np.full((4, 4), weight[1], weight[0]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["b"]),
        helper.make_node("Transpose", ["b"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "a" if second else "turned" if turned else "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, [4, 4])],
        [helper.make_tensor_value_info("y", kind, [4, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), path)
    return path


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "saturating"),
        ({"turned": True}, "saturating"),
        ({"weight": ("int8", -65)}, "saturating"),
        ({"weight": ("int8", 64)}, None),
        ({"weight": ("int8", -64), "zero": ("int8", 0)}, None),
        ({"weight": ("uint8", 255)}, None),
        ({"second": True}, None),
        ({"second": True, "zero": ("int8", 0)}, "saturating"),
        ({"weight": ("int8", 64), "scale": "float16"}, "always"),
    ],
)
def test_the_second_factor_decides(
    options: dict[str, Any], word: str | None, tmp_path: Path
) -> None:
    assert kept_pairs(product(tmp_path / "model.onnx", **options)) == word


def test_a_table_of_the_full_range_is_no_factor(tmp_path: Path) -> None:
    path = product(tmp_path / "model.onnx", weight=("int8", 64))
    model = onnx.load(path)
    table = numpy_helper.from_array(np.full((9, 4), -127, np.int8), "table")
    model.graph.initializer.append(table)
    rows = helper.make_node("DequantizeLinear", ["table", "scale", "none"], ["rows"])
    model.graph.node.extend([rows, helper.make_node("Gather", ["rows", "which"], ["embedded"])])
    onnx.save(model, path)
    assert kept_pairs(path) is None


def test_a_float_model_and_an_empty_file_have_no_pairs(tmp_path: Path) -> None:
    path = product(tmp_path / "model.onnx")
    model = onnx.load(path)
    del model.graph.node[:4]
    model.graph.node[0].input[:] = ["x", "x"]
    onnx.save(model, path)
    assert kept_pairs(path) is None
    path.write_bytes(b"")
    assert kept_pairs(path) is None
