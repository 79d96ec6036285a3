"""Corrects biases of a quantized model by what quantization shifts on the calibration data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.passes.contract import PassContext, PassResult
from packager.passes.graph import all_nodes
from packager.passes.layer_inputs import tapped_values, tensor_bytes
from packager.passes.layer_walk import LayerWalk
from packager.passes.quantizer import name_nodes
from packager.passes.round_weights import RoundWeights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from packager.passes.int8_static import Int8Static

_CORRECTED: Final = ("Conv", "ConvTranspose", "Gemm")
_MOST_SAMPLES: Final = 32
_LEAST_SAMPLES: Final = 4
# What the values between two layers may take, over all samples.
_HELD_BYTES: Final = 512 << 20
_UNCLAMPED: Final = (-math.inf, math.inf)
# A channel that hardly ever passes its clamp is not moved by more than this share allows.
_LEAST_MOVED: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class CorrectBias:
    """Static int8 whose biases give each channel of each layer the mean it had in float.

    Rounding shifts the mean of what a layer gives (Nagel et al. 2019, arXiv 1906.04721, section
    4.2; measured on data as in their appendix). Layers are corrected from the input on, each one
    seeing what the corrected ones before it give. Size and speed stay those of the quantizer's
    model.

    Attributes:
        quantizer: Makes the model that is corrected.
    """

    quantizer: Int8Static | RoundWeights = field(default_factory=RoundWeights)
    name: ClassVar[str] = "correct-bias"
    summary: ClassVar[str] = "quantize to int8, correcting the biases"
    precision: ClassVar[str | None] = "int8-static"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = True

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need what the quantizer needs, a layer with a bias, and a graph without branches."""
        if any(a.HasField("g") or a.graphs for node in all_nodes(model) for a in node.attribute):
            return "the graph has branches or loops"
        constants = {tensor.name for tensor in model.graph.initializer}
        if not any(_bias_of(node) in constants for node in model.graph.node):
            return "no layer has a constant bias"
        return self.quantizer.requires(model, context)

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the quantized model with its biases corrected."""
        import numpy as np
        import onnx

        result = self.quantizer.run(model, context)
        reference = onnx.ModelProto()
        reference.CopyFrom(model)
        name_nodes(reference)
        after = result.model
        biases = find_biases(after, {node.name: node.output[0] for node in reference.graph.node})
        if not biases or not context.samples:
            return result
        samples = context.samples.take(_spread(len(context.samples), _room(model, context)))
        clamps = clamps_behind(reference)
        wanted = _means(reference, biases, clamps, replace(context, samples=samples))
        walk = LayerWalk(after, samples, context.workdir)
        shares = []
        for position, bias in enumerate(biases):
            context.reporter.progress(position, len(biases), "correct biases")
            walk.run_to(bias.output)
            low, high = clamps.get(bias.original, _UNCLAMPED)
            have = [_mean(held[bias.output].clip(low, high)) for held in walk.values]
            # Where the value is cut off the bias moves nothing.
            moved = np.mean(
                [_mean((low < v[bias.output]) & (v[bias.output] < high)) for v in walk.values],
                axis=0,
            )
            shift = _certain_part(wanted[bias.original] - np.stack(have))
            applied = bias.add(shift / np.maximum(moved, _LEAST_MOVED))
            for held in walk.values:
                value = held[bias.output]
                held[bias.output] = value + _along_channels(applied, value).astype(value.dtype)
            largest = np.abs(wanted[bias.original]).mean()
            shares.append(float(np.abs(applied).mean() / max(largest, 1e-30)))
        note = f"{len(biases)} biases corrected, by {np.median(shares):.1%} of the mean on average"
        return PassResult(model=after, modified=True, notes=(*result.notes, note))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check what the quantizer promises.

        Raises:
            PassBroken: it does not hold.
        """
        self.quantizer.ensures(before, after, context)


@dataclass(frozen=True, kw_only=True)
class Bias:
    """The bias of a layer in a quantized model.

    Attributes:
        output: Name of the layer's output.
        original: Name of that output in the float model; the quantizer renames graph outputs.
        tensor: The initializer: int32 steps, or float.
        scale: Size of a step, per channel or one for all; None for a float bias.
    """

    output: str
    original: str
    tensor: Any
    scale: NDArray[Any] | None

    def add(self, shift: NDArray[Any]) -> NDArray[Any]:
        """Add to the bias in place, and return what was really added, in whole steps."""
        import numpy as np
        import onnx

        old = onnx.numpy_helper.to_array(self.tensor)
        if self.scale is None:
            new = (old.astype(np.float64) + shift).astype(old.dtype)
            added: NDArray[Any] = new.astype(np.float64) - old
        else:
            bounds = np.iinfo(old.dtype)
            steps = np.rint(shift / self.scale)
            new = np.clip(old + steps, bounds.min, bounds.max).astype(old.dtype)
            added = (new.astype(np.float64) - old) * self.scale
        self.tensor.CopyFrom(onnx.numpy_helper.from_array(new, self.tensor.name))
        return added


