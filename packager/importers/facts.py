"""Counts what a graph holds and estimates its size at other precisions."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import onnx

from packager.importers.graph_walk import nodes, tensors
from packager.importers.lint import tensor_bytes

# Operators whose weights are quantized, and which of their inputs those are.
_INT8_WEIGHTS: Final = {
    "Conv": (1,), "ConvTranspose": (1,), "MatMul": (0, 1), "Gemm": (0, 1), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Attention": (1,), "Einsum": (0, 1),
}  # fmt: skip
# Four-bit kernels exist for matrix products and look-ups; convolutions stay at eight bits.
_INT4_OPS: Final = frozenset({"MatMul", "Gemm", "Gather"})
_INT4_BLOCK: Final = 32
_SCALE_BYTES: Final = 4
_FLOATS: Final = {1: 4, 10: 2, 11: 8, 16: 2}


def graph_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the operators with their counts, the parameters, and sizes in bytes.

    The sizes at fp32, fp16, int8 and int4 are estimates from the weights by kind: int8 with one
    scale and zero point a channel, int4 in blocks of 32 with one scale each.
    """
    constants = list(tensors(model))
    weights = _weights_by_use(model)
    outside = sum(_stored(t) for t in constants if t.external_data)
    graph_bytes = model.ByteSize() + outside - sum(_stored(t) for t in constants)
    sizes = dict.fromkeys(("fp32", "fp16", "int8", "int4"), float(graph_bytes))
    parameters = 0
    for tensor in constants:
        count = _count(tensor)
        if tensor.data_type not in _FLOATS:
            stored = _stored(tensor)
            parameters += count if count > 16 and tensor.data_type in (2, 3, 21, 22) else 0
            for name in sizes:
                sizes[name] += stored
            continue
        parameters += count
        sizes["fp32"] += 4 * count
        sizes["fp16"] += 2 * count
        use = weights.get(tensor.name) if len(tensor.dims) >= 2 else None
        channels = max(tensor.dims, default=1)
        as_int8 = count + (_SCALE_BYTES + 1) * channels if use else 4 * count
        sizes["int8"] += as_int8
        as_int4 = count / 2 + _SCALE_BYTES * count / _INT4_BLOCK
        sizes["int4"] += as_int4 if use in _INT4_OPS else as_int8
    counts = Counter(_title(node) for node in nodes(model))
    return {
        "operators": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": parameters,
        "size_bytes": model.ByteSize() + outside,
        "estimated_bytes": {name: round(size) for name, size in sizes.items()},
        "domains": sorted({node.domain or "ai.onnx" for node in nodes(model)}),
        "functions": sorted(f"{f.domain}.{f.name}" for f in model.functions),
    }


def _title(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _count(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _stored(tensor: onnx.TensorProto) -> int:
    return tensor_bytes(tensor) if tensor.data_type != onnx.TensorProto.STRING else 0


def _weights_by_use(model: onnx.ModelProto) -> dict[str, str]:
    """Return, by tensor name, the operator that multiplies with it."""
    found: dict[str, str] = {}
    for node in nodes(model):
        for i in _INT8_WEIGHTS.get(node.op_type, ()):
            if i < len(node.input) and node.input[i]:
                found.setdefault(node.input[i], node.op_type)
    return found
