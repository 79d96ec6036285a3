"""Sets two of every four weights to zero, as sparse tensor cores take them, and mends the rest."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import is_quantized
from packager.passes.half_graph import captured_by
from packager.passes.layer_inputs import LayerShape, attribute_of, second_moments
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PATTERN: Final = "2:4"
_LAYERS: Final = ("Conv", "Gemm", "MatMul")
# The second moments of wider layers would take over 200 MB, and three times that in use.
_WIDEST_INPUTS: Final = 5120
_DAMPING: Final = 0.01
_BLOCK: Final = 64
# Of the conjugate gradients; twice as many took at most 3 % more off a layer's squared error.
_ITERATIONS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Sparse24:
    """2:4 structured sparsity along the input channels of convolutions and matrix products.

    TensorRT's rule: for each output channel and each position in the kernel, every four
    consecutive input channels hold at most two weights other than zero; for a matrix product the
    inputs are the channels. Layers whose channels per group are no multiple of four stay dense.

    Which weights go is decided by SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): those
    whose loss, after the weights that come later take over what they can, is smallest on the
    calibration data. Then the weights that stay are fitted once more, all together.

    Attributes:
        compensate: Fit to calibration data; else the smaller two of each four go.
        keep: Names of nodes that stay dense.
    """

    compensate: bool = True
    keep: tuple[str, ...] = ()
    name: ClassVar[str] = "sparse-2-4"
    summary: ClassVar[str] = "set two of every four weights to zero"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a target that gains from it, and data where weights are fitted to it."""
        if PATTERN not in context.target.sparsity:
            return f"{context.target.name} gains nothing from zeros"
        if is_quantized(model):
            return "the model is quantized already"
        if self.compensate and context.samples is None:
            return "there is no calibration data"
        if not _layers(_named(model), self.keep):
            return "no layer has a multiple of four input channels"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model with sparse weights; the graph stays as it is."""
        import numpy as np
        import onnx

        draft = _named(model)
        layers = _layers(draft, self.keep)
        shapes = [layer.shape for layer in layers.values()]
        wanted = {i for i, s in enumerate(shapes) if s.inputs <= _WIDEST_INPUTS}
        tensors = {tensor.name: tensor for tensor in draft.graph.initializer}
        names = list(layers)
        left: list[float] = []
        pending = set(range(len(names)))

        def store(index: int, rows: NDArray[Any]) -> None:
            pending.discard(index)
            tensor = tensors[names[index]]
            values = shapes[index].from_rows(rows).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

        if self.compensate:
            for index, moments in second_moments(draft, shapes, wanted, context):
                rows = _rows(shapes[index], tensors[names[index]])
                sparse, share = fit_2_4(rows, moments, shapes[index].taps)
                left.append(share)
                store(index, sparse)
        for index in sorted(pending):
            rows = _rows(shapes[index], tensors[names[index]])
            store(index, rows * largest_two(rows, shapes[index].taps))
        shown = f"{len(layers)} layer{'s' if len(layers) > 1 else ''} with two zeros in every four"
        notes = [shown]
        if left:
            notes.append(
                f"{statistics.median(left):.0%} of the squared error is left of what dropping the "
                "smaller two would cost"
            )
        wide = len(layers) - len(left)
        if self.compensate and wide:
            notes.append(f"{wide} of them too wide to be fitted to the data")
        return PassResult(model=draft, modified=True, notes=tuple(notes))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check every layer's zeros, and that nothing but weights changed.

        Raises:
            PassBroken: a layer has three weights in a group of four, or the graph changed.
        """
        named = _named(before)
        layers = _layers(named, self.keep)
        tensors = {tensor.name: tensor for tensor in after.graph.initializer}
        for name, layer in layers.items():
            if not is_2_4(_rows(layer.shape, tensors[name]), layer.shape.taps):
                node = layer.shape.node.name
                raise PassBroken(f"`{node}` has more than two weights in a group of four")
        if [n.SerializeToString() for n in named.graph.node] != [
            n.SerializeToString() for n in after.graph.node
        ]:
            raise PassBroken("the graph changed")


