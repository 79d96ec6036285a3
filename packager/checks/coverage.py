"""Finds the activations of a quantized model that leave their calibrated range on other data."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.data import Samples

_LIMITS: Final = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "uint4": (0, 15), "int4": (-8, 7),
}  # fmt: skip
_PREFIX: Final = "edgepack.coverage"


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """An activation that was seen outside of its calibrated range.

    Attributes:
        tensor: Its name in the graph.
        share: Of its values, those that clipping changes; in 0..1.
        low: Least value that can be told from lower ones.
        high: Largest value that can be told from higher ones.
        seen_low: Least value on this data, behind the Relu or Clip that follows.
        seen_high: Largest value on this data, likewise.
        sample: The name of the sample with the largest share.
    """

    tensor: str
    share: float
    low: float
    high: float
    seen_low: float
    seen_high: float
    sample: str


@dataclass(frozen=True, kw_only=True)
class _Range:
    """What one quantized activation can hold, and what its consumers tell apart.

    Where only Relu or Clip read it, what they cut off anyway is no loss: `least` and `most` are
    their bounds, infinite where there are none.
    """

    tensor: str
    scale: float
    low: float
    high: float
    least: float
    most: float

    def edges(self) -> tuple[float, float]:
        """Return the values below and above which clipping changes something."""
        low, high = self.low - self.scale / 2, self.high + self.scale / 2
        return (-math.inf if low <= self.least else low, math.inf if high >= self.most else high)


def coverage(
    quantized: Path, samples: Samples, *, threads: int, limit: int = 20
) -> tuple[Clipped, ...]:
    """Run a QDQ model and return its activations that clip, the worst first.

    The counting is in the graph, beside each QuantizeLinear: what comes out is four numbers per
    activation, so memory stays that of one run. A value counts as clipped from half a step outside
    of the range, where it no longer rounds to its nearest neighbour.

    Args:
        quantized: ONNX file; a model without QuantizeLinear (dynamic ranges, weights alone) has
            nothing that clips.
        samples: As the model itself takes them; others than it was calibrated on.
        threads: Of the session.
        limit: The most activations to return.

    Raises:
        Exception: one of `passes.contract.tool_faults()`, where the model does not load or run.
    """
    import onnx

    model = onnx.load(quantized, load_external_data=False)
    ranges = _ranges(model, quantized.parent)
    if not ranges:
        return ()
    outputs = [name for index, found in enumerate(ranges) for name in _count(model, index, found)]
    # Beside the model: its external data is found from there.
    descriptor, path = tempfile.mkstemp(suffix=".onnx", prefix="counted-", dir=quantized.parent)
    os.close(descriptor)
    try:
        onnx.save(model, path)
        session = open_session(Path(path), threads)
    finally:
        Path(path).unlink(missing_ok=True)
    tallies = [_Tally() for _ in ranges]
    for name, sample in zip(samples.names, samples, strict=True):
        numbers = session.run(outputs, dict(sample))
        for index, tally in enumerate(tallies):
            low, high, outside, size = (number.item() for number in numbers[4 * index :][:4])
            tally.add(low, high, int(outside), int(size), name)
    clipped = [
        tally.clipped(found) for found, tally in zip(ranges, tallies, strict=True) if tally.outside
    ]
    return tuple(sorted(clipped, key=lambda c: (-c.share, c.tensor))[:limit])


@dataclass
class _Tally:
    low: float = math.inf
    high: float = -math.inf
    outside: int = 0
    size: int = 0
    worst: float = 0.0
    sample: str = ""

    def add(self, low: float, high: float, outside: int, size: int, name: str) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.outside += outside
        self.size += size
        if size and outside / size > self.worst:
            self.worst, self.sample = outside / size, name

    def clipped(self, found: _Range) -> Clipped:
        return Clipped(
            tensor=found.tensor,
            share=self.outside / self.size,
            low=found.low,
            high=found.high,
            seen_low=max(self.low, found.least),
            seen_high=min(self.high, found.most),
            sample=self.sample,
        )


def _ranges(model: Any, folder: Path) -> list[_Range]:
    """Return what each quantized activation can hold; per tensor, once for each range."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    float32 = _float32_names(model)
    found: dict[_Range, None] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        scale = constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        # Ranges per channel are rare for activations, and half precision is not counted in.
        if scale is None or math.prod(scale.dims) != 1 or node.input[0] not in float32:
            continue
        dtype, point = "uint8", 0
        if zero is not None:
            array = onnx.numpy_helper.to_array(zero, str(folder))
            dtype, point = array.dtype.name, int(array.reshape(-1)[0])
        if dtype not in _LIMITS:
            continue
        step = float(onnx.numpy_helper.to_array(scale, str(folder)).reshape(-1)[0])
        least, most = _LIMITS[dtype]
        below, above = _bounds(model, node, folder)
        place = _Range(
            tensor=node.input[0],
            scale=step,
            low=step * (least - point),
            high=step * (most - point),
            least=below,
            most=above,
        )
        found.setdefault(place)
    return list(found)


