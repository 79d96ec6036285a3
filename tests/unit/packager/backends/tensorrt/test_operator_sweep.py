"""A network of many common operators of a late opset, fitted to every TensorRT."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.backends.tensorrt.preflight import preflight
from packager.passes.contract import opset_of
from packager.target import find_target
from tests.unit.packager.backends.tensorrt.onnx_drawing import (
    answers,
    graph_of,
    node,
    noise,
    operators,
    tensorrt,
)

if TYPE_CHECKING:
    from pathlib import Path

# Each takes `x` [n, 8, 6, 6] or a constant and gives the same shape, or one that broadcasts.
UNARY = """
    Abs Acosh Atan Ceil Celu Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu
    LogSoftmax Mish Neg Relu Round Selu Sigmoid Sign Sin Softmax Softplus Softsign Tanh
    GlobalAveragePool GlobalMaxPool
"""
BINARY = "Add Sub Mul Div Max Min PRelu Mean Sum"
OTHERS: tuple[tuple[Any, ...], ...] = (
    ("LayerNormalization", "x size6", {"axis": -1}),
    ("GroupNormalization", "x size8 size8", {"num_groups": 4}),
    ("InstanceNormalization", "x size8 size8", {}),
    ("BatchNormalization", "x size8 size8 size8 size8", {}),
    ("Conv", "x kernel", {"pads": [1, 1, 1, 1]}),
    ("MatMul", "x square", {}),
    ("Einsum", "x square", {"equation": "nchw,wk->nchk"}),
    ("MaxPool", "x", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", "x", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("ReduceMean", "x axes", {"keepdims": 1}),
    ("ReduceMax", "x axes", {"keepdims": 1}),
    ("ReduceL2", "x axes", {"keepdims": 1}),
    ("ReduceSumSquare", "x axes", {"keepdims": 1}),
    ("Transpose", "x", {"perm": [0, 1, 3, 2]}),
    ("Clip", "x low high", {}),
    ("CumSum", "x last", {}),
    ("Pad", "cut grown", {"mode": "edge"}),
    ("Slice", "x from to axes2", {}),
    ("Resize", "small - scales", {"mode": "linear"}),
    ("Gather", "x order", {"axis": 1}),
    ("GridSample", "x grid", {"mode": "linear"}),
    ("Where", "yes x other", {}),
    ("Trilu", "x", {}),
    ("TopK", "x six", {"axis": 3}),
    ("ArgMax", "x", {"axis": 3}),
    ("DepthToSpace", "deep", {"blocksize": 2}),
    ("LpNormalization", "x", {}),
    ("LRN", "x", {"size": 3}),
)
CONSTANTS: dict[str, Any] = {
    "size6": noise(6),
    "size8": np.abs(noise(8, seed=1)) + 0.5,
    "kernel": noise(8, 8, 3, 3) * 0.1,
    "square": noise(6, 6) * 0.3,
    "axes": np.array([2, 3]),
    "axes2": np.array([2, 3]),
    "from": np.array([0, 0]),
    "to": np.array([6, 6]),
    "low": np.float32(-1),
    "high": np.float32(1),
    "last": np.array([3]),
    "grown": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "order": np.array([7, 6, 5, 4, 3, 2, 1, 0]),
    "grid": np.tanh(noise(1, 6, 6, 2)),
    "other": np.abs(noise(1, 8, 6, 6)) + 0.5,
    "six": np.array([6]),
    "cut_to": np.array([5, 5]),
    "half": np.array([3, 3]),
    "flat": np.array([-1, 32, 3, 3]),
    "wide": noise(32, 8, 1, 1),
}


def network() -> Any:
    """Return every operator on one value, and the sum of what they give."""
    nodes = [
        node("Conv", "image kernel", "raw", pads=[1, 1, 1, 1]),
        node("Clip", "raw low high", "clipped"),
        node("Add", "clipped high2", "x"),
        node("Greater", "x one", "yes"),
        node("Slice", "x from cut_to axes2", "cut"),
        node("Slice", "x from half axes2", "small"),
        node("Conv", "small wide", "deep"),
    ]
    parts: list[str] = []

    def add(operator: str, names: str, attributes: dict[str, Any]) -> None:
        out = f"out_{operator}"
        given = f"{out} more_{operator}" if operator == "TopK" else out
        nodes.append(node(operator, names, given, **attributes))
        if operator == "ArgMax":
            nodes.append(node("Cast", out, "as_float", to=onnx.TensorProto.FLOAT))
            out = "as_float"
        parts.append(out)

    for operator in UNARY.split():
        add(operator, "x", {})
    for operator in BINARY.split():
        add(operator, "x other", {})
    for operator, names, attributes in OTHERS:
        add(operator, names, attributes)
    nodes.append(node("Split", "x", "left right", axis=1, num_outputs=2))
    nodes.append(node("Concat", "right left", "swapped", axis=1))
    parts.append("swapped")
    total = "x"
    for number, part in enumerate(parts):
        nodes.append(node("Mul", f"{part} little", f"scaled_{number}"))
        nodes.append(node("Add", f"{total} scaled_{number}", f"sum_{number}"))
        total = f"sum_{number}"
    nodes.append(node("Identity", total, "y"))
    constants = {
        **CONSTANTS,
        "high2": np.float32(2.5),
        "one": np.float32(2.5),
        "little": np.float32(0.1),
    }
    return graph_of(
        nodes,
        {"image": (np.float32, [1, 8, 6, 6])},
        {"y": (np.float32, [1, 8, 6, 6])},
        constants,
        opset=21,
    )


@pytest.mark.parametrize("version", ["rtx", "8.5.2.2", "8.6.2.3", "10.3.0.30", "10.16.2.10"])
def test_common_operators_of_a_late_opset_all_fit(version: str, tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "whole.onnx"
    onnx.save(model, path)
    base = find_target("cpu-x86_64")
    target = dataclasses.replace(base, tensorrt=tensorrt(version))
    feeds = {"image": noise(1, 8, 6, 6, seed=9)}
    found = preflight(path, target, tmp_path, samples=[feeds])
    assert found.moved == ()
    assert found.support is None or found.support.parsed
    core = onnx.load(found.parts.core)
    onnx.checker.check_model(core, full_check=True)
    assert target.tensorrt is not None
    assert opset_of(core) <= target.tensorrt.max_opset
    assert ("LayerNormalization" in operators(core)) == (version != "8.5.2.2")
    (wanted,), (got,) = answers(model, feeds), answers(core, feeds)
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-5)
