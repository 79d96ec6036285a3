"""Replaces ZipMap outputs (a sequence of maps) by the probabilities they were made from."""

from __future__ import annotations

from typing import Any

import onnx


def remove_zip_maps(model: onnx.ModelProto, notes: list[str]) -> dict[str, list[Any]]:
    """Remove every ZipMap whose result is an output; the tensor it read takes the name.

    Returns:
        By output, the class labels in the order of the probabilities' columns.
    """
    graph = model.graph
    labels: dict[str, list[Any]] = {}
    outputs = {value.name: value for value in graph.output}
    for index, node in enumerate(graph.node):
        if node.op_type != "ZipMap" or node.domain != "ai.onnx.ml" or len(node.input) != 1:
            continue
        name = node.output[0]
        if name not in outputs:
            continue
        labels[name] = _class_labels(node)
        plain = onnx.helper.make_node("Identity", [node.input[0]], [name], name=node.name)
        graph.node[index].CopyFrom(plain)
        outputs[name].ClearField("type")  # float or double; the run tells
        notes.append(f"output `{name}` was a list of maps and is now the tensor of probabilities")
    return labels


def _class_labels(node: onnx.NodeProto) -> list[Any]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_strings" and attribute.strings:
            return [label.decode("utf-8", "replace") for label in attribute.strings]
        if attribute.name == "classlabels_int64s" and attribute.ints:
            return list(attribute.ints)
    return []
