"""Runs ONNX Runtime's quantizer: quietly, in one folder, on calibration data that streams."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.passes.graph import constant_sizes, digest_of, strip_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.data import Samples
    from packager.passes.contract import PassContext


def quantize_statically(
    model: Any, context: PassContext, *, op_types: Sequence[str], keep_float: Sequence[str]
) -> Any:
    """Return the model with QuantizeLinear/DequantizeLinear pairs around the given operators.

    The activations that the quantizer could fold into a range (Relu, Clip) stay, so that a layer
    can go back to float alone. The ranges (smallest and largest value over all samples) are found
    once per model and kept in the working folder.

    Args:
        model: `onnx.ModelProto` with opset 13 or later, every node named; it is not changed.
        context: For the target's scheme, the calibration samples and the folder.
        op_types: Operators to quantize.
        keep_float: Names of nodes that stay as they are.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if context.samples is None:
        raise ValueError("there is no calibration data")
    scheme = context.target.quantization
    key = hashlib.sha256(f"{digest_of(model)} {sorted(op_types)}".encode()).hexdigest()
    ranges = context.workdir / f"ranges-{key[:16]}.json"
    with _quiet(), tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        # The quantizer's own preparation is left out: its symbolic shape inference fails on many
        # exports and then leaves files in the current folder. onnx's inference is enough.
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_static(
            source,
            result,
            None if ranges.is_file() else _Reader(context.samples, context),
            calibration_cache_path=ranges,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(op_types),
            nodes_to_exclude=list(keep_float),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=_type(scheme.activation, QuantType),
            weight_type=_type(scheme.weight, QuantType),
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            extra_options={"QDQKeepRemovableActivations": True},
        )
        after = onnx.load(result)
    strip_texts(after)
    return after


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


class _Reader:
    """The calibration samples in the form the quantizer asks for."""

    def __init__(self, samples: Samples, context: PassContext) -> None:
        self._samples = samples
        self._reporter = context.reporter
        self._position = 0

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the next sample, or None at the end."""
        if self._position == len(self._samples):
            return None
        self._reporter.progress(self._position, len(self._samples), "calibrate")
        self._position += 1
        return self._samples[self._position - 1]

    def __len__(self) -> int:
        return len(self._samples)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The quantizer logs advice on the root logger, which prints it over our own output.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
