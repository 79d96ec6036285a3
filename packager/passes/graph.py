"""Small questions and edits on an ONNX graph that several passes share."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def all_nodes(model: Any) -> Iterator[Any]:
    """Yield every node, those of branches and loops included."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def op_types(model: Any) -> set[str]:
    """Return the operators of the default domain that occur."""
    return {node.op_type for node in all_nodes(model) if node.domain in ("", "ai.onnx")}


def constant_sizes(model: Any) -> dict[str, int]:
    """Return the number of elements of every constant tensor, by name."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                sizes[node.output[0]] = math.prod(attribute.t.dims)
    return sizes


def is_quantized(model: Any) -> bool:
    """Tell whether a graph computes in eight bits or less already."""
    exact = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
             "MatMulInteger", "QLinearConv", "QLinearMatMul"}  # fmt: skip
    return any(
        node.op_type in exact
        or (
            node.domain == "com.microsoft"
            and node.op_type.startswith(
                (
                    "QLinear",
                    "QGemm",
                    "DynamicQuantize",
                    "MatMulNBits",
                    "QAttention",
                    "MatMulInteger",
                )
            )
        )
        for node in all_nodes(model)
    )


def interface_of(model: Any) -> tuple[tuple[str, bytes], ...]:
    """Return name and type of each input and output, without names of dimensions."""
    import onnx

    initializers = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in (*model.graph.input, *model.graph.output):
        if value.name in initializers:
            continue
        kind = onnx.TypeProto()
        kind.CopyFrom(value.type)
        for dim in kind.tensor_type.shape.dim:
            dim.ClearField("dim_param")
            dim.ClearField("denotation")
        kind.ClearField("denotation")
        found.append((value.name, kind.SerializeToString(deterministic=True)))
    return tuple(found)


def strip_texts(model: Any) -> None:
    """Remove what no engine reads, in place: doc strings, metadata, producer, unused domains.

    Exporters put folders, source lines and version texts there, and the bytes of an artifact must
    depend on neither.
    """
    used = {node.domain or "" for node in all_nodes(model)}
    for function in model.functions:
        used |= {node.domain or "" for node in function.node} | {function.domain}
        function.ClearField("doc_string")
    kept = [o for o in model.opset_import if o.domain in used | {"", "ai.onnx"}]
    kept.sort(key=lambda entry: entry.domain)
    kept = [(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    for domain, version in kept:
        model.opset_import.add(domain=domain, version=version)
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    del model.metadata_props[:]
    _strip_graph(model.graph)
    for node in all_nodes(model):
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _strip_graph(attribute.g)


def _strip_graph(graph: Any) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    # Inferred types are found again on loading; stale ones are refused by the engine.
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for group in (graph.input, graph.output, graph.initializer):
        for entry in group:
            entry.ClearField("doc_string")
            del entry.metadata_props[:]


def digest_of(model: Any) -> str:
    """Return the SHA-256 of a model's canonical bytes."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def fresh_name(model: Any, stem: str) -> str:
    """Return a value name that the graph does not use yet."""
    taken = {tensor.name for tensor in model.graph.initializer}
    taken |= {value.name for value in (*model.graph.input, *model.graph.output)}
    taken |= {name for node in all_nodes(model) for name in (*node.input, *node.output, node.name)}
    name, number = stem, 1
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name