def _bounds(model: Any, quantize: Any, folder: Path) -> tuple[float, float]:
    """Return the bounds between which what reads a quantized activation tells values apart."""
    values = {quantize.output[0]}
    readers = []
    for node in model.graph.node:
        if not values.intersection(node.input):
            continue
        if node.op_type == "DequantizeLinear":
            values.update(node.output)
        else:
            readers.append(node)
    if not readers or values & {output.name for output in model.graph.output}:
        return -math.inf, math.inf
    bounds = [_bounds_of(model, node, folder) for node in readers]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _bounds_of(model: Any, node: Any, folder: Path) -> tuple[float, float]:
    import onnx

    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return -math.inf, math.inf
    # Attributes before opset 11, inputs since; a bound that is computed is none to us.
    ends = {"min": -math.inf, "max": math.inf}
    for attribute in node.attribute:
        ends[attribute.name] = float(attribute.f)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, source in zip(ends, node.input[1:], strict=False):
        if source in constants:
            array = onnx.numpy_helper.to_array(constants[source], str(folder))
            ends[name] = float(array.reshape(-1)[0])
    return ends["min"], ends["max"]


def _float32_names(model: Any) -> set[str]:
    """Return what feeds a QuantizeLinear and is not known to be of another type."""
    import onnx

    graph = model.graph
    other = {
        value.name
        for values in (graph.input, graph.value_info, graph.output)
        for value in values
        if value.type.tensor_type.elem_type not in {0, onnx.TensorProto.FLOAT}
    }
    halves = {
        tensor.name for tensor in graph.initializer if tensor.data_type != onnx.TensorProto.FLOAT
    }
    return {
        node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in other
        and node.input[1] not in halves
    }


def _count(model: Any, index: int, found: _Range) -> Sequence[str]:
    """Append what counts one activation; return the outputs: least, largest, outside, all."""
    import numpy as np
    import onnx

    graph = model.graph
    prefix = f"{_PREFIX}.{index}"
    for word, edge in zip(("under", "over"), found.edges(), strict=True):
        constant = np.asarray(edge, np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(constant, f"{prefix}.{word}.edge"))

    def add(operator: str, inputs: list[str], word: str, **attributes: Any) -> str:
        name = f"{prefix}.{word}"
        graph.node.append(onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    low = add("ReduceMin", [found.tensor], "low", keepdims=0)
    high = add("ReduceMax", [found.tensor], "high", keepdims=0)
    under = add("Less", [found.tensor, f"{prefix}.under.edge"], "is_under")
    over = add("Greater", [found.tensor, f"{prefix}.over.edge"], "is_over")
    either = add("Or", [under, over], "either")
    # As float32 a sum of more than 2^24 ones would stand still.
    ones = add("Cast", [either], "ones", to=onnx.TensorProto.INT64)
    outside = add("ReduceSum", [ones], "outside", keepdims=0)
    size = add("Size", [found.tensor], "size")
    names = [low, high, outside, size]
    for name, kind in zip(names, (1, 1, 7, 7), strict=True):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, []))
    return names