def find_biases(quantized: Any, outputs: Mapping[str, str]) -> list[Bias]:
    """Return the biases of layers that have one of their own, in the graph's order.

    Args:
        quantized: Nodes keep their names.
        outputs: The output of each node of the float model, by name of the node.
    """
    import numpy as np
    import onnx

    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    uses = Counter(name for node in quantized.graph.node for name in node.input)
    made = {name: node for node in quantized.graph.node for name in node.output}
    found = []
    for node in quantized.graph.node:
        name = _bias_of(node)
        if not name or uses[name] > 1 or node.name not in outputs:
            continue
        source, scale = made.get(name), None
        if source is not None and source.op_type == "DequantizeLinear":
            if source.input[1] not in tensors or uses[source.input[0]] > 1:
                continue
            scale = onnx.numpy_helper.to_array(tensors[source.input[1]]).astype(np.float64)
            name = source.input[0]
        if name in tensors and len(tensors[name].dims) == 1:
            original = outputs[node.name]
            found.append(
                Bias(output=node.output[0], original=original, tensor=tensors[name], scale=scale)
            )
    return found


def _bias_of(node: Any) -> str:
    plain = all(a.name != "beta" or a.f == 1.0 for a in node.attribute)
    has = node.op_type in _CORRECTED and len(node.input) > 2 and plain
    return str(node.input[2]) if has else ""


def clamps_behind(model: Any) -> dict[str, tuple[float, float]]:
    """Return the bounds of tensors that one Relu or Clip with constant bounds reads alone."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(value.name for value in model.graph.output)
    found = {}
    for node in model.graph.node:
        bounds = [name for name in node.input[1:] if name]
        if node.op_type not in ("Relu", "Clip") or uses[node.input[0]] > 1:
            continue
        if all(name in constants for name in bounds):
            low, high = (0.0, math.inf) if node.op_type == "Relu" else _UNCLAMPED
            for name, is_low in zip(node.input[1:], (True, False), strict=False):
                bound = float(onnx.numpy_helper.to_array(constants[name]).item()) if name else None
                low = bound if bound is not None and is_low else low
                high = bound if bound is not None and not is_low else high
            found[node.input[0]] = (low, high)
    return found


def _means(
    model: Any,
    biases: Sequence[Bias],
    clamps: Mapping[str, tuple[float, float]],
    context: PassContext,
) -> dict[str, NDArray[Any]]:
    """Return the mean of each channel behind the clamps, by output: float64 [samples, channels]."""
    import numpy as np

    names = [bias.original for bias in biases]
    rows = [
        [_mean(values[name].clip(*clamps.get(name, _UNCLAMPED))) for name in names]
        for values in tapped_values(model, names, context)
    ]
    columns = map(np.stack, zip(*rows, strict=True))
    return dict(zip(names, columns, strict=True))


def _mean(value: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    found: NDArray[Any] = (
        np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(axis=1, dtype=np.float64)
    )
    return found


def _certain_part(shifts: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over the samples, each channel shrunk by how sure it is.

    With a mean m whose variance is v, m²/(m² + v) of it is kept: the share that is least wrong on
    other data.
    """
    import numpy as np

    mean = shifts.mean(axis=0)
    variance = shifts.var(axis=0) / max(len(shifts) - 1, 1)
    kept: NDArray[Any] = mean * mean**2 / np.maximum(mean**2 + variance, 1e-300)
    return kept


def _along_channels(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    return values.reshape([1, -1, *[1] * (like.ndim - 2)])


def _room(model: Any, context: PassContext) -> int:
    """Return how many samples' values between two layers fit into memory."""
    if not context.samples:
        return _LEAST_SAMPLES
    sizes = sorted(tensor_bytes(model, context.samples[0]).values())
    # Seldom do more than four large tensors wait for a later node.
    largest = max(sum(sizes[-4:]), 1)
    return max(min(_MOST_SAMPLES, _HELD_BYTES // largest), _LEAST_SAMPLES)


def _spread(count: int, most: int) -> list[int]:
    most = min(count, most)
    return [index * count // most for index in range(most)]
