"""Graphs drawn by hand, run in ONNX Runtime, and TensorRTs as targets have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from packager.target import TensorRT

# Opset and IR version by release, as targets say them.
_READS = {"8.5.2.2": (17, 8), "8.6.2.3": (17, 8), "10.3.0.30": (20, 9), "10.16.2.10": (24, 11)}


def tensorrt(version: str, **changes: Any) -> TensorRT:
    """Return a TensorRT of a version; `rtx` is the one that is installed here."""
    module = "tensorrt"
    opset, ir_version = _READS.get(version, (24, 11))
    if version == "rtx":
        module, version = "tensorrt_rtx", "1.7.1.116"
    facts: dict[str, Any] = {
        "module": module,
        "version": version,
        "cuda": "12.6",
        "compute_capability": "8.7",
        "memory": "shared",
        "gpu_memory_mib": 8192,
        "max_opset": opset,
        "max_ir_version": ir_version,
    }
    return TensorRT(**{**facts, **changes})


def graph_of(
    nodes: list[Any],
    inputs: dict[str, tuple[Any, Any]],
    outputs: dict[str, tuple[Any, Any]],
    constants: dict[str, Any] | None = None,
    *,
    opset: int = 17,
    domains: tuple[str, ...] = (),
    withdrawn: bool = False,
) -> Any:
    """Return a model; inputs and outputs are `{name: (numpy dtype, shape)}`, None to be inferred.

    It is checked, unless it has an operator that ONNX has withdrawn.
    """

    def declared(values: dict[str, tuple[Any, Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(d)), s)
            for name, (d, s) in values.items()
        ]

    graph = helper.make_graph(
        nodes,
        "g",
        declared(inputs),
        declared(outputs),
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    if any(shape is None for _, shape in outputs.values()):
        inferred = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
    if not withdrawn:
        onnx.checker.check_model(model)
    return model


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Return a node; names are words, `-` an input that is left out."""
    names = ["" if word == "-" else word for word in inputs.split()]
    made = outputs.split()
    return helper.make_node(operator, names, made, name=f"n_{made[0]}", **attributes)


def answers(model: Any, feeds: dict[str, Any]) -> list[Any]:
    """Return what ONNX Runtime answers, unoptimized."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    payload = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def operators(model: Any) -> set[str]:
    """Return the operators of a model, with the domain where it has one."""
    return {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node}


def noise(*shape: int, seed: int = 0, dtype: str = "float32") -> Any:
    """Return standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
