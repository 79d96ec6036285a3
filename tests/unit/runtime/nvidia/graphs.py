"""Small graphs that TensorRT-RTX really builds, and requests for them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.nvidia.request import BuildRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[4]
CHILD = (sys.executable, "-m", "runtime.nvidia.child")
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def value(name: str, shape: Sequence[int | str], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name: str, *shape: int, dtype: str = "float32") -> onnx.TensorProto:
    # Of the name's own, so that no two are alike and every run has the same.
    random = np.random.default_rng(list(name.encode()))
    return numpy_helper.from_array((random.standard_normal(shape) * 0.1).astype(dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    domain: str = "",
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def mlp(dtype: int = FLOAT) -> onnx.ModelProto:
    kind = "float16" if dtype == HALF else "float32"
    return model(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="clamp"),
            helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
        ],
        [value("x", ["n", 64], dtype)],
        [value("y", ["n", 10], dtype)],
        [weights("w0", 64, 128, dtype=kind), weights("w1", 128, 10, dtype=kind)],
    )


def convolutions() -> onnx.ModelProto:
    return model(
        [
            helper.make_node("Conv", ["x", "k0"], ["a"], name="stem", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], name="clamp"),
            helper.make_node("Conv", ["b", "k1"], ["c"], name="depthwise", group=16),
            helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
            helper.make_node("Flatten", ["d"], ["y"], name="flat"),
        ],
        [value("x", [1, 3, 16, 16])],
        [value("y", [1, 16])],
        [weights("k0", 16, 3, 3, 3), weights("k1", 16, 1, 3, 3)],
    )


def lstm() -> onnx.ModelProto:
    return model(
        [helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], name="cell", hidden_size=16)],
        [value("x", [8, 1, 12])],
        [value("y", [1, 1, 16])],
        [weights("w", 1, 64, 12), weights("r", 1, 64, 16)],
    )


def attention() -> onnx.ModelProto:
    """Return one head over a sequence of any length: batch and length are open."""
    return model(
        [
            helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
            helper.make_node("MatMul", ["x", "wk"], ["k"], name="key"),
            helper.make_node("MatMul", ["x", "wv"], ["v"], name="value"),
            helper.make_node("Transpose", ["k"], ["t"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "t"], ["s"], name="scores"),
            helper.make_node("Softmax", ["s"], ["p"], name="share", axis=-1),
            helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
        ],
        [value("x", ["n", "length", 32])],
        [value("y", ["n", "length", 32])],
        [weights("wq", 32, 32), weights("wk", 32, 32), weights("wv", 32, 32)],
    )


def quantized() -> onnx.ModelProto:
    """Return a product with symmetric int8 Q/DQ on both operands, weights stored as int8."""
    random = np.random.default_rng(7)
    stored = numpy_helper.from_array(random.integers(-127, 128, (512, 512)).astype("i1"), "w")
    scales = [
        numpy_helper.from_array(np.array(number, "f4"), name)
        for name, number in (("sx", 0.05), ("sw", 0.01))
    ]
    zero = numpy_helper.from_array(np.array(0, "i1"), "zero")
    return model(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["xq"], name="quantize"),
            helper.make_node("DequantizeLinear", ["xq", "sx", "zero"], ["xd"], name="restore"),
            helper.make_node("DequantizeLinear", ["w", "sw", "zero"], ["wd"], name="weights"),
            helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
        ],
        [value("x", ["n", 512])],
        [value("y", ["n", 512])],
        [stored, *scales, zero],
    )


def one_range(name: str, low: Sequence[int], usual: Sequence[int], high: Sequence[int]) -> Any:
    return {name: {"min": tuple(low), "opt": tuple(usual), "max": tuple(high)}}


BATCHES = one_range("x", (1, 64), (1, 64), (32, 64))
CASES: dict[str, tuple[Callable[[], onnx.ModelProto], str, tuple[Any, ...]]] = {
    "mlp": (mlp, "fp32", (BATCHES,)),
    "fp16": (lambda: mlp(HALF), "fp16", (BATCHES,)),
    "convolutions": (convolutions, "fp32", (one_range("x", *[(1, 3, 16, 16)] * 3),)),
    "lstm": (lstm, "fp32", ()),
    "attention": (
        attention,
        "fp32",
        (
            one_range("x", (1, 1, 32), (1, 16, 32), (1, 64, 32)),
            one_range("x", (1, 1, 32), (8, 64, 32), (8, 64, 32)),
        ),
    ),
    "int8": (quantized, "int8-static", (one_range("x", (1, 512), (1, 512), (8, 512)),)),
}


def save(graph: onnx.ModelProto, folder: Path) -> str:
    """Write a graph as `model.onnx` and return its digest."""
    path = folder / "model.onnx"
    onnx.save(graph, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_request(folder: Path, sha256: str, **changes: Any) -> BuildRequest:
    """Return a request for the folder's `model.onnx`; by default for TensorRT-RTX."""
    fields: dict[str, Any] = {
        "module": "tensorrt_rtx",
        "version": "1.7.1.116",
        "compute_capabilities": ("8.9",),
        "platform": "linux-x86_64",
        "folder": str(folder),
        "artifact": "model.onnx",
        "artifact_sha256": sha256,
        "precision": "fp32",
        "strongly_typed": True,
        "flags": (),
        "profiles": (BATCHES,),
        "workspace_mib": 256,
        "sparse": False,
        "dla_core": None,
        "gpu_fallback": True,
        "version_compatible": False,
    }
    return BuildRequest(**{**fields, **changes})


def case(name: str, folder: Path, **changes: Any) -> BuildRequest:
    """Return a request for one of `CASES`, whose graph is written into the folder."""
    make, precision, profiles = CASES[name]
    return make_request(
        folder, save(make(), folder), **{"precision": precision, "profiles": profiles, **changes}
    )
