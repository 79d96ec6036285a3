"""Keeps ONNX Runtime from quantizing the float layers of a quantized model when it loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.passes.graph import fresh_name
from packager.passes.layer_inputs import attribute_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the engine's WeightBiasQuantization looks at, and between such a layer and its QuantizeLinear
# passes over.
_LAYERS: Final = ("Conv", "ConvTranspose", "Gemm")
_PASSED_OVER: Final = ("Relu", "Clip")


def shield_float_layers(model: Any) -> tuple[str, ...]:
    """Give float layers between quantized ones a dequantizer of their own, in place.

    ONNX Runtime (seen in 1.32.0) takes a Conv, ConvTranspose or Gemm with float weights for
    half-quantized if its input is dequantized and its output is quantized next: on loading, it
    quantizes the weights per tensor, whatever the layer was kept in float for. The second
    convolution of EfficientNet-Lite0 in float made the output worse by 8 dB instead of better. The
    engine asks for one scale of the input; a scale per channel, all of them equal, means the same
    numbers and is not touched.

    A layer whose input has a single channel is left as it is: one scale is one scale.

    Args:
        model: `onnx.ModelProto`, every node named; a second call changes nothing.

    Returns:
        The names of the layers that were shielded.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    shielded, nodes = [], []
    for node in model.graph.node:
        nodes.append(node)
        source = producers.get(node.input[0]) if node.op_type in _LAYERS else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        weight = constants.get(node.input[1])
        scale = constants.get(source.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or scale is None:
            continue
        step = onnx.numpy_helper.to_array(scale)
        channels = _input_channels(node, list(weight.dims))
        if step.size != 1 or channels == 1 or not _is_quantized_next(model, node):
            continue
        inner = fresh_name(model, f"{node.input[0]}_shielded")
        inputs = [source.input[0], _repeated(model, f"{inner}_scale", step, channels)]
        if len(source.input) > 2 and source.input[2]:
            zero = onnx.numpy_helper.to_array(constants[source.input[2]])
            inputs.append(_repeated(model, f"{inner}_zero_point", zero, channels))
        axis = 0 if node.op_type == "Gemm" and attribute_of(node, "transA", 0) else 1
        nodes.insert(-1, onnx.helper.make_node(
            "DequantizeLinear", inputs, [inner], inner, axis=axis, domain=source.domain
        ))  # fmt: skip
        node.input[0] = inner
        shielded.append(node.name)
    if shielded:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        read = {name for node in kept for name in node.input}
        read |= {value.name for value in model.graph.output}
        del model.graph.node[:]
        model.graph.node.extend(
            node for node in kept if node.op_type != "DequantizeLinear" or read & set(node.output)
        )
    return tuple(shielded)


def _is_quantized_next(model: Any, node: Any) -> bool:
    """Tell whether a node's only reader is a QuantizeLinear, Relu and Clip passed over."""
    outputs = {value.name for value in model.graph.output}
    while True:
        readers = [reader for reader in model.graph.node if node.output[0] in reader.input]
        if len(readers) != 1 or node.output[0] in outputs:
            return False
        if readers[0].op_type not in _PASSED_OVER:
            return bool(readers[0].op_type == "QuantizeLinear")
        node = readers[0]


def _input_channels(node: Any, dims: list[int]) -> int:
    if node.op_type == "Conv":
        return dims[1] * int(attribute_of(node, "group", 1))
    if node.op_type == "ConvTranspose":
        return dims[0]
    return dims[1] if attribute_of(node, "transB", 0) else dims[0]


def _repeated(model: Any, name: str, value: NDArray[Any], count: int) -> str:
    import numpy as np
    import onnx

    name = fresh_name(model, name)
    tensor = onnx.numpy_helper.from_array(np.full(count, value.reshape(-1)[0], value.dtype), name)
    model.graph.initializer.append(tensor)
    return name
