"""Evens out the channels between two layers: what one's weights lose, the next one's gain."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import fresh_name, interface_of, is_quantized
from packager.passes.layer_inputs import attribute_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# f(s·x) = s·f(x) for every s > 0, channel by channel. Clip is not among them: behind the scaling
# its bound would have to differ per channel.
_SCALING: Final = (
    "AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu",
    "MaxPool", "Relu",
)  # fmt: skip
_MOST_ROUNDS: Final = 20
_LARGEST_EXPONENT: Final = 16


@dataclass(frozen=True, kw_only=True)
class Equalize:
    """Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721, section 4.1).

    Where one layer alone reads what another gives, through nothing but operators that let a scale
    pass, channel i of the first is divided by s and the inputs of the second from it multiplied,
    so that both weights reach as far: s = √(r₁ / r₂). A weight or an activation with one scale for
    all channels then loses none of them. The scales are rounded to powers of two: every product
    stays the same to the last bit.
    """

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "even out channels between layers"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need two layers of which one alone reads the other."""
        if is_quantized(model):
            return "the model is quantized already"
        if not find_pairs(model):
            return "no layer alone reads another through operators that a scale passes"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the equalized model."""
        import numpy as np
        import onnx

        after = onnx.ModelProto()
        after.CopyFrom(model)
        pairs = find_pairs(after)
        _own_biases(after, pairs)
        tensors = {tensor.name: tensor for tensor in after.graph.initializer}
        used = {n for pair in pairs for node in (pair.first, pair.second) for n in node.input[1:3]}
        arrays = {n: onnx.numpy_helper.to_array(tensors[n]).copy() for n in sorted(used - {""})}
        moved = [np.zeros(pair.channels, np.int64) for pair in pairs]
        for _ in range(_MOST_ROUNDS):
            changed = False
            for pair, total in zip(pairs, moved, strict=True):
                exponents = pair.exponents(arrays)
                exponents = (
                    np.clip(total + exponents, -_LARGEST_EXPONENT, _LARGEST_EXPONENT) - total
                )
                if exponents.any():
                    pair.scale(arrays, exponents)
                    np.add(total, exponents, out=total)
                    changed = True
            if not changed:
                break
        for name, array in arrays.items():
            tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        modified = any(total.any() for total in moved)
        count = sum(bool(total.any()) for total in moved)
        notes = (f"{count} pairs of layers equalized",) if modified else ()
        return PassResult(model=after if modified else model, modified=modified, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that the interface stays.

        Raises:
            PassBroken: an input or output changed.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("the inputs or outputs changed")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers, of which the second alone reads the first.

    Attributes:
        channels: Of the tensor between them.
    """

    first: Any
    second: Any
    channels: int

    def exponents(self, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the powers of two by which channels of the first should be divided."""
        import numpy as np

        given = np.abs(self._by_output(arrays[self.first.input[1]])).max(axis=1)
        taken = np.abs(self._by_input(arrays[self.second.input[1]])).max(axis=(1, 3)).reshape(-1)
        # A channel without weights on one side reaches nowhere: there is nothing to even out.
        alive = (given > 0) & (taken > 0)
        ratio = np.divide(given, taken, out=np.ones_like(given), where=alive)
        exponents: NDArray[Any] = np.rint(np.log2(ratio.astype(np.float64)) / 2).astype(np.int64)
        return exponents

    def scale(self, arrays: dict[str, NDArray[Any]], exponents: NDArray[Any]) -> None:
        """Divide the first's channels, and multiply the second's inputs."""
        import numpy as np

        weight = self._by_output(arrays[self.first.input[1]])
        np.ldexp(weight, -exponents[:, None], out=weight)
        if len(self.first.input) > 2 and self.first.input[2]:
            bias = arrays[self.first.input[2]]
            np.ldexp(bias, -exponents, out=bias)
        weight = self._by_input(arrays[self.second.input[1]])
        np.ldexp(weight, exponents.reshape(len(weight), 1, -1, 1), out=weight)

    def _by_output(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return a view of the first's weight as [outputs, inputs]."""
        if self.first.op_type == "Gemm":
            return weight if attribute_of(self.first, "transB", 0) else weight.T
        return weight.reshape(len(weight), -1)

    def _by_input(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return a view of the second's weight as [groups, outputs, inputs, taps]."""
        if self.second.op_type == "Gemm":
            rows = weight if attribute_of(self.second, "transB", 0) else weight.T
            return rows[None, :, :, None]
        groups = attribute_of(self.second, "group", 1)
        taps = math.prod(weight.shape[2:])
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)


def find_pairs(model: Any) -> list[Pair]:
    """Return the pairs of layers that can be equalized, in the graph's order."""
    import onnx

    shapes = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(value.name for value in model.graph.output)
    readers = {name: node for node in model.graph.node for name in node.input}
    found = []
    for first in model.graph.node:
        if not _is_layer(first, shapes, uses):
            continue
        second = first
        while uses[second.output[0]] == 1 and (second is first or second.op_type in _SCALING):
            following = readers.get(second.output[0])
            if following is None or following.input[0] != second.output[0]:
                break
            if any(uses[name] for name in second.output[1:]):
                break
            second = following
        if second is first or not _is_layer(second, shapes, uses):
            continue
        weight = shapes[first.input[1]]
        transposed = first.op_type == "Gemm" and not attribute_of(first, "transB", 0)
        # Behind Flatten or Reshape a Gemm's inputs are no longer the channels.
        same_kind = (first.op_type == "Gemm") == (second.op_type == "Gemm")
        if same_kind and first.input[1] != second.input[1]:
            found.append(Pair(first=first, second=second, channels=weight[1 if transposed else 0]))
    return found


def _is_layer(node: Any, shapes: dict[str, tuple[int, ...]], uses: Counter[str]) -> bool:
    """Tell whether a node is a layer whose constant float weight is its own."""
    if node.op_type not in ("Conv", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    if node.input[1] not in shapes or uses[node.input[1]] > 1:
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (bias not in shapes or len(shapes[bias]) != 1):
        return False
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    return all(a.name not in plain or attribute_of(node, a.name, None) == plain[a.name]
               for a in node.attribute)  # fmt: skip


def _own_biases(model: Any, pairs: list[Pair]) -> None:
    """Give the first layer of each pair a bias that nothing else reads, in place."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for pair in pairs:
        bias = pair.first.input[2] if len(pair.first.input) > 2 else ""
        if bias and uses[bias] > 1:
            uses[bias] -= 1
            pair.first.input[2] = fresh_name(model, f"{bias}_equalized")
            model.graph.initializer.add().CopyFrom(tensors[bias])
            model.graph.initializer[-1].name = pair.first.input[2]
