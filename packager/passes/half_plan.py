"""Decides which operators of a float32 graph can compute in a 16-bit float type, and why not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.passes.contract import opset_of
from packager.passes.half_graph import Schemas, Slots, captured_by, find_slots
from packager.passes.layer_inputs import attribute_of
from packager.passes.magnitudes import Magnitude, Measured, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from packager.passes.contract import PassContext
    from packager.passes.half_graph import HalfType

# Other inputs may reach four times what the measured ones did.
_SAFETY: Final = 4.0
# Rounding to fp16 costs a normal tensor 3e-4 of its norm; ten times that says that values vanish.
_MOST_ERROR: Final = 1 / 256
# Constants of a few elements are judged one by one: an epsilon, a scale, a step.
_FEW_ELEMENTS: Final = 64
# A large constant is looked at in parts, which keeps copies small.
_PART_ELEMENTS: Final = 4 << 20
_SMALLEST_NORMAL: Final = 2.0**-14
# What a mask adds to the scores that a Softmax must not see; exact in both 16-bit types.
_MASKED: Final = -9984.0
_ENDLESS: Final = -1e9
# What a mask may pass through on its way to the Softmax.
_MASK_PATH: Final = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Identity", "Mul", "Reshape", "Slice", "Squeeze",
     "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
# A small number behind them changes the result as much as a large one.
_DIVISORS: Final = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0}
# What hands a small number on to a divisor as it is.
_TO_DIVISORS: Final = frozenset(
    {"Abs", "Add", "Clip", "Expand", "Identity", "Max", "Mul", "Reshape", "Squeeze", "Sub",
     "Transpose", "Unsqueeze"}
)  # fmt: skip
_SQUARES: Final = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LpNormalization", "ReduceL2",
     "ReduceSumSquare", "LpPool", "GlobalLpPool"}
)  # fmt: skip
_MEANS: Final = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_EXPONENTIALS: Final = frozenset({"LogSumExp", "ReduceLogSumExp"})


@dataclass(frozen=True, kw_only=True)
class HalfPlan:
    """Which nodes become 16 bits wide.

    Attributes:
        slots: By position, where a node touches float32 tensors that may be.
        narrow: Positions of those that are.
        reasons: By position, why a node that touches float32 tensors is not.
    """

    slots: dict[int, Slots]
    narrow: frozenset[int]
    reasons: dict[int, str]
    runs: int


def plan(
    model: Any,
    context: PassContext,
    half: HalfType,
    keep: Collection[str],
    *,
    array: Callable[[Any], NDArray[Any]] | None = None,
) -> HalfPlan:
    """Return the plan for a model, from what its tensors hold on the probes and samples.

    Args:
        model: Every node named, no `Constant` nodes at the top level.
        context: For the data.
        half: The type.
        keep: Names of nodes that stay float32.
        array: Gives the values of an initializer, where they lie outside of the model.
    """
    import onnx

    found = measure(model, context, half)
    opset = opset_of(model)
    schemas = Schemas(opset)
    judge = _Judge(model, found, half, array or onnx.numpy_helper.to_array)
    slots: dict[int, Slots] = {}
    reasons: dict[int, str] = {}
    for position, node in enumerate(model.graph.node):
        touched = find_slots(node, found.dtypes, schemas, half)
        if touched is None:
            reasons[position] = f"{node.op_type} has no {half.name} form in opset {opset}"
            continue
        if not touched:
            continue
        slots[position] = touched
        why = "it was asked to" if node.name in keep else judge.objection(node, touched)
        if why is not None:
            reasons[position] = why
    _join_islands(model, slots, reasons)
    narrow = frozenset(slots.keys() - reasons.keys())
    return HalfPlan(slots=slots, narrow=narrow, reasons=reasons, runs=found.runs)


class _Judge:
    def __init__(
        self,
        model: Any,
        found: Measured,
        half: HalfType,
        array: Callable[[Any], NDArray[Any]],
    ) -> None:
        import onnx

        self._half = half
        self._found = found
        self._objections = {
            tensor.name: self._constant(array(tensor))
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
        divisors = _divisors(model)
        for name, magnitude in found.magnitudes.items():
            self._objections[name] = self._activation(magnitude, divides=name in divisors)

    def objection(self, node: Any, touched: Slots) -> str | None:
        """Return why a node must stay float32, or None."""
        names = [node.input[i] for i in touched.inputs] + [node.output[i] for i in touched.outputs]
        for name in names:
            why = self._objections.get(name)
            if why is not None:
                return f"`{name}` {why}" if name in self._found.magnitudes else why
        return self._inside(node)

    def _constant(self, values: NDArray[Any]) -> str | None:
        import numpy as np

        flat, seen = values.reshape(-1), Magnitude()
        for begin in range(0, flat.size, _PART_ELEMENTS):
            seen.see(flat[begin : begin + _PART_ELEMENTS], self._half)
        if seen.largest > self._half.largest:
            return f"a constant of it reaches {seen.largest:.3g}"
        if self._half.name != "fp16":
            return None
        if flat.size <= _FEW_ELEMENTS:
            some = np.abs(flat[np.isfinite(flat) & (flat != 0)])
            lost = np.abs(self._half.round(some).astype(np.float32) - some) / some
            if float(lost.max(initial=0)) > _MOST_ERROR:
                return f"a constant of it is {float(some[lost.argmax()]):.3g}, which fp16 loses"
        if seen.error > _MOST_ERROR:
            return f"its weights are so small that fp16 loses {seen.error:.1%} of them"
        return None

    def _activation(self, seen: Magnitude, *, divides: bool) -> str | None:
        limit = self._half.largest / _SAFETY
        if seen.largest > limit:
            return f"reaches {seen.largest:.3g}, and {self._half.name} ends at {limit * 4:.3g}"
        if seen.integers and seen.errors > 0:
            return f"counts to {seen.largest:.0f}, and {self._half.name} rounds whole numbers"
        if self._half.name != "fp16":
            return None
        if divides and seen.smallest < _SMALLEST_NORMAL:
            return f"falls to {seen.smallest:.3g} before a division, root or logarithm"
        if seen.error > _MOST_ERROR:
            return f"is so small that fp16 loses {seen.error:.1%} of it"
        return None

    def _inside(self, node: Any) -> str | None:
        """Return what overflows or vanishes between an operator's inputs and its output."""
        if self._half.name != "fp16":
            return None
        limit = self._half.largest / _SAFETY
        source = self._found.magnitudes.get(node.input[0]) if node.input else None
        result = self._found.magnitudes.get(node.output[0])
        if source is None or result is None:
            return None
        kind = node.op_type
        epsilon = float(attribute_of(node, "epsilon", 1e-5))
        squares = kind in _SQUARES or (
            kind == "LayerNormalization" and int(attribute_of(node, "stash_type", 1)) != 1
        )
        if squares and source.largest**2 > limit:
            return f"it squares values up to {source.largest:.3g}"
        if squares and kind.endswith("Normalization") and epsilon < _SMALLEST_NORMAL / 8:
            return f"its epsilon {epsilon:.3g} vanishes"
        count = math.prod(source.shape) / max(math.prod(result.shape), 1)
        if kind == "AveragePool":
            count = math.prod(attribute_of(node, "kernel_shape", [1]))
        if kind in _MEANS and result.largest * count > limit:
            return f"it sums up to {result.largest * count:.3g} before it divides"
        if kind in _EXPONENTIALS and source.largest > math.log(limit):
            return f"it takes the exponential of {source.largest:.3g}"
        if kind in ("Softmax", "LogSoftmax") and source.shape:
            axis = int(attribute_of(node, "axis", -1))
            if source.shape[axis] > limit:
                return f"it sums {source.shape[axis]} exponentials"
        return None


