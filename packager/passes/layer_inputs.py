"""Gathers what flows into convolutions and matrix products: second moments over the samples."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from packager.passes.contract import PassContext

# Positions of a layer's output that are looked at: over all samples, and of one sample. With a
# fifth of them the outcome of EfficientNet-Lite0 depended on the draw (cosine .994 to .997).
_MOST_POSITIONS: Final = 100_000
_MOST_OF_ONE_SAMPLE: Final = 8192
_MOST_ELEMENTS_OF_ONE_SAMPLE: Final = 16 << 20
# What the layers of one batch may hold, and a tensor whose size nobody tells.
_BATCH_BYTES: Final = 256 << 20
_UNKNOWN_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """How one layer's weight meets its input.

    Attributes:
        node: The `Conv`, `Gemm` or `MatMul`.
        weight_shape: As the graph holds it.
    """

    node: Any
    weight_shape: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Return the number of independent products side by side; 1 but for convolutions."""
        return int(attribute_of(self.node, "group", 1)) if self.node.op_type == "Conv" else 1

    @property
    def inputs(self) -> int:
        """Return the number of inputs of one output element."""
        if self.node.op_type == "Conv":
            return math.prod(self.weight_shape[1:])
        return self.weight_shape[1] if self._transposed else self.weight_shape[0]

    def to_rows(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return a weight-shaped array as [groups, outputs of a group, inputs]."""
        if self.node.op_type == "Conv":
            rows: NDArray[Any] = weight.reshape(self.groups, -1, self.inputs)
        else:
            rows = (weight if self._transposed else weight.T)[None]
        return rows

    def from_rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what `to_rows` was given."""
        if self.node.op_type == "Conv":
            weight: NDArray[Any] = rows.reshape(self.weight_shape)
        else:
            weight = rows[0] if self._transposed else rows[0].T
        return weight

    def columns(self, value: NDArray[Any], random: Any, most: int) -> NDArray[Any]:
        """Return the inputs of up to `most` drawn output positions: [groups, positions, inputs].

        Args:
            value: The layer's input.
            random: A `numpy.random.Generator`.
            most: Limit of positions; wide layers get fewer.
        """
        most = min(most, max(_MOST_ELEMENTS_OF_ONE_SAMPLE // (self.groups * self.inputs), 1))
        if self.node.op_type == "Conv":
            return self._convolution_columns(value, random, most)
        rows: NDArray[Any] = value.reshape(-1, value.shape[-1])
        rows = rows[_draw(len(rows), most, random)]
        return rows[None]

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "Gemm" and bool(attribute_of(self.node, "transB", 0))

    def _convolution_columns(self, value: NDArray[Any], random: Any, most: int) -> NDArray[Any]:
        import numpy as np

        kernel = self.weight_shape[2:]
        strides = attribute_of(self.node, "strides", [1] * len(kernel))
        dilations = attribute_of(self.node, "dilations", [1] * len(kernel))
        pads = self._pads(value.shape[2:], kernel, strides, dilations)
        padded = np.moveaxis(np.pad(value, [(0, 0), (0, 0), *pads]), 1, -1)
        sizes = [
            (size + sum(pad) - (k - 1) * dilation - 1) // stride + 1
            for size, pad, k, dilation, stride in zip(
                value.shape[2:], pads, kernel, dilations, strides, strict=True
            )
        ]
        picks = _draw(value.shape[0] * math.prod(sizes), most, random)
        row, *starts = np.unravel_index(picks, (value.shape[0], *sizes))
        taps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
        places = [
            start[:, None] * stride + tap[None] * dilation
            for start, stride, tap, dilation in zip(starts, strides, taps, dilations, strict=True)
        ]
        found: NDArray[Any] = padded[row[:, None], *places]  # [positions, taps, channels]
        found = found.transpose(0, 2, 1).reshape(len(picks), self.groups, self.inputs)
        return found.transpose(1, 0, 2)

    def _pads(
        self, sizes: Sequence[int], kernel: Sequence[int], strides: Any, dilations: Any
    ) -> list[tuple[int, int]]:
        auto = attribute_of(self.node, "auto_pad", b"NOTSET").decode()
        if auto == "VALID":
            return [(0, 0)] * len(kernel)
        if auto == "NOTSET":
            pads = attribute_of(self.node, "pads", [0] * (2 * len(kernel)))
            return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
        found = []
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            covered = (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1
            total = max(covered - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return found


def second_moments(
    model: Any, layers: Sequence[LayerShape], wanted: Collection[int], context: PassContext
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the second moments of the inputs of each wanted layer, X Xᵀ.

    The model runs on all samples once per batch of layers that fits into memory; of large outputs
    only some positions are looked at, drawn by the context's seed. What comes out for a layer does
    not depend on which others are wanted: the engine is asked for the inputs of all in a batch, as
    that decides which operators it fuses.

    Args:
        model: `onnx.ModelProto` in float32.
        layers: All layers of the model.
        wanted: Positions in `layers`.
        context: For the samples, the seed and the working folder.

    Yields:
        (position in `layers`, float64 [groups, inputs, inputs])
    """
    import numpy as np

    samples = context.samples
    if samples is None:
        return
    most = min(-(-_MOST_POSITIONS // len(samples)), _MOST_OF_ONE_SAMPLE)
    done, total = 0, len(wanted) * len(samples)
    for batch in _batches(model, layers, samples[0]):
        names = sorted({layers[i].node.input[0] for i in batch})
        part = [index for index in batch if index in wanted]
        if not part:
            continue
        moments = [np.zeros((s.groups, s.inputs, s.inputs)) for s in (layers[i] for i in part)]
        for turn, values in enumerate(tapped_values(model, names, context)):
            context.reporter.progress(done, total, "round weights")
            for moment, index in zip(moments, part, strict=True):
                random = np.random.Generator(np.random.Philox([context.seed, index, turn]))
                layer = layers[index]
                found = layer.columns(values[layer.node.input[0]], random, most)
                np.add(moment, np.matmul(found.transpose(0, 2, 1), found), out=moment)
            done += len(part)
        yield from zip(part, moments, strict=True)


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """Return a node's attribute."""
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _draw(count: int, most: int, random: Any) -> NDArray[Any]:
    import numpy as np

    if count <= most:
        return np.arange(count)
    picks: NDArray[Any] = np.sort(random.choice(count, most, replace=False))
    return picks


def tapped_values(
    model: Any, names: Sequence[str], context: PassContext
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the named tensors for every sample."""
    import onnx

    told = {value.name for value in model.graph.output}
    given = {value.name for value in model.graph.input}
    wanted = [name for name in names if name not in given]
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in told)
    path = context.workdir / "tapped.onnx"
    try:
        onnx.save(tapped, path)
        # One thread: how a sum is split among threads could change its last bits.
        session = open_session(path, 1)
    finally:
        path.unlink(missing_ok=True)
    for sample in context.samples or ():
        found = session.run(wanted, dict(sample)) if wanted else []
        yield {**sample, **dict(zip(wanted, found, strict=True))}


def _batches(
    model: Any, layers: Sequence[LayerShape], sample: dict[str, NDArray[Any]]
) -> Iterator[list[int]]:
    """Yield positions of layers whose inputs and moments fit into memory together."""
    sizes = tensor_bytes(model, sample)
    batch: list[int] = []
    held = 0
    for index, layer in enumerate(layers):
        moments = 8 * layer.groups * layer.inputs**2
        size = sizes.get(layer.node.input[0], _UNKNOWN_BYTES) + moments
        if batch and held + size > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += size
    if batch:
        yield batch


def tensor_bytes(model: Any, sample: dict[str, NDArray[Any]]) -> dict[str, int]:
    """Return the sizes of the float32 tensors that shape inference knows for this sample."""
    import onnx

    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    for value in draft.graph.input:
        if value.name in sample:
            shape = sample[value.name].shape
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
                dim.dim_value = size
    for output in draft.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(draft, data_prop=True).graph
    found = {}
    for value in itertools.chain(graph.input, graph.value_info, graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found[value.name] = 4 * math.prod(d.dim_value for d in tensor.shape.dim)
    return found