@dataclass(frozen=True, kw_only=True)
class LayerZeros:
    """How sparse one layer is.

    Attributes:
        zeros: Share of the weights that are 0.
        pattern: `2:4` where every group of four input channels has two zeros, else empty.
    """

    name: str
    op_type: str
    weights: int
    zeros: float
    pattern: str


def count_zeros(model: Any) -> tuple[LayerZeros, ...]:
    """Return how sparse each layer with a float weight of its own is, in the graph's order."""
    draft = _named(model)
    tensors = {tensor.name: tensor for tensor in draft.graph.initializer}
    found = []
    for name, layer in _layers(draft, (), eligible=False).items():
        rows = _rows(layer.shape, tensors[name])
        sparse = layer.eligible and is_2_4(rows, layer.shape.taps)
        found.append(LayerZeros(
            name=layer.shape.node.name, op_type=layer.shape.node.op_type, weights=rows.size,
            zeros=float((rows == 0).mean()), pattern=PATTERN if sparse else "",
        ))  # fmt: skip
    return tuple(found)


def is_2_4(rows: NDArray[Any], taps: int) -> bool:
    """Tell whether every four consecutive input channels hold at most two weights but 0.

    Args:
        rows: [groups, outputs, channels * taps], the channel's index before the tap's.
        taps: Positions of the kernel; 1 for a matrix product.
    """
    parts = _by_tap(rows, taps)
    grouped = parts.reshape(*parts.shape[:-1], -1, 4)
    return bool(((grouped != 0).sum(axis=-1) <= 2).all())


def largest_two(rows: NDArray[Any], taps: int) -> NDArray[Any]:
    """Return which weights are the larger two of their four; of equal ones the first."""
    import numpy as np

    return _by_channel(_two_best(np.abs(_by_tap(rows, taps))), taps)


def fit_2_4(rows: NDArray[Any], moments: NDArray[Any], taps: int) -> tuple[NDArray[Any], float]:
    """Return weights with two zeros in every four whose product is near the original's.

    Args:
        rows: float64 [groups, outputs, inputs].
        moments: Of the inputs, [groups, inputs, inputs].
        taps: Positions of the kernel.

    Returns:
        The weights, and their squared output error as a share of what dropping the smaller two of
        each four costs.
    """
    import numpy as np

    order = _by_tap(np.arange(rows.shape[-1]), taps)
    back = np.argsort(order)
    ordered = rows[:, :, order]
    inner = moments[:, order][:, :, order].astype(np.float64)
    energy = np.einsum("gii->gi", inner)
    damping = _DAMPING * energy.mean(axis=1)
    # Where no input was ever other than zero any weight is as good: the damping alone decides.
    inner += np.where(damping > 0, damping, 1.0)[:, None, None] * np.eye(inner.shape[-1])
    near = _two_best(np.abs(ordered))
    best = ordered * near
    costs = _squared_error(ordered - best, inner)
    total = float(costs.sum())
    for kept in (near, _sparsegpt(ordered, inner)):
        fitted = _refit(ordered, kept, inner)
        error = _squared_error(ordered - fitted, inner)
        # Outputs do not depend on each other: each keeps the best.
        better = error < costs
        best = np.where(better[:, :, None], fitted, best)
        costs = np.where(better, error, costs)
    share = float(costs.sum()) / total if total > 0 else 1.0
    return best[:, :, back], share


