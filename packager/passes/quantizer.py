"""Runs ONNX Runtime's quantizer: quietly, in one folder, on calibration data that streams."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.passes.graph import constant_sizes, fresh_name, strip_texts
from packager.passes.patterns import Graph
from packager.passes.ranges import choose_range, find_histograms, narrowed_by_clamps
from packager.passes.shield_float import shield_float_layers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from packager.passes.contract import PassContext
    from packager.passes.ranges import Histogram


def quantize_statically(
    model: Any,
    context: PassContext,
    *,
    op_types: Sequence[str],
    keep_float: Sequence[str],
    calibration: str = "minmax",
    calibrated: Sequence[str] = (),
    outputs: bool = True,
) -> Any:
    """Return the model with QuantizeLinear/DequantizeLinear pairs around the given operators.

    The activations that the quantizer could fold into a range (Relu, Clip) stay, so that a layer
    can go back to float alone. The ranges are ours (`passes.ranges`): found once per model, for
    every method and every choice of layers.

    Args:
        model: `onnx.ModelProto` with opset 13 or later, every node named; it is not changed.
        context: For the target's scheme, the calibration samples and the folder.
        op_types: Operators to quantize.
        keep_float: Names of nodes that stay as they are.
        calibration: How ranges are chosen, one of `ranges.METHODS`.
        calibrated: Operators whose tensors are looked at beside those of `op_types`, so that forms
            that differ in their operators share one run over the samples.
        outputs: Quantize what the operators give as well as what they read. Else a layer gives
            floats, and a pair stands only in front of what reads eight bits: TensorRT joins what
            lies between to the layer before it, and rounds once instead of twice (NVIDIA, "Working
            with Quantized Types", Q/DQ placement).
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        TensorData,
        TensorsData,
        quantize_static,
        save_tensors_data,
    )

    scheme = context.target.quantization
    histograms = find_histograms(model, sorted({*op_types, *calibrated}), context)
    ranges = narrowed_by_clamps(
        model,
        {
            name: choose_range(histogram, calibration, symmetric=scheme.symmetric)
            for name, histogram in histograms.items()
        },
    )
    bounds = {
        name: TensorData(
            lowest=np.array(low, histograms[name].dtype),
            highest=np.array(high, histograms[name].dtype),
        )
        for name, (low, high) in ranges.items()
    }
    with _quiet(), tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source, result, table = (Path(folder, n) for n in ("in.onnx", "out.onnx", "ranges.json"))
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, bounds), table)
        # The quantizer's own preparation is left out: its symbolic shape inference fails on many
        # exports and then leaves files in the current folder. onnx's inference is enough.
        onnx.save(_prepared(model, histograms), source)
        quantize_static(
            source,
            result,
            calibration_cache_path=table,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(op_types),
            nodes_to_exclude=list(keep_float),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=_type(scheme.activation, QuantType),
            weight_type=_type(scheme.weight, QuantType),
            extra_options={
                "QDQKeepRemovableActivations": True,
                "ActivationSymmetric": scheme.symmetric,
                "QuantizeBias": scheme.bias == "int32",
                "OpTypesToExcludeOutputQuantization": [] if outputs else list(op_types),
            },
        )
        after = onnx.load(result)
    strip_texts(after)
    if not outputs:
        # The quantizer gives every reader of a quantized tensor the rounded one.
        _read_floats(after, set(keep_float))
    elif context.target.engine.name == "onnxruntime":
        shield_float_layers(after)
    return after


def _read_floats(model: Any, names: Collection[str]) -> None:
    """Let nodes read the tensors in front of QuantizeLinear/DequantizeLinear pairs, in place.

    Args:
        model: `onnx.ModelProto`, every node named.
        names: Of the nodes.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for index, name in enumerate(node.input if node.name in names else ()):
            dequantizer = producers.get(name)
            if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
                continue
            quantizer = producers.get(dequantizer.input[0])
            if quantizer is not None and quantizer.op_type == "QuantizeLinear":
                node.input[index] = quantizer.input[0]
    Graph(model).sweep()


def quantize_dynamically(
    model: Any, context: PassContext, *, op_types: Sequence[str], keep_float: Sequence[str]
) -> Any:
    """Return the model with 8-bit weights whose activations are quantized at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    scheme = context.target.quantization
    with _quiet(), tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_dynamic(
            source,
            result,
            op_types_to_quantize=list(op_types),
            nodes_to_exclude=list(keep_float),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            weight_type=_type(scheme.weight, QuantType),
            # Where shape inference stops, as behind fused operators, tensors have no known type.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
        after = onnx.load(result)
    strip_texts(after)
    return after


def constant_weights(model: Any, types: Sequence[str]) -> dict[str, int]:
    """Return, by node name, the number of elements of each node's constant second input."""
    sizes = constant_sizes(model)
    # The table of an embedding is the first input of a Gather.
    return {
        node.name: sizes[name]
        for node in model.graph.node
        if node.op_type in types
        for name in [node.input[0 if node.op_type == "Gather" else 1]]
        if name in sizes
    }


def name_nodes(model: Any) -> None:
    """Give every node without a name one, in place; the quantizer speaks of nodes by name."""
    taken = {node.name for node in model.graph.node}
    for position, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{position}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def _type(name: str, kinds: Any) -> Any:
    return kinds.QUInt8 if name == "uint8" else kinds.QInt8


def _prepared(model: Any, histograms: Mapping[str, Histogram]) -> Any:
    """Return the model as the quantizer takes it without tripping.

    Every tensor has a type, those that nobody infers the measured one; constants are initializers;
    and each layer has a bias of its own: of a shared one the quantizer makes copies, and names them
    without looking whether a tensor has that name (`conv1d_25` + `2` in basic-pitch).
    """
    import numpy as np
    import onnx

    typed = onnx.shape_inference.infer_shapes(model)
    graph = typed.graph
    known = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
    }
    for name, histogram in histograms.items():
        if name not in known:
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(histogram.dtype))
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, None))
    told = {value.name for value in graph.output}
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        if node.attribute[0].name == "value" and node.output[0] not in told:
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            bias = constants.get(node.input[2])
            if bias is not None and bias.name in seen:
                node.input[2] = fresh_name(typed, f"{bias.name}_of_{node.name}")
                graph.initializer.add().CopyFrom(bias)
                graph.initializer[-1].name = node.input[2]
            elif bias is not None:
                seen.add(bias.name)
    return typed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The quantizer logs advice on the root logger, which prints it over our own output.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
