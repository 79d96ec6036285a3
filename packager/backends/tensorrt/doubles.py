"""Lets a graph compute in float32 what it computes in double: TensorRT has no double."""

from __future__ import annotations

from typing import Any

from packager.passes.graph import all_nodes


def to_float32(model: Any) -> int:
    """Make every double in a model a float32, inputs and outputs included, in place.

    TensorRT's parser does the same to weights and inputs, and says so in its log alone.

    Returns:
        The number of tensors and operators that changed.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    double, single = TensorProto.DOUBLE, TensorProto.FLOAT
    changed = 0

    def narrow(tensor: Any) -> None:
        value = numpy_helper.to_array(tensor)
        largest = float(np.finfo(np.float32).max)
        value = np.where(np.isfinite(value), np.clip(value, -largest, largest), value)
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))

    graphs = [model.graph]
    for node in all_nodes(model):
        for entry in node.attribute:
            graphs += [entry.g] if entry.HasField("g") else []
            graphs += list(entry.graphs)
            if entry.HasField("t") and entry.t.data_type == double:
                narrow(entry.t)
                changed += 1
            if entry.name in ("to", "dtype", "output_dtype") and entry.i == double:
                entry.i = single
                changed += 1
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.data_type == double:
                narrow(tensor)
                changed += 1
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == double:
                value.type.tensor_type.elem_type = single
                changed += 1
    return changed
