"""Nodes of a later opset in the form of an older one say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from packager.backends.lowering import lower
from packager.errors import ModelUnsupported
from packager.passes.contract import opset_of
from tests.unit.packager.backends.tensorrt.onnx_drawing import answers, graph_of, node, noise

X = {"x": (np.float32, ["n", 6, 5])}


def lowered(model: Any, opset: int, feeds: dict[str, Any]) -> Any:
    after = onnx.ModelProto()
    after.CopyFrom(model)
    lower(after, name="the engine", max_opset=opset, max_ir_version=8, samples=[feeds])
    assert (opset_of(after), after.ir_version) == (opset, 8)
    for wanted, got in zip(answers(model, feeds), answers(after, feeds), strict=True):
        assert np.array_equal(wanted, got)
    return after


CASES: dict[str, tuple[Any, dict[str, Any], int, int, str | None]] = {
    "axes of a mean": (
        node("ReduceMean", "x c", "y", keepdims=0), {"c": np.array([1, 2])}, 18, 17, "axes"),
    "a maximum over all": (node("ReduceMax", "x", "y", keepdims=0), {}, 18, 17, None),
    "a reduction of nothing": (
        node("ReduceMax", "x", "y", noop_with_empty_axes=1), {}, 18, 17, None),
    "equal parts": (node("Split", "x", "y z", axis=1, num_outputs=2), {}, 18, 17, None),
    "unequal parts": (node("Split", "x", "y z", axis=2, num_outputs=2), {}, 18, 17, None),
    "pads of some axes": (
        node("Pad", "x c - a", "y"),
        {"c": np.array([1, 2]), "a": np.array([-1])}, 18, 17, None),
    "a resize without new words": (
        node("Resize", "x - s", "y", antialias=0, mode="linear",
             keep_aspect_ratio_policy="stretch", axes=[0, 1, 2]),
        {"s": np.array([1, 1, 2], np.float32)}, 19, 17, "mode"),
    "a saturating cast": (node("Cast", "x", "y", to=7, saturate=1), {}, 19, 17, "to"),
    "a type-only change": (node("Reshape", "x c", "y"), {"c": np.array([0, -1])}, 21, 17, None),
    "a pool with dilations of one": (
        node("AveragePool", "x", "y", kernel_shape=[2], dilations=[1]), {}, 19, 17,
        "kernel_shape"),
}  # fmt: skip


@pytest.mark.parametrize("form", CASES)
def test_nodes_take_the_older_form(form: str) -> None:
    made, constants, opset, limit, kept = CASES[form]
    dtype = np.int64 if made.op_type == "Cast" else np.float32
    outputs = dict.fromkeys(made.output, (dtype, None))
    model = graph_of([made], X, outputs, constants, opset=opset)
    after = lowered(model, limit, {"x": noise(2, 6, 5)})
    (other,) = after.graph.node
    if kept is not None:
        assert kept in {entry.name for entry in other.attribute}
    assert not {"saturate", "antialias", "num_outputs", "dilations"} & {
        entry.name for entry in other.attribute
    }


def test_a_grid_is_sampled_by_the_older_words() -> None:
    model = graph_of(
        [node("GridSample", "x g", "y", mode="linear")],
        {"x": (np.float32, [1, 2, 5, 5]), "g": (np.float32, [1, 3, 3, 2])},
        {"y": (np.float32, [1, 2, 3, 3])},
        opset=20,
    )
    feeds = {"x": noise(1, 2, 5, 5), "g": np.tanh(noise(1, 3, 3, 2, seed=1))}
    after = lowered(model, 17, feeds)
    assert after.graph.node[0].attribute[0].s == b"bilinear"


def test_a_dtype_that_an_attribute_says_becomes_a_zero_point() -> None:
    model = graph_of(
        [
            node("QuantizeLinear", "x s", "q", output_dtype=onnx.TensorProto.INT8),
            node("DequantizeLinear", "q s", "y"),
        ],
        X,
        {"y": (np.float32, ["n", 6, 5])},
        {"s": np.float32(0.1)},
        opset=21,
    )
    after = lowered(model, 17, {"x": noise(2, 6, 5)})
    zero = {t.name: t for t in after.graph.initializer}[after.graph.node[0].input[2]]
    assert zero.data_type == onnx.TensorProto.INT8


def test_a_form_that_the_older_opset_lacks_is_refused() -> None:
    model = graph_of(
        [node("Resize", "x - - c", "y", antialias=1, mode="linear")],
        {"x": (np.float32, [1, 2, 8, 8])},
        {"y": (np.float32, [1, 2, 4, 4])},
        {"c": np.array([1, 2, 4, 4])},
        opset=18,
    )
    with pytest.raises(ModelUnsupported, match="reads opset 17 at most, to which the model") as e:
        lower(model, name="the engine", max_opset=17, max_ir_version=8, samples=[])
    assert e.value.hint == "export the model with opset 17"


def test_axes_that_are_computed_are_not_lowered() -> None:
    model = graph_of(
        [node("ReduceMean", "x i", "y")],
        {**X, "i": (np.int64, [1])},
        {"y": (np.float32, ["n", "a", "b"])},
        opset=18,
    )
    with pytest.raises(ModelUnsupported, match="cannot be lowered from 18"):
        lower(model, name="the engine", max_opset=17, max_ir_version=8, samples=[])