def _divisors(model: Any) -> set[str]:
    """Return the tensors by which something is divided, and those that flow into them."""
    found: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in _DIVISORS:
            found.add(node.input[_DIVISORS[node.op_type]])
        elif node.op_type in _TO_DIVISORS and found.intersection(node.output):
            found.update(node.input)
    return found


def shorten_masks(model: Any) -> int:
    """Write masks of about -3e38 as -9984, which 16 bits hold, in place; return how many.

    Only constants are touched that go nowhere but into a Softmax, where both give 0.

    Args:
        model: Without `Constant` nodes at the top level.
    """
    import numpy as np
    import onnx

    readers = _readers(model)
    outputs = {output.name for output in model.graph.output}
    count = 0
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.external_data:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        endless = np.isfinite(values) & (values < _ENDLESS)
        rest = np.where(endless, 0, values)
        if not endless.any() or np.abs(rest[np.isfinite(rest)]).max(initial=0) > -_MASKED:
            continue
        if _ends_in_softmax(model, tensor.name, readers, outputs):
            short = np.where(endless, np.float32(_MASKED), values).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(short, tensor.name))
            count += 1
    return count


def _ends_in_softmax(
    model: Any, name: str, readers: Mapping[str, list[int]], outputs: Collection[str]
) -> bool:
    pending, seen, reached = [name], set(), False
    while pending:
        value = pending.pop()
        if value in outputs:
            return False
        for position in readers.get(value, ()):
            node = model.graph.node[position]
            if node.op_type == "Softmax":
                reached = True
                continue
            if node.op_type not in _MASK_PATH:
                return False
            if position not in seen:
                seen.add(position)
                pending.extend(node.output)
    return reached


def _join_islands(model: Any, slots: Mapping[int, Slots], reasons: dict[int, str]) -> None:
    """Leave operators without weights float32 where all around them is, in place.

    Two Casts around a cheap operator cost more than its 16 bits gain.
    """
    nodes = model.graph.node
    readers = _readers(model)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    big = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    outputs = {output.name for output in model.graph.output}

    def around(position: int) -> Iterator[int | None]:
        node, touched = nodes[position], slots[position]
        for i in touched.inputs:
            if node.input[i] in makers:
                yield makers[node.input[i]]
        for i in touched.outputs:
            yield from readers.get(node.output[i], ())
            if node.output[i] in outputs:
                yield None  # outputs are float32

    changed = True
    while changed:
        changed = False
        for position, touched in slots.items():
            node = nodes[position]
            if position in reasons or any(node.input[i] in big for i in touched.inputs):
                continue
            near = list(around(position))
            inner = [i for i in near if i is not None]
            if inner and all(i in reasons or i not in slots for i in inner):
                reasons[position] = "it lies between operators that stay float32"
                changed = True


def _readers(model: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, node in enumerate(model.graph.node):
        for name in sorted({*node.input, *captured_by(node)}):
            found.setdefault(name, []).append(position)
    return found
