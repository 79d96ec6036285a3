"""Small real models of every kind that the engine has to serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models.mlp import make_mlp

if TYPE_CHECKING:
    from pathlib import Path

JSON_NAME = '{"name": "image/β", "index": [0]}'


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """A model file and inputs that it takes."""

    path: Path
    feeds: tuple[dict[str, np.ndarray], ...]


def _graph(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _one_node(operator: str, kind: int, shape: list[Any], **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    value = helper.make_tensor_value_info
    return _graph([node], [value("x", kind, shape)], [value("y", kind, shape)])


def _several() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return _graph(
        [
            helper.make_node("Add", ["a", "b"], ["total"]),
            helper.make_node("Cast", ["k"], ["k_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["total", "k_float"], ["scaled"]),
            helper.make_node("Greater", ["a", "b"], ["larger"]),
            helper.make_node("ArgMax", ["a"], ["best"], axis=1, keepdims=0),
        ],
        [
            value("a", TensorProto.FLOAT, ["n", 3]),
            value("b", TensorProto.FLOAT, ["n", 3]),
            value("k", TensorProto.INT64, [1]),
        ],
        [
            value("scaled", TensorProto.FLOAT, ["n", 3]),
            value("larger", TensorProto.BOOL, ["n", 3]),
            value("best", TensorProto.INT64, ["n"]),
        ],
    )


def _strange_names() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return _graph(
        [helper.make_node("Neg", [JSON_NAME], ["out/0:β"])],
        [value(JSON_NAME, TensorProto.FLOAT, ["n"])],
        [value("out/0:β", TensorProto.FLOAT, ["n"])],
    )


def _data_dependent(declared: list[Any]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return _graph(
        [helper.make_node("NonZero", ["x"], ["where"])],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("where", TensorProto.INT64, declared)],
    )


def _passed_through() -> onnx.ModelProto:
    """Outputs that no kernel writes: an input itself, and a constant."""
    value = helper.make_tensor_value_info
    constant = numpy_helper.from_array(np.arange(4, dtype=np.float32), "c")
    return _graph(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Identity", ["c"], ["constant"]),
        ],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("same", TensorProto.FLOAT, ["n"]), value("constant", TensorProto.FLOAT, [4])],
        [constant],
    )


def _branch() -> onnx.ModelProto:
    """An `If` whose branches give shapes that the metadata cannot know."""
    value = helper.make_tensor_value_info
    branches = []
    for name, count in (("then", 2), ("else", 5)):
        constant = numpy_helper.from_array(np.full(count, count, np.float32), "v")
        node = helper.make_node("Constant", [], [f"{name}_out"], value=constant)
        out = value(f"{name}_out", TensorProto.FLOAT, [count])
        branches.append(helper.make_graph([node], name, [], [out]))
    node = helper.make_node("If", ["cond"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return _graph(
        [node], [value("cond", TensorProto.BOOL, [])], [value("y", TensorProto.FLOAT, None)]
    )


def _cases() -> dict[str, tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]]:
    rng = np.random.default_rng(1)
    proto = TensorProto
    wide = np.array([0, 1, -1, 2**62, -(2**63)], np.int64)
    return {
        "mlp": (
            make_mlp(),
            [{"x": rng.standard_normal((n, 64)).astype(np.float32)} for n in (1, 1, 7, 1)],
        ),
        "several": (
            _several(),
            [
                {
                    "a": rng.standard_normal((n, 3)).astype(np.float32),
                    "b": rng.standard_normal((n, 3)).astype(np.float32),
                    "k": np.array([n], np.int64),
                }
                for n in (2, 2, 4)
            ],
        ),
        "int64": (_one_node("Abs", proto.INT64, ["n"]), [{"x": wide}, {"x": wide[::-1].copy()}]),
        "int8": (_one_node("Neg", proto.INT8, ["n"]), [{"x": np.array([-127, 5], np.int8)}] * 2),
        "uint8": (_one_node("Identity", proto.UINT8, ["n"]), [{"x": np.arange(256).astype("u1")}]),
        "int16": (_one_node("Identity", proto.INT16, ["n"]), [{"x": np.array([-(2**15)], "i2")}]),
        "uint16": (_one_node("Identity", proto.UINT16, ["n"]), [{"x": np.array([65535], "u2")}]),
        "int32": (_one_node("Neg", proto.INT32, ["n"]), [{"x": np.array([1, -7], np.int32)}] * 2),
        "uint32": (_one_node("Identity", proto.UINT32, ["n"]), [{"x": np.array([1 << 31], "u4")}]),
        "uint64": (_one_node("Identity", proto.UINT64, ["n"]), [{"x": np.array([1 << 63], "u8")}]),
        "bool": (
            _one_node("Not", proto.BOOL, ["n"]),
            [{"x": np.array([True, False])}, {"x": np.array([False, False])}],
        ),
        "double": (
            _one_node("Sqrt", proto.DOUBLE, ["n", 2]),
            [{"x": rng.random((3, 2))}, {"x": rng.random((3, 2))}],
        ),
        "float16": (
            _one_node("Identity", proto.FLOAT16, ["n"]),
            [{"x": rng.random(9).astype(np.float16)}] * 2,
        ),
        "string": (
            _one_node("Identity", proto.STRING, ["n", 2]),
            [
                {"x": np.array([["grüß", ""], ["日本", "a\nb"]])},
                {"x": np.array([["b", "longer than before"]])},
            ],
        ),
        "scalar": (_one_node("Neg", proto.FLOAT, []), [{"x": np.array(v, "f4")} for v in (2, 3)]),
        "zero_size": (
            _one_node("Relu", proto.FLOAT, ["n", 3]),
            [{"x": np.zeros((0, 3), np.float32)}] * 2 + [{"x": np.full((2, 3), -1, np.float32)}],
        ),
        "dynamic": (
            _one_node("Relu", proto.FLOAT, ["n", "height", "width"]),
            [
                {"x": rng.standard_normal(shape).astype(np.float32)}
                for shape in ((1, 2, 3), (3, 2, 1), (1, 2, 3), (2, 8, 8))
            ],
        ),
        "data_dependent": (
            _data_dependent([1, "found"]),
            [{"x": np.array(row, np.float32)} for row in ([0, 1, 1], [0, 0, 1], [1, 1, 1])],
        ),
        "lying_shape": (
            _data_dependent([1, "n"]),
            [{"x": np.array(row, np.float32)} for row in ([0, 1, 1], [0, 0, 1], [1, 1, 1])],
        ),
        "passed_through": (
            _passed_through(),
            [{"x": np.array(row, np.float32)} for row in ([0, 1, 1], [0, 0, 1], [1, 1])],
        ),
        "branch": (_branch(), [{"cond": np.array(flag)} for flag in (True, False, True, True)]),
        "strange_names": (
            _strange_names(),
            [{JSON_NAME: np.array(row, np.float32)} for row in ([1, 2], [3, 4])],
        ),
    }


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallModel]:
    """Return every small model by what is special about it."""
    folder = tmp_path_factory.mktemp("small-models")
    models = {}
    for name, (model, feeds) in _cases().items():
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        models[name] = SmallModel(path=path, feeds=tuple(feeds))
    return models
