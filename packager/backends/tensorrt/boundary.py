"""Converts what crosses the border of the engine to a dtype that TensorRT binds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.operators import numbers
from packager.passes.steps import tensor_type

if TYPE_CHECKING:
    from packager.target import TensorRT

# operators.md of 8.5 and 10.15, see operators.py. Up to 8.6 the parser turns int64 into int32, and
# the engine binds int32 then; saying so in the graph leaves nothing to guess on the device.
_BINDS: Final = frozenset({"float32", "float16", "int32", "bool", "uint8"})
_BINDS_10: Final = frozenset({"int64", "bfloat16"})
_INSTEAD: Final = {
    "float64": "float32",
    "int8": "int32",
    "int16": "int32",
    "uint16": "int32",
    "int64": "int32",
    "uint32": "int64",
    "uint64": "int64",
}


class Boundary:
    """The three parts of a model, and the conversions between them.

    Attributes:
        head: `onnx.ModelProto` or None; there is one where an input must be converted.
        core: Takes and gives what TensorRT binds.
        tail: As the head.
        notes: What was converted, in sentences.
    """

    def __init__(
        self, tensorrt: TensorRT, outputs: frozenset[str], parts: tuple[Any, Any, Any]
    ) -> None:
        self.head, self.core, self.tail = parts
        self._outputs = outputs
        self.notes: list[str] = []
        newer = tensorrt.module != "tensorrt" or numbers(tensorrt.version) >= (10,)
        self._binds = _BINDS | _BINDS_10 if newer else _BINDS

    def convert(self) -> None:
        """Put a Cast on both sides of every value whose dtype is not bound."""
        for value in list(self.core.graph.input):
            instead = self._instead(value)
            if instead:
                self._convert_input(value, instead)
        for value in list(self.core.graph.output):
            instead = self._instead(value)
            if instead:
                self._convert_output(value, instead)

    def _instead(self, value: Any) -> str:
        import onnx

        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        while dtype in _INSTEAD and dtype not in self._binds:
            dtype = _INSTEAD[dtype]
            if dtype in self._binds:
                return dtype
        return ""

    def _convert_input(self, value: Any, dtype: str) -> None:
        """Let the head give a value as another dtype, and the core turn it back."""
        import onnx

        name, kind = value.name, value.type.tensor_type.elem_type
        bound = f"{name}.bound"
        self.head = self.head if self.head is not None else _empty(self.core, "head")
        made = {other for node in self.head.graph.node for other in node.output}
        if name not in made and name not in {v.name for v in self.head.graph.input}:
            self.head.graph.input.add().CopyFrom(value)
        self.head.graph.node.append(
            onnx.helper.make_node("Cast", [name], [bound], name=bound, to=tensor_type(dtype))
        )
        given = self.head.graph.output.add()
        given.CopyFrom(value)
        given.name = bound
        given.type.tensor_type.elem_type = tensor_type(dtype)
        value.CopyFrom(given)
        back = onnx.helper.make_node("Cast", [bound], [name], name=f"{name}.unbound", to=kind)
        nodes = [back, *self.core.graph.node]
        _set_nodes(self.core, nodes)
        self._drop_head_output(name)
        self._say(name, kind, dtype, "takes")

    def _convert_output(self, value: Any, dtype: str) -> None:
        """Let the core give a value as another dtype, and the tail turn it back."""
        import onnx

        name, kind = value.name, value.type.tensor_type.elem_type
        bound = f"{name}.bound"
        declared = onnx.ValueInfoProto()
        declared.CopyFrom(value)
        self.tail = self.tail if self.tail is not None else _empty(self.core, "tail")
        self.core.graph.node.append(
            onnx.helper.make_node("Cast", [name], [bound], name=bound, to=tensor_type(dtype))
        )
        value.name = bound
        value.type.tensor_type.elem_type = tensor_type(dtype)
        back = onnx.helper.make_node("Cast", [bound], [name], name=f"{name}.unbound", to=kind)
        _set_nodes(self.tail, [back, *self.tail.graph.node])
        taken = [v for v in self.tail.graph.input if v.name == name]
        for other in taken:
            self.tail.graph.input.remove(other)
        self.tail.graph.input.add().CopyFrom(value)
        if name in self._outputs:
            self.tail.graph.output.add().CopyFrom(declared)
        self._say(name, kind, dtype, "gives")

    def _drop_head_output(self, name: str) -> None:
        """Drop an output of the head that the core alone read."""
        tail = {v.name for v in self.tail.graph.input} if self.tail is not None else set()
        if name in tail or name in self._outputs:
            return
        for other in [v for v in self.head.graph.output if v.name == name]:
            self.head.graph.output.remove(other)

    def _say(self, name: str, kind: int, dtype: str, verb: str) -> None:
        import onnx

        was = onnx.helper.tensor_dtype_to_np_dtype(kind)
        self.notes.append(f"the engine {verb} `{name}` as {dtype}, not {was}")


def _empty(model: Any, name: str) -> Any:
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.CopyFrom(onnx.GraphProto(name=name))
    return made


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
