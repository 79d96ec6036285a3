"""Folds constant factors and offsets around convolutions and matrix products into their weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import all_nodes, op_types
from packager.passes.patterns import attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SCALES: Final = ("Mul", "Div")
_SHIFTS: Final = ("Add", "Sub")
_LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class FoldScales:
    """Takes `x · s + b` with constant s and b into the layer before it or behind it.

    Re-parameterised networks (MobileOne, PP-LCNet, PP-OCR) keep a learnt scale and offset behind
    each convolution and each activation: over the whole tensor, and in a quantized model two more
    roundings. Behind a layer both become part of its weights and bias. Before a convolution the
    factor does, and the offset where nothing is padded; padding puts zeros behind the offset, which
    no bias can tell from the rest.
    """

    name: ClassVar[str] = "fold-scales"
    summary: ClassVar[str] = "fold constant factors and offsets into weights"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need layers, and sums or products; graphs with branches are left alone."""
        if any(a.HasField("g") or a.graphs for node in all_nodes(model) for a in node.attribute):
            return "the graph has branches or loops"
        found = op_types(model)
        if not found & {*_LAYERS} or not found & {*_SCALES, *_SHIFTS}:
            return "no layer has a sum or product beside it"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model with what can be folded in the weights; unchanged if nothing can."""
        import onnx

        after = onnx.ModelProto()
        after.CopyFrom(model)
        folding = _Folding(after)
        count = 0
        while folding.step():
            count += 1
        if not count:
            return PassResult(model=model, modified=False)
        folding.finish()
        words = f"{count} constant factor{'s' if count > 1 else ''} and offsets folded"
        return PassResult(model=after, modified=True, notes=(words,))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that the graph became smaller.

        Raises:
            PassBroken: it did not.
        """
        if len(after.graph.node) >= len(before.graph.node):
            raise PassBroken("the graph did not become smaller")


