"""Small ONNX models that the import tests build, sound ones and hostile ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(
    name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    opsets: dict[str, int] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid(d, v) for d, v in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **options)


def dense(rows: int | str | None = "N", columns: int = 4) -> onnx.ModelProto:
    """Return y = x W + b with a weight of [columns, 3]."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((columns, 3)).astype(np.float32)
    return model(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"])],
        [value("x", [rows, columns])],
        [value("y", [rows, 3])],
        [constant("W", weight), constant("b", np.ones(3, np.float32))],
    )


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def externalise(proto: onnx.ModelProto, name: str, **entries: str) -> bytes:
    """Move a float initializer out of the model and return the bytes of its data file."""
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    data = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, text in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return data
