"""Quantizes the tables of embeddings: int8 rows with a scale each, float after the look-up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from packager.passes.patterns import attribute

if TYPE_CHECKING:
    from packager.passes.patterns import Graph

# A smaller table costs next to nothing in float32 (type or segment embeddings).
_LEAST_ELEMENTS: Final = 1024


def table_sizes(graph: Graph) -> dict[str, int]:
    """Return the number of elements of every float32 table that only Gather nodes read."""
    found = {}
    for tensor in graph.model.graph.initializer:
        elements = math.prod(tensor.dims)
        if len(tensor.dims) != 2 or tensor.data_type != 1 or elements < _LEAST_ELEMENTS:
            continue
        readers = graph.consumers(tensor.name)
        if graph.is_kept(tensor.name) or not readers:
            continue
        if all(_looks_up(node, tensor.name) for node in readers):
            found[tensor.name] = elements
    return found


def quantize_tables(graph: Graph) -> int:
    """Quantize every such table, in place; return how many.

    A row's scale is its largest magnitude over 127. No product is summed in eight bits here, so
    all eight are used on every target.
    """
    import numpy as np
    from onnx import TensorProto, helper

    tables = table_sizes(graph)
    for name in tables:
        values = graph.constant(name)
        if values is None:
            continue
        largest = np.abs(values).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        rows = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        rows_name = graph.add_constant(f"{name}_quantized", rows)
        scale_name = graph.add_constant(f"{name}_scale", scale)
        for node in graph.consumers(name):
            stem, ids = node.output[0], node.input[1]
            row, wide, step = (graph.fresh(f"{stem}_{part}") for part in ("row", "wide", "step"))
            graph.replace(
                node,
                helper.make_node("Gather", [rows_name, ids], [row], node.name, axis=0),
                helper.make_node("Gather", [scale_name, ids], [step], step, axis=0),
                helper.make_node("Cast", [row], [wide], wide, to=TensorProto.FLOAT),
                helper.make_node("Mul", [wide, step], list(node.output), graph.fresh("dequantize")),
            )
    return len(tables)


def _looks_up(node: Any, table: str) -> bool:
    return bool(
        node.op_type == "Gather"
        and node.input[0] == table
        and node.input[1] != table
        and attribute(node, "axis", 0) == 0
    )
