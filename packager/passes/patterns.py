"""What pattern matching on a graph needs: producers, consumers, constants, and edits by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class Graph:
    """An index over the top level of a model's graph, which edits keep up to date.

    Patterns replace a node's outputs and leave the nodes before it where they are: `sweep` drops
    those that nobody reads any more, so a value that is read elsewhere as well stays right.

    Attributes:
        model: `onnx.ModelProto`, changed in place.
        edits: Number of nodes replaced so far.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.edits = 0
        self._dtypes: dict[str, str] = {}
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._nodes = list(model.graph.node)
        self._producers = {name: node for node in self._nodes for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._constants[node.output[0]] = attribute.t
        # A subgraph reads outer values by name, so its reads count as readers of those values.
        self._subgraph_reads = {
            name
            for node in self._nodes
            for attribute in node.attribute
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)
            for name in _reads(graph)
        }
        self._taken = set(self._producers) | set(self._constants) | self._subgraph_reads
        self._taken |= {value.name for value in (*model.graph.input, *model.graph.output)}
        self._taken |= {node.name for node in self._nodes}

    def nodes(self, op_type: str, domain: str = "") -> list[Any]:
        """Return the nodes of one operator, in graph order."""
        return [node for node in self._nodes if is_op(node, op_type, domain)]

    def producer(self, name: str, *op_types: str) -> Any | None:
        """Return the node that makes a value, or None; with `op_types` only one of those."""
        node = self._producers.get(name)
        if node is None or not op_types:
            return node
        return node if any(is_op(node, kind) for kind in op_types) else None

    def consumers(self, name: str) -> list[Any]:
        """Return the nodes of the top level that read a value, in graph order."""
        return [node for node in self._nodes if name in node.input]

    def is_kept(self, name: str) -> bool:
        """Tell whether a value is read from outside the top level's nodes."""
        return name in self._subgraph_reads or any(
            name == value.name for value in self.model.graph.output
        )

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant's value, or None."""
        from onnx import numpy_helper

        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """Return a constant of one element as a number, or None."""
        tensor = self._constants.get(name)
        if tensor is None or math.prod(tensor.dims) != 1:
            return None
        value = self.constant(name)
        return None if value is None else float(value.reshape(-1)[0])

    def is_scalar(self, name: str, value: float, *, tolerance: float = 1e-5) -> bool:
        """Tell whether a value is a constant of one element, near `value` (relative)."""
        found = self.scalar(name)
        return found is not None and math.isclose(found, value, rel_tol=tolerance)

    def dtype(self, name: str) -> str | None:
        """Return the dtype of a value as numpy names it, or None where inference stops."""
        self._infer()
        return self._dtypes.get(name)

    def rank(self, name: str) -> int | None:
        """Return the number of axes of a value, or None where inference stops."""
        self._infer()
        shape = self._shapes.get(name)
        return None if shape is None else len(shape)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the sizes of a value's axes, None for one that is not fixed, or None."""
        self._infer()
        return self._shapes.get(name)

    def length(self, name: str) -> int | None:
        """Return the size of a value with one axis, or None where it is not known."""
        self._infer()
        shape = self._shapes.get(name) or ()
        return shape[0] if len(shape) == 1 else None

    def position(self, name: str) -> int:
        """Return where in the graph's order a value is made; -1 for inputs and constants."""
        return next((i for i, node in enumerate(self._nodes) if name in node.output), -1)

    def _infer(self) -> None:
        import onnx

        if self._dtypes:
            return
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = value.type.tensor_type.elem_type
            if kind:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
                self._dtypes[value.name] = str(dtype)
            if value.type.tensor_type.HasField("shape"):
                self._shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None
                    for dim in value.type.tensor_type.shape.dim
                )

    def other(self, node: Any, name: str) -> str | None:
        """Return the other operand of a node with two inputs of which one is `name`."""
        if len(node.input) != 2 or name not in node.input:
            return None
        operand: str = node.input[1] if node.input[0] == name else node.input[0]
        return operand

    def scaled(self, name: str) -> tuple[str, float]:
        """Return what a value is before multiplications by constant scalars, and their product."""
        factor = 1.0
        while (node := self.producer(name, "Mul", "Div")) is not None:
            left, right = (self.scalar(operand) for operand in node.input)
            if right is not None:
                name = node.input[0]
                factor = factor * right if node.op_type == "Mul" else factor / right
            elif left is not None and node.op_type == "Mul":
                name, factor = node.input[1], factor * left
            else:
                break
        return name, factor

    def fresh(self, stem: str) -> str:
        """Return a name for a value or node that the graph does not use yet, and reserve it."""
        name, number = stem, 1
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        return name

    def add_constant(self, stem: str, value: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        from onnx import numpy_helper

        name = self.fresh(stem)
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(value, name))
        self._constants[name] = tensor
        return name

    def replace(self, node: Any, *new: Any) -> None:
        """Put nodes in a node's place; the last of them makes the outputs of the one that goes."""
        position = next(i for i, other in enumerate(self._nodes) if other is node)
        self._nodes[position : position + 1] = list(new)
        for made in new:
            self._producers.update({name: made for name in made.output if name})
            self._taken.update(made.output)
        self.edits += 1

    def insert_after(self, name: str, *new: Any) -> None:
        """Put nodes right behind the one that makes a value; at the start for inputs, constants."""
        position = self.position(name)
        self._nodes[position + 1 : position + 1] = list(new)
        for made in new:
            self._producers.update({output: made for output in made.output if output})
            self._taken.update(made.output)
        self.edits += 1

    def sweep(self) -> None:
        """Write the nodes back into the model, without those that nobody reads."""
        import onnx

        needed = {value.name for value in self.model.graph.output} | self._subgraph_reads
        kept: list[Any] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        copies = []
        for node in reversed(kept):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        tensors = [t for t in self.model.graph.initializer if t.name in needed]
        if len(tensors) < len(self.model.graph.initializer):
            held = []
            for tensor in tensors:
                twin = onnx.TensorProto()
                twin.CopyFrom(tensor)
                held.append(twin)
            del self.model.graph.initializer[:]
            self.model.graph.initializer.extend(held)


def is_op(node: Any, op_type: str, domain: str = "") -> bool:
    """Tell whether a node is an operator of a domain; `` and `ai.onnx` are one."""
    here = "" if node.domain == "ai.onnx" else node.domain
    return bool(node.op_type == op_type and here == domain)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value."""
    from onnx import helper

    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def import_domain(model: Any, domain: str, version: int) -> None:
    """Let a model import an operator domain, in place, if it does not yet."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.add(domain=domain, version=version)


def _reads(graph: Any) -> Iterable[str]:
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _reads(entry.g)
            for inner in entry.graphs:
                yield from _reads(inner)
    for value in graph.output:
        yield value.name
