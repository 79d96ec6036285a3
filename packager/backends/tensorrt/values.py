"""What is known of a graph's values without running it: makers, readers, types, sizes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from packager.passes.contract import tool_faults

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Values:
    """An index over the top level of a graph.

    Attributes:
        producers: Name → the node that makes the value.
        readers: Name → the nodes that read it, in graph order; those inside a branch or loop are
            not seen, and what they read is in `kept`.
        kept: Names that are read from outside the top level's nodes.
        dtypes: Name → dtype as numpy names it, as far as it can be inferred.
        shapes: Name → sizes, None for one that is not fixed.
    """

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        self.kept = {value.name for value in graph.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._constants[node.output[0]] = attribute.t
                inner = [*attribute.graphs]
                inner += [attribute.g] if attribute.HasField("g") else []
                self.kept |= {name for sub in inner for name in _reads(sub)}
        self.dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self._infer(model)

    def is_constant(self, name: str) -> bool:
        """Tell whether a value is a constant of the graph, through its dequantizer as well."""
        node = self.producers.get(name)
        if name in self._constants or (node is not None and node.op_type == "Constant"):
            return True
        return (
            node is not None
            and node.op_type == "DequantizeLinear"
            and node.input[0] in self._constants
        )

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant's value, None where there is none in the file itself."""
        from onnx import TensorProto, numpy_helper

        tensor = self._constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            array: NDArray[Any] = numpy_helper.to_array(tensor)
        except tool_faults():
            return None
        return array

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return a value's sizes, None where its rank is not known."""
        return self.shapes.get(name)

    def _infer(self, model: Any) -> None:
        import onnx

        try:
            # The sizes of reshaped and resized values come of the constants that say them.
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except tool_faults():
            graph = model.graph
        for tensor in self._constants.values():
            self._note(tensor.name, tensor.data_type)
            self.shapes[tensor.name] = tuple(tensor.dims)
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in self._constants:
                tensor = self._constants[node.output[0]]
                self._note(node.output[0], tensor.data_type)
                self.shapes[node.output[0]] = tuple(tensor.dims)
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self._note(value.name, kind.elem_type)
            if kind.HasField("shape"):
                self.shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim
                )

    def _note(self, name: str, kind: int) -> None:
        import onnx

        if kind:
            # numpy's own name would be `object` for strings, and lacks the narrow types
            self.dtypes[name] = onnx.TensorProto.DataType.Name(kind).lower()


def _reads(graph: Any) -> set[str]:
    """Return the names that a branch or loop reads, its own values included."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            inner = [*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())]
            names.update(*(_reads(sub) for sub in inner))
    return names


def attributes_of(node: Any) -> dict[str, Any]:
    """Return a node's attributes by name as Python values."""
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