class _Folding:
    """A graph whose constants change in float64 until everything is folded."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._model = model
        self._outputs = {value.name for value in model.graph.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is not None:
                self._tensors[node.output[0]] = value
        # An initializer that is an input as well may be given another value.
        for value in model.graph.input:
            self._tensors.pop(value.name, None)
        self._new: dict[str, NDArray[Any]] = {}
        self._float = onnx.TensorProto.FLOAT
        self._taken = {name for node in model.graph.node for name in node.output}
        self._taken |= {*self._tensors, *(value.name for value in model.graph.input)}
        self._index()

    def _index(self) -> None:
        self._maker = {name: node for node in self._model.graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in self._model.graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def step(self) -> bool:
        """Fold one node; tell whether one could be."""
        for node in self._model.graph.node:
            if node.op_type not in (*_SCALES, *_SHIFTS):
                continue
            operand = self._operand(node)
            if operand is not None and (
                self._merge(node, *operand)
                or self._fold_back(node, *operand)
                or self._fold_ahead(node, *operand)
                or self._swap_and_fold(node, *operand)
            ):
                self._index()
                return True
        return False

    def finish(self) -> None:
        """Write the changed constants, and drop those that nobody reads."""
        import numpy as np
        import onnx

        graph = self._model.graph
        read = {name for node in graph.node for name in node.input} | self._outputs
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        added = [
            onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
            for name, array in self._new.items()
            if name in read
        ]
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend([*copies, *added])
        for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] not in read]:
            graph.node.remove(node)

    def _array(self, name: str) -> NDArray[Any] | None:
        """Return a float constant in float64, or None."""
        import numpy as np
        import onnx

        if name in self._new:
            return self._new[name]
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type != self._float:
            return None
        found: NDArray[Any] = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        return found

    def _add(self, stem: str, array: NDArray[Any]) -> str:
        name, number = f"{stem}_folded", 1
        while name in self._taken:
            name, number = f"{stem}_folded_{number}", number + 1
        self._taken.add(name)
        self._new[name] = array
        return name

    def _operand(self, node: Any) -> tuple[str, NDArray[Any], bool] | None:
        """Return (computed input, constant, whether it is a factor), as Mul or Add would have."""
        import numpy as np

        left, right = (self._array(name) for name in node.input)
        if (left is None) == (right is None):
            return None
        is_factor = node.op_type in _SCALES
        if right is not None:
            constant = right
            if node.op_type == "Div":
                if not np.all(right):
                    return None
                constant = 1.0 / right
            elif node.op_type == "Sub":
                constant = -right
            return node.input[0], constant, is_factor
        if node.op_type in ("Div", "Sub") or left is None:
            return None
        return node.input[1], left, is_factor

    def _alone(self, name: str) -> bool:
        return len(self._readers[name]) == 1 and name not in self._outputs

    def _drop(self, node: Any) -> None:
        self._model.graph.node.remove(node)

    def _merge(self, node: Any, source: str, constant: NDArray[Any], is_factor: bool) -> bool:
        """Make one factor, or one offset, of two in a row."""
        before = self._maker.get(source)
        if before is None or before.op_type not in (_SCALES if is_factor else _SHIFTS):
            return False
        operand = self._operand(before)
        if operand is None or not self._alone(source):
            return False
        inner, first, _ = operand
        # A larger constant could give the tensor another shape than each alone.
        if min(first.ndim, constant.ndim) > 1 and first.shape != constant.shape:
            return False
        total = first * constant if is_factor else first + constant
        name = self._add(node.name or node.output[0], total)
        node.op_type = "Mul" if is_factor else "Add"
        node.input[0], node.input[1] = inner, name
        self._drop(before)
        return True

    def _fold_back(self, node: Any, source: str, constant: NDArray[Any], is_factor: bool) -> bool:
        """Fold into the weights of the layer that makes `source`."""
        layer = self._maker.get(source)
        if layer is None or layer.op_type not in _LAYERS or not self._alone(source):
            return False
        weight, bias = self._weights(layer)
        if weight is None or (bias is None and _bias_name(layer)):
            return False
        axis = _output_axis(layer)
        per_output = _vector(constant, layer, weight.ndim, weight.shape[axis])
        if per_output is None:
            return False
        if is_factor:
            self._set(layer, weight=weight * _along(per_output, weight.ndim, axis))
            if bias is not None:
                self._set(layer, bias=bias * per_output)
        else:
            if layer.op_type == "MatMul":
                return False
            beta = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
            if beta == 0.0:
                return False
            start = bias if bias is not None else _zeros(weight.shape[axis])
            self._set(layer, bias=start + per_output / beta)
        layer.output[0] = node.output[0]
        self._drop(node)
        return True

    def _fold_ahead(self, node: Any, source: str, constant: NDArray[Any], is_factor: bool) -> bool:
        """Fold into the weights of all layers that read the node."""
        readers = self._foldable(node, constant, self._scale if is_factor else self._shift)
        if readers is None:
            return False
        for change in readers:
            change()
        for layer in self._readers[node.output[0]]:
            layer.input[0] = source
        self._drop(node)
        return True

    def _swap_and_fold(
        self, node: Any, source: str, constant: NDArray[Any], is_factor: bool
    ) -> bool:
        """Turn x · s + b, whose b cannot be folded, into (x + b / s) · s, and fold s."""
        import numpy as np

        if not is_factor or not self._alone(node.output[0]) or not np.all(constant):
            return False
        (shift,) = self._readers[node.output[0]]
        operand = self._operand(shift) if shift.op_type in _SHIFTS else None
        if operand is None or operand[0] != node.output[0] or constant.size > 1 < operand[1].ndim:
            return False
        readers = self._foldable(shift, constant, self._scale)
        if readers is None:
            return False
        for change in readers:
            change()
        name = self._add(shift.name or shift.output[0], operand[1] / constant)
        shift.op_type = "Add"
        shift.input[0], shift.input[1] = source, name
        self._drop(node)
        return True

    def _foldable(
        self, node: Any, constant: NDArray[Any], rule: Callable[..., Callable[[], None] | None]
    ) -> list[Callable[[], None]] | None:
        """Return the changes to all readers of a node, or None where one cannot take it."""
        out = node.output[0]
        readers = self._readers[out]
        if out in self._outputs or not readers:
            return None
        changes = []
        for layer in readers:
            fits = layer.op_type in ("Conv", "Gemm", "MatMul") and layer.input[0] == out
            if not fits or out in layer.input[1:] or attribute(layer, "transA", 0):
                return None
            change = rule(layer, constant)
            if change is None:
                return None
            changes.append(change)
        return changes

    def _scale(self, layer: Any, constant: NDArray[Any]) -> Callable[[], None] | None:
        weight, _ = self._weights(layer)
        per_input = None if weight is None else _per_input(constant, layer, weight)
        if weight is None or per_input is None:
            return None
        return lambda: self._set(layer, weight=weight * per_input)

    def _shift(self, layer: Any, constant: NDArray[Any]) -> Callable[[], None] | None:
        weight, bias = self._weights(layer)
        per_input = None if weight is None else _per_input(constant, layer, weight)
        if weight is None or per_input is None or (bias is None and _bias_name(layer)):
            return None
        if layer.op_type != "Conv":
            return None
        auto = attribute(layer, "auto_pad", b"NOTSET")
        if any(attribute(layer, "pads", [])) or auto not in (b"NOTSET", b"VALID"):
            return None
        added = (weight * per_input).reshape(weight.shape[0], -1).sum(axis=1)
        start = bias if bias is not None else _zeros(weight.shape[0])
        return lambda: self._set(layer, bias=start + added)

    def _weights(self, layer: Any) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """Return weight and bias; the bias as a vector with one element per output."""
        import numpy as np

        weight = self._array(layer.input[1])
        name = _bias_name(layer)
        bias = self._array(name) if name else None
        if weight is not None and bias is not None:
            outputs = weight.shape[_output_axis(layer)]
            if bias.size not in (1, outputs) or bias.shape[-1:] != (bias.size,):
                return weight, None
            bias = np.broadcast_to(bias.reshape(-1), (outputs,))
        if layer.op_type == "ConvTranspose" and attribute(layer, "group", 1) != 1:
            return None, None
        if layer.op_type in ("Gemm", "MatMul") and weight is not None and weight.ndim != 2:
            return None, None
        return weight, bias

    def _set(
        self, layer: Any, *, weight: NDArray[Any] | None = None, bias: NDArray[Any] | None = None
    ) -> None:
        stem = layer.name or layer.output[0]
        if weight is not None:
            layer.input[1] = self._add(f"{stem}_weight", weight)
        if bias is not None:
            name = self._add(f"{stem}_bias", bias)
            if len(layer.input) > 2:
                layer.input[2] = name
            else:
                layer.input.append(name)


def _bias_name(layer: Any) -> str:
    return str(layer.input[2]) if layer.op_type != "MatMul" and len(layer.input) > 2 else ""


def _output_axis(layer: Any) -> int:
    """Return the axis of a layer's weight that counts its outputs."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "Gemm":
        return 0 if attribute(layer, "transB", 0) else 1
    return 1


