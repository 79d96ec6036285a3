"""Collects the nodes that take one node's place, and puts them there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.model import numpy_dtype
from packager.passes.contract import opset_of
from packager.passes.patterns import attribute
from packager.passes.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from packager.passes.patterns import Graph


class Draft:
    """What a node of the top level becomes: operators of the default domain.

    Attributes:
        graph: Of the node.
        node: The one that goes.
        opset: Of the default domain.
    """

    def __init__(self, graph: Graph, node: Any) -> None:
        self.graph = graph
        self.node = node
        self.opset = opset_of(graph.model)
        stem = node.name or node.output[0]
        self.steps = Steps(prefix=graph.fresh(f"{stem}.as"), opset=self.opset)

    def value(self, place: int) -> str:
        """Return the name of an input, empty where it is left out."""
        return str(self.node.input[place]) if len(self.node.input) > place else ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node; text as text."""
        found = attribute(self.node, name, default)
        return found.decode() if isinstance(found, bytes) else found

    def dtype(self, name: str) -> str:
        """Return the dtype of a value; float32 where inference stops."""
        constant = self.graph.constant(name)
        if constant is not None:
            return str(constant.dtype)
        return self.graph.dtype(name) or "float32"

    def add(self, operator: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        """Append a node with one output and return that one's name."""
        return self.steps.add(operator, inputs, result, **attributes)

    def cast(self, value: str, dtype: str, result: str = "") -> str:
        """Append a conversion."""
        return self.steps.cast(value, dtype, result)

    def number(self, value: float, like: str) -> str:
        """Return the name of a scalar constant of the dtype of another value."""
        return self.constant(value, self.dtype(like))

    def constant(self, value: Any, dtype: str) -> str:
        """Return the name of a new constant."""
        import numpy as np

        name = f"c{len(self.steps.constants)}"
        return self.steps.constant(name, np.asarray(value).astype(numpy_dtype(dtype)))

    def ints(self, *values: int) -> str:
        """Return the name of an int64 vector."""
        return self.constant(list(values), "int64")

    def array(self, value: NDArray[Any]) -> str:
        """Return the name of a new constant with a value as it is."""
        return self.steps.constant(f"c{len(self.steps.constants)}", value)

    def reduce(self, operator: str, value: str, axes: Sequence[int], *, keepdims: bool) -> str:
        """Append a reduction."""
        return self.steps.reduce(operator, value, axes, keepdims=keepdims)

    def unsqueeze(self, value: str, *axes: int) -> str:
        """Append an Unsqueeze; its axes are an input from opset 13 on."""
        if self.opset < 13:
            return self.add("Unsqueeze", value, axes=list(axes))
        return self.add("Unsqueeze", value, self.ints(*axes))

    def give(self, value: str, place: int = 0) -> None:
        """Let a value be an output of the node that goes."""
        if len(self.node.output) > place and self.node.output[place]:
            self.add("Identity", value, result=self.node.output[place])

    def put(self) -> None:
        """Put the nodes in the node's place."""
        self.graph.model.graph.initializer.extend(self.steps.constants)
        self.graph.replace(self.node, *self.steps.nodes)
