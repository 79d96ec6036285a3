"""Writes a graph in fp16 or bf16 and leaves float32 what the range of its values demands."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.checks.parity import contradiction
from packager.passes.contract import PassBroken, PassContext, PassResult, opset_of, run_model
from packager.passes.graph import interface_of, is_quantized, op_types
from packager.passes.half_graph import BFLOAT16, FLOAT16, HalfGraph, constants_as_initializers
from packager.passes.half_plan import HalfPlan, plan, shorten_masks
from packager.passes.quantizer import name_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from packager.passes.half_graph import HalfType
    from packager.target import Target

# Fewer weights in 16 bits than this are no gain in size worth the rounding.
_LEAST_SAVED: Final = 0.25
# Before, convolutions, pooling and most activations have no bf16 form.
_BF16_OPSET: Final = 22
# NVIDIA's Ampere was the first with bf16.
_BF16_CAPABILITY: Final = 8.0
_MOST_NAMES: Final = 6


@dataclass(frozen=True, kw_only=True)
class Float16:
    """fp16 in the graph itself, as strongly typed engines want it; inputs and outputs stay.

    Operators stay float32 whose values, measured on the probes and samples, come near the largest
    fp16 number or vanish below the smallest, and those with weights or constants that do. How a
    processor sums inside an operator is not looked at: engines sum products in 32 bits.

    Attributes:
        keep: Names of nodes that stay float32 in any case.
    """

    keep: tuple[str, ...] = ()
    name: ClassVar[str] = "float16"
    summary: ClassVar[str] = "compute in fp16 where the range allows it"
    precision: ClassVar[str | None] = "fp16"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a float32 model without quantized parts."""
        return _refusal(model)

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the graph with fp16 nodes, and Casts where they meet others."""
        draft, after, twin, notes = convert(model, context, FLOAT16, self.keep)
        if twin is None:
            return PassResult(model=model, modified=False, notes=notes)
        _hold_twin(draft, twin, context)
        return PassResult(model=after, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check the dtypes of inputs and outputs, and that the weights shrank.

        Raises:
            PassBroken: one of the two.
        """
        _ensure(before, after)


