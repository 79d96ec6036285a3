"""Where ONNX Runtime must not fuse a graph's QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PAIR: Final = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SEVEN_BITS: Final = 64


def kept_pairs(path: Path) -> Literal["always", "saturating"] | None:
    """Return where a file's Q/DQ pairs have to run as they stand; None for nowhere.

    `always` where scales are fp16: 1.32 otherwise quantizes the biases of such layers with scales
    that it does not multiply, as it has no kernel for that, and EfficientNet-Lite0's answers had a
    cosine of .06 with what they should be. `saturating` where weights take the full range of
    int8: on processors whose 8-bit products saturate the same network's answers, quantized for
    TensorRT, had .73 to .92. The device's runtime reads the word from `engine.keep_pairs` of the
    manifest.
    """
    import onnx

    if not path.stat().st_size:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
        if held.find(b"DequantizeLinear") < 0:
            return None
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {name: tensor.data_type for name, tensor in constants.items()}
    if any(
        node.op_type in _PAIR and types.get(node.input[1]) == onnx.TensorProto.FLOAT16
        for node in graph.node
    ):
        return "always"
    return "saturating" if _takes_full_range(graph, constants) else None


def _takes_full_range(graph: Any, constants: Mapping[str, Any]) -> bool:
    """Tell whether a layer's second factor is int8 and may need its eighth bit.

    The kernels take the first as uint8, whatever it is in the file.
    """
    from onnx import TensorProto

    wide = set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero is not None and zero.data_type == TensorProto.INT8:
                wide.add(node.output[0])
        elif node.op_type == "DequantizeLinear":
            held = constants.get(node.input[0])
            if node.input[0] in wide or (held is not None and _is_wide(held)):
                wide.add(node.output[0])
        elif node.op_type == "Transpose" and node.input[0] in wide:
            wide.add(node.output[0])
        elif node.op_type in _PRODUCTS and node.input[1] in wide:
            return True
    return False


def _is_wide(tensor: Any) -> bool:
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import uses_external_data

    # A model past one file runs on no device and is quantized in blocks, not in pairs.
    if tensor.data_type != TensorProto.INT8 or uses_external_data(tensor):
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size and (values.max() > _SEVEN_BITS or values.min() < -_SEVEN_BITS))