def _sparsegpt(weight: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    """Return the mask of SparseGPT for groups of four consecutive inputs.

    With the moments M = R Rᵀ, R upper triangular, the inverse that the paper downdates has the
    Cholesky factor R⁻¹, so a weight's loss w² / [M⁻¹] is (w R_ii)², and what its removal asks of
    later weights is a column of R over R_ii (as in `round_weights.gptq`).
    """
    import numpy as np

    size = weight.shape[-1]
    # The Cholesky factor of the matrix read backwards, read backwards, is upper triangular.
    factor = np.linalg.cholesky(moments[:, ::-1, ::-1])[:, ::-1, ::-1]
    length = np.einsum("gii->gi", factor).copy()
    feedback = np.divide(factor, length[:, None], out=factor)
    kept, error = np.zeros(weight.shape, bool), np.zeros_like(weight)
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        target = weight[:, :, begin:end] + error[:, :, :begin] @ feedback[:, :begin, begin:end]
        for i in range(begin, end):
            place = i - begin
            if i % 4 == 0:
                loss = np.abs(target[:, :, place : place + 4] * length[:, None, i : i + 4])
                kept[:, :, i : i + 4] = _two_best(loss)
            value = target[:, :, place] * kept[:, :, i]
            error[:, :, i] = weight[:, :, i] - value
            target[:, :, place + 1 :] += error[:, :, i, None] * feedback[:, i, None, i + 1 : end]
    return kept


def _refit(weight: NDArray[Any], kept: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    """Return the kept weights that come nearest to the original product.

    For each output the minimum of (w - v) M (w - v)ᵀ over v on its kept places, by conjugate
    gradients with the diagonal as preconditioner; all outputs at once.
    """
    import numpy as np

    scale = np.einsum("gii->gi", moments)[:, None]
    fitted: NDArray[Any] = weight * kept
    residual = ((weight - fitted) @ moments) * kept
    direction = step = residual / scale
    inner = (residual * step).sum(axis=2, keepdims=True)
    for _ in range(_ITERATIONS):
        pushed = (direction @ moments) * kept
        curve = (direction * pushed).sum(axis=2, keepdims=True)
        length = np.divide(inner, curve, out=np.zeros_like(inner), where=curve > 0)
        fitted = fitted + length * direction
        residual = residual - length * pushed
        step = residual / scale
        following = (residual * step).sum(axis=2, keepdims=True)
        turn = np.divide(following, inner, out=np.zeros_like(inner), where=inner > 0)
        direction, inner = step + turn * direction, following
    return fitted


def _squared_error(error: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    squared: NDArray[Any] = ((error @ moments) * error).sum(axis=2)
    return squared


def _two_best(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    grouped = values.reshape(*values.shape[:-1], -1, 4)
    order = np.argsort(-grouped, axis=-1, kind="stable")
    mask: NDArray[Any] = np.zeros(grouped.shape, bool)
    np.put_along_axis(mask, order[..., :2], values=True, axis=-1)
    return mask.reshape(values.shape)


def _by_tap(values: NDArray[Any], taps: int) -> NDArray[Any]:
    """Put the channels of each position of the kernel side by side, on the last axis."""
    import numpy as np

    parts = values.reshape(*values.shape[:-1], -1, taps)
    return np.swapaxes(parts, -1, -2).reshape(values.shape)


def _by_channel(values: NDArray[Any], taps: int) -> NDArray[Any]:
    import numpy as np

    parts = values.reshape(*values.shape[:-1], taps, -1)
    return np.swapaxes(parts, -1, -2).reshape(values.shape)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    shape: _Shape
    eligible: bool


class _Shape(LayerShape):
    @property
    def taps(self) -> int:
        """Return the number of positions of the kernel."""
        return math.prod(self.weight_shape[2:]) if self.node.op_type == "Conv" else 1


def _layers(model: Any, keep: tuple[str, ...], *, eligible: bool = True) -> Mapping[str, _Layer]:
    """Return the layers with a float32 weight of their own, by the weight's name."""
    import onnx

    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(name for node in model.graph.node for name in captured_by(node))
    tensors = {t.name: t for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        tensor = tensors.get(node.input[1]) if node.op_type in _LAYERS else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or uses[tensor.name] > 1:
            continue
        flat = node.op_type != "Conv"
        if flat and (len(tensor.dims) != 2 or attribute_of(node, "transA", 0)):
            continue
        shape = _Shape(node=node, weight_shape=tuple(tensor.dims))
        fits = shape.inputs // shape.taps % 4 == 0 and shape.inputs > 0 and node.name not in keep
        if fits or not eligible:
            found[tensor.name] = _Layer(shape=shape, eligible=fits)
    return found


def _rows(shape: _Shape, tensor: Any) -> NDArray[Any]:
    import numpy as np
    import onnx

    return shape.to_rows(onnx.numpy_helper.to_array(tensor).astype(np.float64))


def _named(model: Any) -> Any:
    draft = type(model)()
    draft.CopyFrom(model)
    name_nodes(draft)
    return draft