@dataclass(frozen=True, kw_only=True)
class BFloat16:
    """bf16 in the graph itself: float32's range, 8 bits of precision. For engines that know it.

    ONNX Runtime's CPU kernels do not, so parity is measured on a twin: the same graph in float32,
    with every tensor rounded to bf16 after the operator that makes it. It must be the last pass.

    Attributes:
        keep: Names of nodes that stay float32 in any case.
    """

    keep: tuple[str, ...] = ()
    name: ClassVar[str] = "bfloat16"
    summary: ClassVar[str] = "compute in bf16"
    precision: ClassVar[str | None] = "bf16"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a float32 model, and an engine with bf16 kernels."""
        reason = _reason_against_bfloat16(context.target)
        if reason is not None:
            return reason
        if opset_of(model) < _BF16_OPSET and op_types(model) & {"Conv", "ConvTranspose"}:
            return f"convolutions know bf16 from opset {_BF16_OPSET} on, this is {opset_of(model)}"
        return _refusal(model)

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the graph with bf16 nodes, and its twin."""
        _, after, twin, notes = convert(model, context, BFLOAT16, self.keep)
        if twin is None:
            return PassResult(model=model, modified=False, notes=notes)
        return PassResult(model=after, modified=True, notes=notes, twin=twin)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check the graph itself, the dtypes of inputs and outputs, and that the weights shrank.

        Raises:
            PassBroken: one of them.
        """
        import onnx

        # The twin ran in its place, so the types are checked by inference.
        onnx.checker.check_model(after)
        onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
        _ensure(before, after)


@dataclass(frozen=True, kw_only=True)
class BFloat16Rounded:
    """What bf16 computes, in float32: the twin of `BFloat16`, for a search to measure.

    The engine's own graph is written in bf16 once it is cut for its target.
    """

    name: ClassVar[str] = "bfloat16-rounded"
    summary: ClassVar[str] = "compute what bf16 leaves"
    precision: ClassVar[str | None] = "bf16"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need what `BFloat16` needs."""
        return BFloat16().requires(model, context)

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the twin, where the graph itself holds what `BFloat16` promises."""
        result = BFloat16().run(model, context)
        if not result.modified:
            return result
        BFloat16().ensures(model, result.model, context)
        return PassResult(model=result.twin, modified=True, notes=result.notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check the dtypes of inputs and outputs.

        Raises:
            PassBroken: one has changed.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its type")


def convert(
    model: Any, context: PassContext, half: HalfType, keep: tuple[str, ...]
) -> tuple[Any, Any, Any | None, tuple[str, ...]]:
    """Return a model's draft, its 16-bit form, that form's float32 twin, and notes.

    The draft is the float32 model that was converted: constants as initializers, masks shortened.
    Without a node to convert the twin is None.
    """
    import onnx

    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    constants_as_initializers(draft)
    name_nodes(draft)
    masks = shorten_masks(draft)
    found = plan(draft, context, half, keep)
    notes = _notes(draft, found, half, masks)
    if not found.narrow:
        return draft, model, None, notes
    forms = [
        HalfGraph(
            model=draft, slots=found.slots, narrow=found.narrow, half=half, emulate=emulate
        ).write()
        for emulate in (False, True)
    ]
    return draft, forms[0], forms[1], notes


def convert_external(
    model: Any, context: PassContext, half: HalfType, array: Callable[[Any], NDArray[Any]]
) -> tuple[Any, dict[str, str], tuple[str, ...]]:
    """Return the 16-bit form of a model with external data, and whose values its constants hold.

    Its constants have no data: `save_external` asks for one after the other. There is no twin to
    show an overflow, which would take all of them in float32 once more.

    Raises:
        PassBroken: no operator can be 16 bits wide.
    """
    import onnx

    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    constants_as_initializers(draft)
    name_nodes(draft)
    masks = shorten_masks(draft)
    found = plan(draft, context, half, (), array=array)
    notes = _notes(draft, found, half, masks)
    if not found.narrow:
        raise PassBroken(notes[0])
    graph = HalfGraph(
        model=draft, slots=found.slots, narrow=found.narrow, half=half, with_data=False
    )
    after = graph.write()
    return after, graph.origin, notes


def _reason_against_bfloat16(target: Target) -> str | None:
    tensorrt = target.tensorrt
    if tensorrt is None:
        return "the target runs ONNX Runtime on the CPU, which has no bf16 kernels"
    if tensorrt.max_opset < _BF16_OPSET:
        return (
            f"TensorRT {tensorrt.version} reads opset {tensorrt.max_opset} at most, and bf16 came "
            f"with {_BF16_OPSET}"
        )
    old = [word for word in tensorrt.compute_capabilities if float(word) < _BF16_CAPABILITY]
    return f"GPUs of compute capability {old[0]} have no bf16" if old else None


def _refusal(model: Any) -> str | None:
    if is_quantized(model):
        return "the model is quantized already"
    if model.functions:
        return "the model has functions of its own"
    if _bytes_of(model)[0] == 0:
        return "no weight outside of branches and loops is float32"
    return None


def _hold_twin(draft: Any, twin: Any, context: PassContext) -> None:
    # ONNX Runtime's CPU kernels compute fp16 graphs in float32 and would not show an overflow.
    for want, have in zip(run_model(draft, context), run_model(twin, context), strict=True):
        broken = contradiction(want, have)
        if broken is not None:
            raise PassBroken(f"rounded to fp16 after every operator, {broken}")


def _ensure(before: Any, after: Any) -> None:
    if interface_of(before) != interface_of(after):
        raise PassBroken("an input or output changed its type")
    total = sum(_bytes_of(before))
    saved = 1 - sum(_bytes_of(after)) / total if total else 0.0
    if saved < _LEAST_SAVED:
        raise PassBroken(f"the weights shrank by {saved:.0%} only: too many must stay float32")


def _bytes_of(model: Any) -> tuple[int, int]:
    """Return the bytes of float32 and of 16-bit constants of the top level."""
    import onnx

    kinds = {
        onnx.TensorProto.FLOAT: (0, 4),
        onnx.TensorProto.FLOAT16: (1, 2),
        onnx.TensorProto.BFLOAT16: (1, 2),
    }
    sizes = [0, 0]
    tensors = list(model.graph.initializer)
    tensors += [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    for tensor in tensors:
        if tensor.data_type in kinds:
            place, width = kinds[tensor.data_type]
            count = 1
            for size in tensor.dims:
                count *= size
            sizes[place] += count * width
    return sizes[0], sizes[1]


def _notes(draft: Any, found: HalfPlan, half: HalfType, masks: int) -> tuple[str, ...]:
    nodes = draft.graph.node
    total = len(found.narrow) + len(found.reasons)
    notes = [f"{len(found.narrow)} of {total} float operators in {half.name}"]
    if masks:
        notes.append(f"{masks} mask{'s' if masks > 1 else ''} written as -9984")
    grouped: dict[str, list[str]] = defaultdict(list)
    for position, why in sorted(found.reasons.items()):
        grouped[why].append(nodes[position].name)
    for why, names in grouped.items():
        shown = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES])
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        stay = "stays" if len(names) == 1 else "stay"
        notes.append(f"{shown}{more} {stay} float32: {why}")
    return tuple(notes)
