"""The MLP 64-512-512-512-10 that the serving figures are about, as an ONNX graph."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def make_mlp(sizes: tuple[int, ...] = (64, 512, 512, 512, 10)) -> onnx.ModelProto:
    """Return the MLP that every figure in the documentation is about, with fixed weights."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        kernel = rng.standard_normal((rows, columns)).astype(np.float32) / np.float32(rows**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        is_last = layer == len(sizes) - 2
        out = "logits" if is_last else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [out]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
        last = f"r{layer}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "mlp",
        [value("x", TensorProto.FLOAT, ["batch", sizes[0]])],
        [value("logits", TensorProto.FLOAT, ["batch", sizes[-1]])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
