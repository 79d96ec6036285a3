"""Writes what a Q/DQ graph computes in float as fp16: int8 layers beside fp16 ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.checks.parity import contradiction
from packager.passes.contract import PassBroken, PassContext, PassResult, opset_of, run_model
from packager.passes.graph import interface_of, op_types
from packager.passes.half_graph import FLOAT16, HalfGraph, constants_as_initializers
from packager.passes.half_plan import HalfPlan, plan, shorten_masks
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# The first opset in which scales may be fp16.
LEAST_OPSET: Final = 19
_PAIRS: Final = ("QuantizeLinear", "DequantizeLinear")
_LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Smaller scales are no normal fp16 numbers: they lose bits, and none may become 0.
_SMALLEST_SCALE: Final = 2.0**-14
# What may go of a weight's norm with channels whose scales are that small.
_MOST_LOST: Final = 1 / 256
_LOW: Final = -128
_HIGH: Final = 127
_MOST_NAMES: Final = 6


@dataclass(frozen=True, kw_only=True)
class Float16Rest:
    """fp16 between the int8 layers of a Q/DQ graph, for strongly typed engines.

    Scales become fp16 as well, since a DequantizeLinear gives what type its scale has. An int8
    layer and all that is dequantized for it have one type: a Cast between the two would keep an
    engine from joining them. Otherwise `Float16` decides what stays float32.
    """

    name: ClassVar[str] = "float16-rest"
    summary: ClassVar[str] = "compute in fp16 what is not int8"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a Q/DQ graph in an opset whose scales may be fp16."""
        if "DequantizeLinear" not in op_types(model):
            return "the model has no int8 layers"
        if opset_of(model) < LEAST_OPSET:
            return f"scales may be fp16 from opset {LEAST_OPSET} on, this is {opset_of(model)}"
        if model.functions:
            return "the model has functions of its own"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the graph with fp16 around its int8 layers."""
        import onnx

        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        constants_as_initializers(draft)
        name_nodes(draft)
        shorten_masks(draft)
        wide = _round_scales(draft)
        found = _together(draft, plan(draft, context, FLOAT16, wide))
        floats = [i for i in found.narrow if draft.graph.node[i].op_type not in _PAIRS]
        notes = _notes(draft, found, len(floats))
        if not floats:
            return PassResult(model=model, modified=False, notes=notes)
        after, twin = (
            HalfGraph(
                model=draft, slots=found.slots, narrow=found.narrow, half=FLOAT16, emulate=emulate
            ).write()
            for emulate in (False, True)
        )
        # ONNX Runtime's CPU kernels compute fp16 in float32 and would not show an overflow.
        for want, have in zip(run_model(draft, context), run_model(twin, context), strict=True):
            broken = contradiction(want, have)
            if broken is not None:
                raise PassBroken(f"rounded to fp16 after every operator, {broken}")
        return PassResult(model=after, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check the dtypes of inputs and outputs, and that each operator's types agree.

        Raises:
            PassBroken: one of the two.
        """
        import onnx

        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its type")
        onnx.checker.check_model(after)
        onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)


def _round_scales(model: Any) -> set[str]:
    """Give every Q/DQ a scale that fp16 holds, in place, and weights the steps that go with it.

    Returns:
        Names of the Q/DQ whose scales are too small for that: they stay float32.
    """
    import numpy as np
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        scale = tensors.get(node.input[1]) if node.op_type in _PAIRS else None
        if scale is not None and scale.data_type == onnx.TensorProto.FLOAT:
            users.setdefault(scale.name, []).append(node)
    wide: set[str] = set()
    for name, nodes in users.items():
        old = onnx.numpy_helper.to_array(tensors[name])
        small = old < _SMALLEST_SCALE
        new = FLOAT16.round(np.where(small, np.float32(_SMALLEST_SCALE), old)).astype(np.float32)
        if small.any():
            held = [_stepped(node, tensors, np.where(small, old / new, 1)) for node in nodes]
            if any(weight is None for weight in held):
                wide.update(node.name for node in nodes)
                continue
            for weight in filter(None, held):
                tensors[weight.name].CopyFrom(weight)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(new, name))
    return wide


def _stepped(node: Any, tensors: Mapping[str, Any], share: NDArray[Any]) -> Any:
    """Return a weight whose steps have grown, as a tensor; None where too much of it would vanish.

    Args:
        node: Its DequantizeLinear; of anything else than int8 weights None is returned.
        tensors: The model's constants by name.
        share: What is left of each step's number, per channel or one for all.
    """
    import numpy as np
    import onnx

    weight = tensors.get(node.input[0])
    if weight is None or weight.data_type != onnx.TensorProto.INT8:
        return None
    stored = onnx.numpy_helper.to_array(weight).astype(np.float32)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(stored.ndim, 1)
    shape = [-1 if place == axis else 1 for place in range(stored.ndim)]
    factor = share.astype(np.float32).reshape(shape if share.size > 1 else ())
    held = np.clip(np.rint(stored * factor), _LOW, _HIGH)
    # Both in units of the new steps of their channels.
    scale = onnx.numpy_helper.to_array(tensors[node.input[1]]).reshape(factor.shape) / factor
    lost = np.linalg.norm((held - stored * factor) * scale)
    if lost > _MOST_LOST * np.linalg.norm(stored * factor * scale):
        return None
    return onnx.numpy_helper.from_array(held.astype(np.int8), weight.name)


def _together(model: Any, found: HalfPlan) -> HalfPlan:
    """Return the plan in which an int8 layer and what is dequantized for it have one type."""
    nodes = list(model.graph.node)
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(position)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    groups: list[tuple[int, ...]] = []
    for position, node in enumerate(nodes):
        if node.op_type in _LAYERS:
            sources = [makers[name] for name in node.input[:2] if name in makers]
            dequantizers = [i for i in sources if nodes[i].op_type == "DequantizeLinear"]
            groups += [(position, i) for i in dequantizers]
    reasons = dict(found.reasons)
    changed = True
    while changed:
        changed = False
        for group in groups:
            stopped = [i for i in group if i in reasons or i not in found.slots]
            for i in group:
                if stopped and i in found.slots and i not in reasons:
                    reasons[i] = f"`{nodes[stopped[0]].name}` beside it does"
                    changed = True
    return HalfPlan(
        slots=found.slots,
        narrow=frozenset(found.slots.keys() - reasons.keys()),
        reasons=reasons,
        runs=found.runs,
    )


def _notes(draft: Any, found: HalfPlan, narrow: int) -> tuple[str, ...]:
    nodes = draft.graph.node
    wide = [i for i in sorted(found.reasons) if nodes[i].op_type not in _PAIRS]
    notes = [f"{narrow} of {narrow + len(wide)} operators that are not Q/DQ in fp16"]
    notes += [f"`{nodes[i].name}` stays float32: {found.reasons[i]}" for i in wide[:_MOST_NAMES]]
    if len(wide) > _MOST_NAMES:
        notes.append(f"{len(wide) - _MOST_NAMES} more stay float32")
    return tuple(notes)
