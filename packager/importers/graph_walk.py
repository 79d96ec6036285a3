"""Walks an ONNX model: every graph, subgraph and function, and renames tensors across them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

NodeHolder = Any  # GraphProto or FunctionProto


def attribute_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs that a node carries in its attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(model: onnx.ModelProto) -> Iterator[NodeHolder]:
    """Yield the main graph, every function, and every subgraph below them, outermost first."""
    pending: list[NodeHolder] = [model.graph, *model.functions]
    while pending:
        holder = pending.pop(0)
        yield holder
        for node in holder.node:
            pending.extend(attribute_graphs(node))


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of every graph and function."""
    for holder in graphs(model):
        yield from holder.node


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant tensor: initializers, sparse parts and attributes."""
    for holder in graphs(model):
        if isinstance(holder, onnx.GraphProto):
            yield from holder.initializer
            for sparse in holder.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in holder.node:
            yield from _attribute_tensors(node.attribute)
        if isinstance(holder, onnx.FunctionProto):
            yield from _attribute_tensors(holder.attribute_proto)


def _attribute_tensors(attributes: Any) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = list(attribute.sparse_tensors)
        if attribute.HasField("sparse_tensor"):
            sparse.append(attribute.sparse_tensor)
        for entry in sparse:
            yield entry.values
            yield entry.indices


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Return every tensor name that is defined or used in the graph and below it."""
    names: set[str] = set()
    pending = [graph]
    while pending:
        holder = pending.pop()
        names.update(t.name for t in holder.initializer)
        names.update(v.name for v in (*holder.input, *holder.output))
        for node in holder.node:
            names.update(node.input)
            names.update(node.output)
            pending.extend(attribute_graphs(node))
    return names


def rename_tensors(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Rename tensors in a graph and in the subgraphs that capture them."""
    pending = [graph]
    while pending:
        holder = pending.pop()
        for tensor in holder.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for sparse in holder.sparse_initializer:
            sparse.values.name = renamed.get(sparse.values.name, sparse.values.name)
        for value in (*holder.input, *holder.output, *holder.value_info):
            value.name = renamed.get(value.name, value.name)
        for annotation in holder.quantization_annotation:
            annotation.tensor_name = renamed.get(annotation.tensor_name, annotation.tensor_name)
        for node in holder.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name in renamed:
                        names[i] = renamed[name]
            pending.extend(attribute_graphs(node))


def set_io_names(graph: onnx.GraphProto, *, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the wanted names, in order.

    An output that is also an input, an initializer or another output gets an Identity of its own,
    so that every name is defined once.
    """
    wanted = {*inputs, *outputs}
    taken = tensor_names(graph)
    renamed: dict[str, str] = {}
    for name in sorted(taken & wanted):
        renamed[name] = _fresh(f"{name}_inner", taken | wanted | set(renamed.values()))
    rename_tensors(graph, renamed)
    rename_tensors(graph, {v.name: new for v, new in zip(graph.input, inputs, strict=True)})
    produced = {name for node in graph.node for name in node.output}
    direct: dict[str, str] = {}
    for value, new in zip(graph.output, outputs, strict=True):
        old = value.name
        if old in produced and old not in direct:
            direct[old] = new
        else:
            graph.node.append(onnx.helper.make_node("Identity", [old], [new], name=f"{new}_alias"))
            value.name = new
    rename_tensors(graph, direct)


def _fresh(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