def _vector(constant: NDArray[Any], layer: Any, rank: int, channels: int) -> NDArray[Any] | None:
    """Return a constant as one number per channel, or None where it is not constant along others.

    Channels are the axis 1 of an image, and the last of a matrix. A constant with more axes than
    the tensor would change its shape.
    """
    import numpy as np

    is_image = layer.op_type in ("Conv", "ConvTranspose")
    # A MatMul's tensors have as many axes as they like, but one.
    most = 1 if layer.op_type == "MatMul" else rank
    if constant.ndim > most:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    axis = 1 if is_image else rank - 1
    if any(size != 1 for position, size in enumerate(shape) if position != axis):
        return None
    if shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(constant.reshape(-1), (channels,))


def _per_input(constant: NDArray[Any], layer: Any, weight: NDArray[Any]) -> NDArray[Any] | None:
    """Return a constant of a layer's input in the shape of its weight, or None."""
    import numpy as np

    if layer.op_type != "Conv":
        transposed = layer.op_type == "Gemm" and attribute(layer, "transB", 0)
        axis = 1 if transposed else 0
        vector = _vector(constant, layer, weight.ndim, weight.shape[axis])
        return None if vector is None else _along(vector, weight.ndim, axis)
    groups = int(attribute(layer, "group", 1))
    vector = _vector(constant, layer, weight.ndim, weight.shape[1] * groups)
    if vector is None:
        return None
    rows = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _along(vector: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    return vector.reshape([-1 if position == axis else 1 for position in range(rank)])


def _zeros(count: int) -> NDArray[Any]:
    import numpy as np

    return np.zeros(count)
