"""Fits a graph to what a target's TensorRT parses: its operators, Q/DQ, dtypes, opset and IR."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.backends.lowering import lower
from packager.backends.tensorrt.differences import known_differences
from packager.backends.tensorrt.doubles import to_float32
from packager.backends.tensorrt.draft import Draft
from packager.backends.tensorrt.microsoft import DOMAIN, MICROSOFT
from packager.backends.tensorrt.quantized import to_symmetric
from packager.backends.tensorrt.rewrites import REWRITES
from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes, is_quantized
from packager.passes.patterns import Graph

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from packager.target import TensorRT

# What ONNX itself defines by other operators, and is too rare to be written better here.
_BY_DEFINITION: Final = frozenset({
    "AffineGrid", "Attention", "BlackmanWindow", "CastLike", "Celu", "CenterCropPad",
    "HammingWindow", "HannWindow", "HardSwish", "MeanVarianceNormalization", "RotaryEmbedding",
    "Shrink",
})  # fmt: skip
# One rewriting may leave an operator that the next one takes.
_ROUNDS: Final = 4
_NEEDS_STATIC: Final = {
    "ConvInteger": "QuantizeLinear and DequantizeLinear around a Conv",
    "DynamicQuantizeLinear": "ranges fixed ahead, `--precision int8-static`",
    "MatMulInteger": "QuantizeLinear and DequantizeLinear around a MatMul",
    "QLinearConv": "QuantizeLinear and DequantizeLinear around a Conv",
    "QLinearMatMul": "QuantizeLinear and DequantizeLinear around a MatMul",
}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model for a TensorRT, and what was changed, as sentences for the record."""

    model: Any
    notes: tuple[str, ...]


def fit(
    model: Any, tensorrt: TensorRT, *, samples: Iterable[Mapping[str, NDArray[Any]]] = ()
) -> Fitted:
    """Return a model as a target's TensorRT parses it.

    Args:
        model: An `onnx.ModelProto`, which is not changed.
        tensorrt: The target's.
        samples: Inputs to compare on where the opset is lowered.

    Raises:
        ModelUnsupported: an operator that no rewriting fits, or an opset that cannot be lowered.
    """
    rewritten = rewrite(model, tensorrt)
    refuse_foreign(rewritten.model)
    notes = [*rewritten.notes, *narrow(rewritten.model, tensorrt, samples=samples)]
    return Fitted(model=rewritten.model, notes=tuple(notes))


def rewrite(model: Any, tensorrt: TensorRT, *, also: Collection[str] = ()) -> Fitted:
    """Return a model whose nodes are named, and written in what the target's TensorRT has.

    What cannot be written so stays as it is.

    Args:
        model: An `onnx.ModelProto`, which is not changed.
        tensorrt: The target's.
        also: Names of nodes to write otherwise although they are not known to be lacking.
    """
    import onnx
    import onnx.inliner

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if changed.functions:
        changed = onnx.inliner.inline_local_functions(changed)
    name_nodes(changed)
    notes: list[str] = []
    if is_quantized(changed):
        notes += to_symmetric(changed).notes()
    counts: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        if not _one_round(changed, tensorrt, counts, also):
            break
    changed = _by_definition(changed, tensorrt, counts, also)
    name_nodes(changed)
    notes += [
        f"{count} × {name} written in other operators" for name, count in sorted(counts.items())
    ]
    return Fitted(model=changed, notes=tuple(notes))


def narrow(
    model: Any, tensorrt: TensorRT, *, samples: Iterable[Mapping[str, NDArray[Any]]] = ()
) -> tuple[str, ...]:
    """Make doubles floats and bring opset and IR version down, in place; return what was done.

    Raises:
        ModelUnsupported: the opset or IR version cannot be lowered.
    """
    notes = []
    opset = opset_of(model)
    lower(
        model,
        name=f"{tensorrt.module} {tensorrt.version}",
        max_opset=tensorrt.max_opset,
        max_ir_version=tensorrt.max_ir_version,
        samples=samples,
    )
    if opset_of(model) < opset:
        notes.append(f"lowered from opset {opset} to {opset_of(model)}")
    if to_float32(model):
        notes.append("double is computed as float32, as TensorRT has no double")
    return tuple(notes)


