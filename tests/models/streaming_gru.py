"""A GRU that hands its state in and out, in ONNX alone: small, and right for any cut in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FEATURES, HIDDEN, CLASSES = 3, 5, 2


def make_streaming_gru(*, batch: int | str = "batch", time: int | str = "time") -> onnx.ModelProto:
    """Return signal [batch, time, 3] and h_in [1, batch, 5] → scores [batch, time, 2] and h_out."""
    random = np.random.default_rng(3)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.6, shape).astype(np.float32), name)

    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Transpose", ["signal"], ["by_time"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU", ["by_time", "w", "r", "b", "", "h_in"], ["states", "h_out"],
            hidden_size=HIDDEN, linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["states", "one"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["by_batch"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["by_batch", "head"], ["scores"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "streaming-gru",
        [
            value("signal", TensorProto.FLOAT, [batch, time, FEATURES]),
            value("h_in", TensorProto.FLOAT, [1, batch, HIDDEN]),
        ],
        [
            value("scores", TensorProto.FLOAT, [batch, time, CLASSES]),
            value("h_out", TensorProto.FLOAT, [1, batch, HIDDEN]),
        ],
        [
            weights("w", 1, 3 * HIDDEN, FEATURES),
            weights("r", 1, 3 * HIDDEN, HIDDEN),
            weights("b", 1, 6 * HIDDEN),
            weights("head", HIDDEN, CLASSES),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_signal(time: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return a signal [1, time, 3]."""
    random = np.random.default_rng(seed)
    return random.normal(size=(1, time, FEATURES)).astype(np.float32)


def scores_of(path: Path, signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores of a whole signal, from zeros, by ONNX Runtime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    zeros = np.zeros((1, len(signal), HIDDEN), np.float32)
    scores: Any = session.run(["scores"], {"signal": signal, "h_in": zeros})[0]
    return scores


def signature() -> dict[str, Any]:
    """Return the wire form of the model's own signature."""
    batch = {"name": "batch", "min": 1, "max": 8, "opt": 1}
    time = {"name": "time", "min": 1, "max": 64, "opt": 8}

    def tensor(name: str, *shape: Any) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": list(shape)}

    return {
        "inputs": [tensor("signal", batch, time, FEATURES), tensor("h_in", 1, batch, HIDDEN)],
        "outputs": [tensor("scores", batch, time, CLASSES), tensor("h_out", 1, batch, HIDDEN)],
    }


def sequences(**changes: Any) -> dict[str, Any]:
    """Return `manifest["sequences"]` of it."""
    whole = signature()
    time = whole["inputs"][0]["shape"][1]
    served = {
        "inputs": [{**whole["inputs"][0], "shape": [1, time, FEATURES]}],
        "outputs": [{**whole["outputs"][0], "shape": [1, time, CLASSES]}],
    }
    return {
        "signature": served,
        "state": [
            {"input": "h_in", "output": "h_out", "dtype": "float32", "shape": [1, 1, HIDDEN]}
        ],
        "max_sequences": 256,
        "idle_s": 60.0,
        "axis": 1,
        "chunk": 4,
        "cut": ["signal"],
        **changes,
    }
