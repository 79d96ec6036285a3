"""Makes Q/DQ as ONNX Runtime's quantizer writes them into what TensorRT takes: symmetric int8."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.passes.patterns import Graph, attribute, is_op

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOW: Final = -128
_HIGH: Final = 127


@dataclass(kw_only=True)
class Converted:
    """What became of a model's Q/DQ.

    Attributes:
        exact: Tensors that are the same numbers in another form.
        coarser: Tensors whose steps grew, and by which factor at most.
        biases: Quantized biases that are floats now, of the same value.
    """

    exact: int = 0
    coarser: int = 0
    factor: float = 1.0
    biases: int = 0
    kept: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Return it as sentences for the record."""
        said = []
        if self.exact:
            said.append(f"{self.exact} × Q/DQ made symmetric int8, exactly")
        if self.coarser:
            said.append(
                f"{self.coarser} × Q/DQ made symmetric int8, in steps up to {self.factor:.2f} "
                "times as large"
            )
        if self.biases:
            said.append(f"{self.biases} × quantized bias made float, exactly")
        return tuple(said)


def to_symmetric(model: Any) -> Converted:
    """Make every Q/DQ inside a model symmetric int8 and every quantized bias float, in place.

    A zero point of 128 in uint8 is one of 0 in int8, number for number. Any other is left out by
    widening the range to both sides, in larger steps (at most 2.01 times); as the narrow range
    clamped what it was given, and quantizers drop a Relu for that, the clamp is put in its place.

    Q/DQ of the model's own inputs and outputs stay; they can be moved to the CPU.

    Args:
        model: An `onnx.ModelProto`.
    """
    graph = Graph(model)
    done = Converted()
    for node in graph.nodes("DequantizeLinear"):
        if graph.constant(node.input[0]) is not None:
            _constant(graph, node, done)
    for node in graph.nodes("QuantizeLinear"):
        _activation(graph, node, done)
    graph.sweep()
    return done


def _constant(graph: Graph, node: Any, done: Converted) -> None:
    """Convert the DequantizeLinear of a weight or bias."""
    import numpy as np

    stored, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
    if stored is None or scale is None or attribute(node, "block_size", 0):
        return
    zero = _zero_point(graph, node, stored.dtype)
    if zero is None or stored.dtype.name not in ("int8", "uint8", "int32"):
        return
    axis = attribute(node, "axis", 1)
    shift = stored.astype(np.int64) - _along(zero.astype(np.int64), stored.ndim, axis)
    if stored.dtype.name == "int32":
        steps = _along(scale, stored.ndim, axis)
        value = (shift.astype(scale.dtype) * steps).astype(scale.dtype)
        name = graph.add_constant(f"{node.output[0]}.float", value)
        _instead(graph, node, name)
        done.biases += 1
        return
    if stored.dtype.name == "int8" and not zero.any():
        return
    if shift.min(initial=0) >= _LOW and shift.max(initial=0) <= _HIGH:
        done.exact += 1
        new, new_scale = shift.astype(np.int8), scale
    else:
        factor = max(-shift.min() / -_LOW, shift.max() / _HIGH)
        new = np.clip(np.rint(shift / factor), _LOW, _HIGH).astype(np.int8)
        new_scale = (scale * factor).astype(scale.dtype)
        done.coarser += 1
        done.factor = max(done.factor, float(factor))
    made = _like(graph, node)
    made.input[0] = graph.add_constant(f"{node.output[0]}.int8", new)
    _set_scale(graph, made, new_scale)
    graph.replace(node, made)


def _activation(graph: Graph, node: Any, done: Converted) -> None:
    """Convert a QuantizeLinear with all that read it."""
    import numpy as np
    from onnx import helper

    scale = graph.constant(node.input[1])
    if scale is None or attribute(node, "block_size", 0):
        return
    zero = _zero_point(graph, node, np.dtype(np.uint8))
    if zero is None or zero.dtype.name not in ("int8", "uint8"):
        return
    low, high = (0, 255) if zero.dtype.name == "uint8" else (_LOW, _HIGH)
    if zero.dtype.name == "int8" and not zero.any():
        return
    readers = graph.consumers(node.output[0])
    together = all(is_op(reader, "DequantizeLinear") for reader in readers)
    if graph.is_kept(node.output[0]) or not readers or not together or zero.size != 1:
        done.kept.append(node.name)
        return
    point = int(zero.reshape(-1)[0])
    below, above = low - point, high - point
    exact = below >= _LOW and above <= _HIGH
    factor = 1.0 if exact else max(-below, above) / _HIGH
    new_scale = (scale * factor).astype(scale.dtype)
    new: list[Any] = []
    source = node.input[0]
    if (below, above) != (_LOW, _HIGH):
        clamped = graph.fresh(f"{node.output[0]}.clamped")
        if below == 0:
            clamp = helper.make_node("Relu", [source], [clamped], name=clamped)
        else:
            ends = [
                graph.add_constant(
                    f"{clamped}.end", np.asarray(end * scale.reshape(())).astype(scale.dtype)
                )
                for end in (below, above)
            ]
            clamp = helper.make_node("Clip", [source, *ends], [clamped], name=clamped)
        already = below == 0 and graph.producer(source, "Relu") is not None
        if not already:
            new.append(clamp)
            source = clamped
    made = _like(graph, node)
    made.input[0] = source
    _set_scale(graph, made, new_scale)
    graph.replace(node, *new, made)
    for reader in readers:
        twin = _like(graph, reader)
        _set_scale(graph, twin, new_scale)
        graph.replace(reader, twin)
    if exact:
        done.exact += 1
    else:
        done.coarser += 1
        done.factor = max(done.factor, factor)


def _like(graph: Graph, node: Any) -> Any:
    """Return a copy of a Q/DQ node, for its inputs to be changed."""
    copy = type(node)()
    copy.CopyFrom(node)
    kept = [a for a in copy.attribute if a.name != "output_dtype"]
    if len(kept) < len(copy.attribute):
        twins = [type(a).FromString(a.SerializeToString()) for a in kept]
        del copy.attribute[:]
        copy.attribute.extend(twins)
    return copy


def _set_scale(graph: Graph, node: Any, scale: NDArray[Any]) -> None:
    import numpy as np

    name, zero = (
        graph.add_constant(f"{node.output[0]}.scale", scale),
        np.zeros(scale.shape, np.int8),
    )
    source = node.input[0]
    del node.input[:]
    node.input.extend([source, name, graph.add_constant(f"{node.output[0]}.zero", zero)])


def _instead(graph: Graph, node: Any, name: str) -> None:
    from onnx import helper

    identity = helper.make_node("Identity", [name], [node.output[0]], name=node.name)
    if graph.is_kept(node.output[0]):
        graph.replace(node, identity)
        return
    for reader in graph.consumers(node.output[0]):
        for place, value in enumerate(reader.input):
            if value == node.output[0]:
                reader.input[place] = name


def _zero_point(graph: Graph, node: Any, default: Any) -> NDArray[Any] | None:
    """Return a node's zero point; zeros of the default dtype where there is none."""
    import numpy as np
    from onnx import helper

    if len(node.input) > 2 and node.input[2]:
        return graph.constant(node.input[2])
    dtype = attribute(node, "output_dtype", 0) if is_op(node, "QuantizeLinear") else 0
    return np.zeros(1, helper.tensor_dtype_to_np_dtype(dtype) if dtype else default)


def _along(values: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    """Return per-axis values in a form that broadcasts."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