def refuse_foreign(model: Any) -> None:
    """Refuse operators that no TensorRT knows and no rewriting fits, by name.

    Raises:
        ModelUnsupported: there is one.
    """
    for node in all_nodes(model):
        if node.domain == DOMAIN:
            raise ModelUnsupported(
                f"`{node.name}` is `{node.op_type}`, an operator of ONNX Runtime alone",
                accepted="operators of ONNX",
                hint="export the model without ONNX Runtime's optimizations",
            )
        if node.domain in ("", "ai.onnx") and node.op_type in _NEEDS_STATIC:
            raise ModelUnsupported(
                f"`{node.name}` is `{node.op_type}`, which no TensorRT runs",
                accepted=_NEEDS_STATIC[node.op_type],
                hint="give the float model, and calibration data with `-c FOLDER`",
            )


def name_nodes(model: Any) -> None:
    """Give every node without a name, or with one that is taken, a name of its own, in place."""
    taken: set[str] = set()
    for number, node in enumerate(all_nodes(model)):
        name = node.name or f"{node.op_type}_{number}"
        other = 1
        while name in taken:
            name, other = f"{node.name or node.op_type}_{number}_{other}", other + 1
        taken.add(name)
        node.name = name


def _one_round(model: Any, tensorrt: TensorRT, counts: Counter[str], also: Collection[str]) -> bool:
    """Rewrite every node that the target's TensorRT lacks; tell whether there was one."""
    graph = Graph(model)
    before = graph.edits
    for node in list(model.graph.node):
        table = MICROSOFT if node.domain == DOMAIN else REWRITES
        if node.domain not in ("", "ai.onnx", DOMAIN) or node.op_type not in table:
            continue
        if node.name not in also and not _is_lacking(graph, node, tensorrt):
            continue
        draft = Draft(graph, node)
        if table[node.op_type](draft):
            draft.put()
            counts[node.op_type] += 1
    if graph.edits == before:
        return False
    graph.sweep()
    return True


def _is_lacking(graph: Graph, node: Any, tensorrt: TensorRT) -> bool:
    """Tell whether a node must be written otherwise: TensorRT, or its last opset, lacks it."""
    from onnx import defs

    if known_differences(graph, node, tensorrt) is not None:
        return True
    try:
        schema = defs.get_schema(node.op_type, tensorrt.max_opset, "")
    except defs.SchemaError:
        return True
    # GroupNormalization before opset 21, which scales per group, was withdrawn.
    return bool(schema.deprecated)


def _by_definition(
    model: Any, tensorrt: TensorRT, counts: Counter[str], also: Collection[str]
) -> Any:
    """Return the model with ONNX's own definitions in the place of what is still lacking."""
    import onnx
    import onnx.inliner

    graph = Graph(model)
    lacking = Counter(
        node.op_type
        for node in model.graph.node
        if node.domain in ("", "ai.onnx")
        and node.op_type in _BY_DEFINITION
        and (node.name in also or _is_lacking(graph, node, tensorrt))
    )
    if not lacking:
        return model
    typed = onnx.shape_inference.infer_shapes(model)
    # The inliner looks types up among values alone, not among constants.
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    try:
        inlined = onnx.inliner.inline_selected_functions(
            typed, [("", name) for name in sorted(lacking)], inline_schema_functions=True
        )
        del inlined.graph.value_info[:]
        onnx.checker.check_model(inlined)
    except tool_faults() as fault:
        raise ModelUnsupported(
            f"`{next(iter(sorted(lacking)))}` cannot be written in other operators: "
            f"{first_line(fault)}"
        ) from fault
    counts.update(lacking)
    return inlined
