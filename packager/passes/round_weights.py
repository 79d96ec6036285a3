"""Quantizes statically and rounds the weights so that errors cancel on the calibration data."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import digest_of
from packager.passes.int8_static import Int8Static
from packager.passes.layer_inputs import LayerShape, attribute_of, second_moments
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_ROUNDED: Final = ("Conv", "Gemm", "MatMul")
# The second moments of wider layers would take over 200 MB, and three times that in use.
_WIDEST_INPUTS: Final = 5120
_DAMPING: Final = 0.01
_BLOCK: Final = 64


@dataclass(frozen=True, kw_only=True)
class RoundWeights:
    """Static int8 whose weights are rounded one input after the other, by GPTQ.

    Each weight takes over what the rounding of those before it did to the layer's output on the
    calibration data (Frantar et al. 2022, arXiv 2210.17323). Scales, zero points and biases stay
    as the quantizer made them: size and speed are those of plain static int8.

    Attributes:
        quantizer: Makes the model whose weights are rounded anew. It is part of this pass because
            its result no longer holds the float weights and activations, which the rounding needs.
    """

    quantizer: Int8Static = field(default_factory=Int8Static)
    name: ClassVar[str] = "round-weights"
    summary: ClassVar[str] = "quantize to int8, rounding weights to the data"
    precision: ClassVar[str | None] = "int8-static"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = True

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need what the quantizer needs, and a target whose weights are int8."""
        if context.target.quantization.weight != "int8":
            return f"the target wants {context.target.quantization.weight} weights"
        return self.quantizer.requires(model, context)

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the quantized model with its int8 weights rounded anew.

        What is found for a layer is kept in the working folder: another form of the model, with
        more or fewer layers left float, has the same layer with the same scales.
        """
        import numpy as np
        import onnx

        result = self.quantizer.run(model, context)
        reference = onnx.ModelProto()
        reference.CopyFrom(model)
        name_nodes(reference)
        every = float_layers(reference)
        layers = find_layers(every, result.model)
        if not layers:
            return result
        largest = _largest_step(context)
        cache = _cache_file(reference, context)
        known = _read(cache)
        positions = {layer.shape.node.name: index for index, layer in enumerate(every)}
        missing = {
            positions[layer.shape.node.name]: layer for layer in layers if layer.digest not in known
        }
        shapes = [layer.shape for layer in every]
        for index, moments in second_moments(reference, shapes, missing, context):
            layer = missing[index]
            steps, share = _round_layer(layer, moments, largest)
            known[layer.digest] = steps
            known[f"{layer.digest}.left"] = np.asarray(share)
        if missing:
            # An interrupted write must not be read later.
            np.savez(cache.with_suffix(".part.npz"), **known)
            cache.with_suffix(".part.npz").replace(cache)
        initializers = {tensor.name: tensor for tensor in result.model.graph.initializer}
        for layer in layers:
            steps = known[layer.digest]
            initializers[layer.tensor].CopyFrom(onnx.numpy_helper.from_array(steps, layer.tensor))
        left = [float(known[f"{layer.digest}.left"]) for layer in layers]
        rounded = f"{len(layers)} layer{'s' if len(layers) > 1 else ''} rounded to the data"
        note = f"{rounded}: {statistics.median(left):.0%} of the squared rounding error is left"
        kept = sum(share >= 1.0 for share in left)
        notes = (
            *result.notes,
            note,
            *([f"{kept} of them keep the nearest rounding"] if kept else []),
        )
        return PassResult(model=result.model, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check what the quantizer promises, and the range of the weights.

        Raises:
            PassBroken: a layer has a weight that the target's scheme does not allow.
        """
        self.quantizer.ensures(before, after, context)
        reference = type(before)()
        reference.CopyFrom(before)
        name_nodes(reference)
        for layer in find_layers(float_layers(reference), after):
            if abs(layer.steps.astype(int)).max(initial=0) > _largest_step(context):
                raise PassBroken(f"`{layer.shape.node.name}` has weights out of range")


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A layer before quantization, and its weight."""

    shape: LayerShape
    weight: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer(FloatLayer):
    """A layer before and after quantization.

    Attributes:
        tensor: Name of the int8 initializer.
        steps: The int8 weight, of the float weight's shape.
        scale: Broadcast to that shape.
    """

    tensor: str
    steps: NDArray[Any]
    scale: NDArray[Any]

    @property
    def digest(self) -> str:
        """Return what stands for the layer and its quantization."""
        arrays = b"".join(a.tobytes() for a in (self.weight, self.steps, self.scale))
        return hashlib.sha256(self.shape.node.name.encode() + b"\0" + arrays).hexdigest()


def float_layers(model: Any) -> list[FloatLayer]:
    """Return the layers with constant float32 weights, those with too many inputs left out.

    Args:
        model: Every node named.
    """
    import numpy as np

    constants, found = _constants(model), []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in _ROUNDED else None
        if weight is None or weight.dtype != np.float32:
            continue
        if node.op_type != "Conv" and (weight.ndim != 2 or attribute_of(node, "transA", 0)):
            continue
        shape = LayerShape(node=node, weight_shape=weight.shape)
        if shape.inputs <= _WIDEST_INPUTS:
            found.append(FloatLayer(shape=shape, weight=weight))
    return found


def find_layers(layers: Sequence[FloatLayer], quantized: Any) -> list[QuantizedLayer]:
    """Return the layers that have an int8 weight of their own in a quantized model.

    Passed over are weights that are used twice, not symmetric or not int8.

    Args:
        layers: Of the float model.
        quantized: The same with QuantizeLinear/DequantizeLinear pairs; nodes keep their names.
    """
    import numpy as np

    constants = _constants(quantized)
    uses = Counter(name for node in quantized.graph.node for name in node.input)
    producers = {name: node for node in quantized.graph.node for name in node.output}
    nodes = {node.name: node for node in quantized.graph.node}
    found = []
    for layer in layers:
        node = nodes.get(layer.shape.node.name)
        source = producers.get(node.input[1]) if node is not None else None
        if node is None or source is None or source.op_type != "DequantizeLinear":
            continue
        steps, scale = constants.get(source.input[0]), constants.get(source.input[1])
        zero = constants.get(source.input[2]) if len(source.input) > 2 else None
        alone = uses[node.input[1]] == 1 and uses[source.input[0]] == 1
        if steps is None or scale is None or not alone or (zero is not None and zero.any()):
            continue
        if steps.dtype != np.int8 or steps.shape != layer.weight.shape:
            continue
        if scale.ndim == 1 and scale.size > 1:
            axis = attribute_of(source, "axis", 1) % steps.ndim
            scale = scale.reshape([-1 if d == axis else 1 for d in range(steps.ndim)])
        found.append(QuantizedLayer(
            shape=layer.shape, weight=layer.weight, tensor=source.input[0], steps=steps,
            scale=np.broadcast_to(scale.astype(np.float64), steps.shape),
        ))  # fmt: skip
    return found


def gptq(
    weight: NDArray[Any], scale: NDArray[Any], moments: NDArray[Any], largest: int
) -> NDArray[Any]:
    """Round weights to steps so that the error of the product is small, not that of each weight.

    The columns are taken in order of falling energy. With M the damped second moments and M = R Rᵀ,
    R upper triangular, the squared error ‖(W - Q) R‖² falls apart into one term per column, in
    which the errors of earlier columns are known: each column is rounded after adding what they
    left. This is GPTQ without the inverse (Chee et al. 2023, arXiv 2307.13304, theorem 6).

    Args:
        weight: float64 [groups, outputs, inputs].
        scale: Size of a step, of the same shape.
        moments: [groups, inputs, inputs]
        largest: Steps stay in -largest..largest.

    Returns:
        The steps, float64 [groups, outputs, inputs].
    """
    import numpy as np

    size = weight.shape[-1]
    energy = np.einsum("gii->gi", moments)
    order = np.argsort(-energy, axis=1, kind="stable")
    back = np.argsort(order, axis=1, kind="stable")
    weight = np.take_along_axis(weight, order[:, None], axis=2)
    scale = np.take_along_axis(scale, order[:, None], axis=2)
    damped = np.take_along_axis(
        np.take_along_axis(moments, order[:, :, None], axis=1), order[:, None], axis=2
    )
    damping = _DAMPING * energy.mean(axis=1)
    # Where no input was ever other than zero any rounding is as good: the nearest is taken.
    damped += np.where(damping > 0, damping, 1.0)[:, None, None] * np.eye(size)
    # The Cholesky factor of the matrix read backwards, read backwards, is upper triangular.
    factor = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    del damped
    feedback = np.divide(factor, np.einsum("gii->gi", factor)[:, None].copy(), out=factor)
    steps, error = np.zeros_like(weight), np.zeros_like(weight)
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        target = weight[:, :, begin:end] + error[:, :, :begin] @ feedback[:, :begin, begin:end]
        for i in range(begin, end):
            rounded = np.rint(target[:, :, i - begin] / scale[:, :, i])
            steps[:, :, i] = np.clip(rounded, -largest, largest)
            error[:, :, i] = weight[:, :, i] - steps[:, :, i] * scale[:, :, i]
            # An outer product without BLAS, whose threads cost more than this little work.
            target[:, :, i - begin + 1 :] += (
                error[:, :, i, None] * feedback[:, i, None, i + 1 : end]
            )
    return np.take_along_axis(steps, back[:, None], axis=2)


def _round_layer(
    layer: QuantizedLayer, moments: NDArray[Any], largest: int
) -> tuple[NDArray[Any], float]:
    """Return the new int8 weight, and the share of the squared output error that is left."""
    import numpy as np

    weight = layer.shape.to_rows(layer.weight.astype(np.float64))
    scale = layer.shape.to_rows(layer.scale)
    nearest = layer.shape.to_rows(layer.steps).astype(np.float64)
    rounded = gptq(weight, scale, moments, largest)
    before = _squared_error(weight - nearest * scale, moments)
    after = _squared_error(weight - rounded * scale, moments)
    # Outputs do not depend on each other: each keeps the better of both.
    better = after < before
    chosen = np.where(better[:, :, None], rounded, nearest)
    total = float(before.sum())
    left = float(np.where(better, after, before).sum()) / total if total > 0 else 1.0
    return layer.shape.from_rows(chosen).astype(np.int8), left


def _squared_error(error: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    squared: NDArray[Any] = ((error @ moments) * error).sum(axis=2)
    return squared


def _largest_step(context: PassContext) -> int:
    # ONNX Runtime's symmetric ranges. Two products of 255 × 64 still fit 16 bits.
    return 64 if context.target.quantization.reduce_range else 127


def _cache_file(reference: Any, context: PassContext) -> Path:
    samples = context.samples
    data = "" if samples is None else f"{samples.digest} {len(samples)}"
    key = f"{digest_of(reference)} {data} {context.seed} {_largest_step(context)}"
    return context.workdir / f"rounded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _read(cache: Path) -> dict[str, Any]:
    import numpy as np

    if not cache.is_file():
        return {}
    with np.load(cache) as found:
        return dict(found)


def _constants(model: Any) -> dict[str, NDArray[Any]]:
    return dict(_each_constant(model))


def _each_constant(model: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    import onnx

    for tensor in model.graph.initializer:
        yield tensor.name, onnx.numpy_helper.to_array(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield node.output[0], onnx.numpy_helper.to_array(attribute.t)
